"""Logs that others have written, or that were spoilt: each fails alone, is counted, and steers no terminal."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exporters import ga_payload, payload
from exporters.outbox import Outbox
from exporters.rebuild import rebuild
from profiler import Phase, Profiler, settings
from profiler.config.folder import Folder
from profiler.errors import RunLogError
from profiler.report.document import document
from profiler.report.text import text
from profiler.sending.snapshot import run_snapshot
from profiler.storage.run_log import run_id
from profiler.storage.run_reader import believed, find, load, outline
from support.processes import KILLED, Answer, epochmeter, python
from support.sinks import Sink

ESCAPES = "\x1b]0;PWN\x07\x1b[31m\r\nforged\u202e\u2066line"
COMMANDS = [["runs"], ["runs", "--json"], ["report"], ["report", "--format", "json"], ["doctor"], ["telemetry", "preview"]]
ODD: list[Any] = [None, True, 0, -1, 2**63 - 1, 2**64, 1e300, -1e300, 0.5, "", "x", "-5", "9" * 5000, ESCAPES, [], {}, [1]]
ODD += [{"a": 1}, "1", "NaN", "Infinity", float("inf"), float("nan")]


def recorded(home: Path, name: str = "x") -> Path:
    with Profiler(name, settings={"exporter": "none"}, interval=0.02) as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(10), samples=4):
                with prof.phase(Phase.FORWARD), prof.phase("mine"):
                    pass
    return find(home / "runs")


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def spoil(document: Any, draw: random.Random) -> None:
    found = list(places(document))
    if not found:
        return
    *outer, last = draw.choice(found)
    for key in outer:
        document = document[key]
    document[last] = copy.deepcopy(draw.choice(ODD))


def rare(values: Iterable[Any], often: int) -> list[Any]:
    """Return parameters of which the first so many are tried by `make test`, and the others by `make test-slow`."""
    return [pytest.param(value, marks=[pytest.mark.slow] if at >= often else []) for at, value in enumerate(values)]


@pytest.mark.parametrize("seed", rare(range(8), 2))
def test_any_change_of_a_log_fails_alone(home: Path, tmp_path: Path, seed: int) -> None:
    """What reads, shows and sends a log raises nothing but our own error, whatever one to four values become."""
    good = [json.loads(line) for line in recorded(home).read_text("utf-8").splitlines()]
    draw, path, whole = random.Random(seed), tmp_path / "x.otlp.jsonl", 0
    for _ in range(150):
        lines = copy.deepcopy(good)
        for _ in range(draw.choice([1, 1, 2, 4])):
            spoil(draw.choice(lines), draw)
        path.write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
        try:
            outline(path)
            run = load(path)
            with believed(run):
                document(run)
                assert all(line.isprintable() for line in text(run).split("\n"))
                now = run.started_unix_ns + run.duration_ns
                for target, form in (("otlp", payload), ("ga", ga_payload)):
                    form.bodies(rebuild(run_snapshot(run, now), target), True)
            whole += 1
        except RunLogError:
            continue
    assert whole > 50  # the lines beside the spoilt one are read


def hostile(kind: str, lines: list[str]) -> bytes:
    if kind in ("Infinity", "NaN", '"Infinity"'):
        documents = [json.loads(line) for line in lines]
        changed = json.dumps(documents).replace('"asDouble": ', f'"asDouble": {kind}, "was": ')
        return "\n".join(map(json.dumps, json.loads(changed))).encode()
    deep = "[" * 200_000
    return {
        "deep": f"{deep}\n".encode() + "\n".join(lines).encode(),
        "nul": b"\0" * 1_000_000 + "\n".join(lines).encode(),
        "latin": b"\xff\xfe\n",
        "utf-16": "\n".join(lines).encode("utf-16"),
        "crlf": "\r\n".join(lines).encode(),
        "other JSON": b'[]\n1\nnull\n"x"\n' + "\n".join(lines).encode(),
        "empty": b"",
        "a long number": "\n".join(lines).replace('"intValue": "1"', f'"intValue": "{"9" * 5000}"').encode(),
    }[kind]


KINDS = ["Infinity", "NaN", '"Infinity"', "deep", "nul", "latin", "utf-16", "crlf", "other JSON", "empty", "a long number"]


@pytest.mark.parametrize("kind", rare(["a FIFO", *KINDS, "a folder", "a link"], 5))
def test_good_run_is_shown_beside_a_bad_one(home: Path, kind: str) -> None:
    good = recorded(home, "good")
    bad = good.with_name("20990101T000000.000000Z-abcdefabcdef.otlp.jsonl")
    if kind == "a folder":
        bad.mkdir()
    elif kind == "a link":
        bad.symlink_to("/etc/hostname")
    elif kind == "a FIFO":
        os.mkfifo(bad)
    else:
        bad.write_bytes(hostile(kind, good.read_text("utf-8").splitlines()))
    for command in COMMANDS:
        answer = epochmeter(*command)
        assert answer.code in (0, 2) and "Traceback" not in answer.err, (command, answer.err)
        if command[0] == "runs":
            assert run_id(good) in answer.out
    assert epochmeter("report", run_id(good)).code == 0


def test_bad_log_stops_no_other_recovery(home: Path, sink: Sink) -> None:
    """Of two killed runs one has a log that makes no sense: the other is sent, and the bad one is counted."""
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    for _ in range(2):
        assert python("-c", KILLED).code == -9
    first, second = sorted((home / "outbox" / "open").iterdir())
    (log,) = (home / "runs").glob(f"*{first.stem}.otlp.jsonl")
    log.write_text(
        log.read_text().replace('"intValue":"1"', '"intValue":"x"').replace('"asDouble":', '"asDouble":"Infinity","x":')
    )
    for note in (first, second):
        about = json.loads(note.read_text())
        note.write_text(json.dumps({**about, "since": 1.0}))  # as if it were old
    (home / "outbox" / "open" / "cccccccccccc.json").write_text('{"since": 1, "log": 7}')
    epochmeter("telemetry", "flush")
    assert second.stem.encode() in b"".join(received.content for received in sink.received)
    assert not first.exists() and not second.exists()
    box = Outbox(Folder(home / "outbox"))
    assert sum(box.dropped().values()) + len([r for r in sink.received if first.stem.encode() in r.content]) == 1


# ---- nothing steers the terminal -----------------------------------------------------------------------------------


def is_plain(answer: Answer) -> bool:
    return all(line.isprintable() for line in (answer.out + answer.err).split("\n"))


def test_names_reach_no_terminal_unescaped(home: Path) -> None:
    with Profiler(ESCAPES, live=True) as prof:
        for _ in prof.epochs(2):
            for _ in prof.train(range(3)):
                with prof.phase(ESCAPES):
                    pass
    assert all(line.isprintable() for line in str(prof.summary).split("\n"))
    assert "\\x1b]0;PWN\\x07" in str(prof.summary)
    path = find(home / "runs")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for line in lines:
        attributes = line["resourceMetrics"][0]["resource"]["attributes"]
        attributes += [
            {"key": "epochmeter.gpus.0.name", "value": {"stringValue": ESCAPES}},
            {"key": "epochmeter.cpu.family", "value": {"stringValue": ESCAPES}},
        ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
    for command in COMMANDS:
        assert is_plain(epochmeter(*command)), command
    shown = epochmeter("report").out
    assert "forged" in shown and "\nforged" not in shown
    assert json.loads(epochmeter("report", "--format", "json").out)["run"]["name"] == ESCAPES


@pytest.mark.slow
def test_collectors_words_reach_no_terminal_unescaped(home: Path, sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    said = ESCAPES.encode()
    partial = b"\x08\x03\x12" + bytes([len(said)]) + said  # ExportMetricsPartialSuccess: 3 rejected, and why
    for status, content, kind in (
        (200, b"\x0a" + bytes([len(partial)]) + partial, "application/x-protobuf"),
        (400, said, "text/plain"),
        (503, said, "text/plain"),
    ):
        sink.status, sink.content, sink.headers = status, content, {"content-type": kind}
        with Profiler("x") as prof:
            list(prof.train(range(3)))
        assert any("forged" in note for note in prof.summary.to_dict()["notes"])
        for command in (["doctor"], ["telemetry", "log"], ["telemetry", "flush"], ["report"]):
            assert is_plain(epochmeter(*command)), (status, command)


NOTES = ["told", "crashes", "outbox/aside", "usage/digits/kept", "usage/digits/pending", "sent"]


@pytest.mark.parametrize("name", rare(NOTES, 3))
def test_hostile_notes_end_no_command(home: Path, name: str) -> None:
    recorded(home)
    folder = home / name
    folder.mkdir(parents=True)
    crash = {
        "id": ESCAPES,
        "time_unix_ns": 1,
        "types": [ESCAPES],
        "frames": [ESCAPES],
        "facts": {ESCAPES: ESCAPES},
        "dsn": ESCAPES,
    }
    crash |= {"declared": {"app": "x", "modules": [], "features": [], "commands": []}, "target": ["sentry", ESCAPES]}
    counted = {"began": 1, "ended": 2, "version": ESCAPES, "declared": {"app": ESCAPES}, "facts": {ESCAPES: ESCAPES}}
    counted |= {"counts": {"features": {ESCAPES: 1}, "commands": {}, "options": {}}, "notes": {ESCAPES: 1}}
    sent = {"id": "a", "time": ESCAPES, "destination": ESCAPES, "body": "H4sIAAAAAAAA/wMAAAAAAAAAAAA="}
    told = {"app": ESCAPES, "where": ESCAPES, "time": 1}
    texts = [json.dumps(one) for one in (crash, counted, sent, told)]
    texts += ["[]", '{"id": 1}', "{}", "[" * 100_000, "\x00", '{"a": NaN}', json.dumps({**sent, "answer": ESCAPES})]
    forms = (f"{{:020d}}-{'a' * 12}.json", "{:024x}.json", f"{{:020d}}-{'a' * 12}-final.entry", f"{{:08d}}-{'a' * 8}.jsonl")
    for number, content in enumerate(texts):
        for form in forms:
            (folder / form.format(number)).write_text(content)
        (folder / f"{number:020d}-{'a' * 12}-final.why").write_text(ESCAPES)
    for command in ("doctor", "telemetry preview", "telemetry preview usage", "telemetry preview crashes", "telemetry log"):
        answer = epochmeter(*command.split())
        assert answer.code == 0 and is_plain(answer) and "Traceback" not in answer.err, (command, answer.err)
    assert epochmeter("telemetry", "flush").code in (0, 3)
    if name == "crashes":
        assert "notes cannot be read" in epochmeter("doctor").out


@pytest.mark.parametrize("target", ["otlp", "ga"])
def test_spoilt_list_of_announcements_stops_no_delivery(home: Path, sink: Sink, target: str) -> None:
    home.mkdir()
    (home / "announced.txt").write_bytes(b"\xff\xfe\n")
    chosen = {"EPOCHMETER_EXPORTER": target, "EPOCHMETER_OTLP_ENDPOINT": sink.url, "EPOCHMETER_GA_ENDPOINT": sink.url}
    chosen |= {"EPOCHMETER_GA_MEASUREMENT_ID": "G-ABC123DEF4", "EPOCHMETER_GA_API_SECRET": "s"}
    script = "from profiler import Profiler\nwith Profiler('x') as prof:\n  for _ in prof.epochs(2): list(prof.train(range(5)))"
    answers = [python("-c", script, **chosen) for _ in range(2)]
    assert [answer.err.count("go to") for answer in answers] == [1, 0]
    assert len(sink.received) >= 2 and Outbox(Folder(home / "outbox")).under_way() == []
