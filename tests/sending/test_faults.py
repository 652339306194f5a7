"""Faults, with real processes: killed between any two steps, eight at once, no room on the disk, a collector that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from exporters.outbox import Outbox
from profiler import settings
from profiler.config.folder import Folder
from support import collector
from support.deliveries import EXIT, box, epochs_in
from support.ga_rules import google
from support.processes import epochmeter, free_port, python, wait_for
from support.sinks import Sink

pytestmark = [pytest.mark.proof, pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")]
KILLED = str(Path(__file__).parents[1] / "support" / "killed.py")


def deaths(folder: Path, target: str, every: int = 1, **environment: str) -> list[dict[str, Any]]:
    answer = python(KILLED, str(folder), target, str(every), timeout=110, **environment)
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.out.splitlines()]


def test_killed_before_any_step_each_finished_epoch_arrives(sink: Sink, tmp_path: Path) -> None:
    """The run's log knows which epochs were finished; a collector must know the same ones, once."""
    told = deaths(tmp_path / "homes", "otlp", EPOCHMETER_OTLP_ENDPOINT=sink.url)
    arrived = epochs_in(sink)
    assert len(told) > 60  # steps there were: the last process was not killed
    assert [death["fatal"] for death in told] == list(range(1, len(told) + 1))
    finished = [epochs for death in told for epochs in death["runs"].values()]
    assert {1, 2, 3} <= set(finished)
    for death in told:
        assert (death["left"], death["reasons"], death["dropped"]) == (0, [], {}), death
        for run, epochs in death["runs"].items():
            assert arrived.get(run, 0) == epochs, death
        undone = [name for name in death["kept"] if name.endswith((".entry", ".json"))]
        assert not undone or (not death["runs"] and undone[0].startswith("outbox/open/")), death  # it may just begin


def test_killed_process_counts_no_event_twice(tmp_path: Path) -> None:
    with google() as server:
        chosen = {"EPOCHMETER_GA_MEASUREMENT_ID": "G-TEST", "EPOCHMETER_GA_API_SECRET": "x"}
        told = deaths(tmp_path / "homes", "ga", 11, EPOCHMETER_GA_ENDPOINT=server.url, **chosen)  # a request has five steps
        assert server.faults == []
    requests = [json.dumps(body) for body in server.collected]
    assert len(requests) == len(set(requests))
    counted = sum(metric == "stage_duration_train" for metric, _, _ in server.cells())  # one to three cells a run
    finished = sum(sum(death["runs"].values()) for death in told)
    begun = sum(1 for death in told if sum(death["runs"].values()))
    unknown = sum(death["dropped"].get("unknown", 0) for death in told)
    assert len(told) > 10 and all(death["left"] == 0 for death in told)
    assert begun - unknown <= counted <= finished  # what is missing was given up, and counted
    assert unknown >= 1


def test_forty_short_processes_deliver_everything(sink: Sink, home: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: python("-c", EXIT, sink.url), range(40)))
    assert {answer.code for answer in answers} == {0}
    assert len(epochs_in(sink)) == 40 and set(epochs_in(sink).values()) == {2}
    assert box(home).waiting() == []


EIGHT = """
import sys, time
from profiler import Profiler
for _ in range(3):
    with Profiler("x", interval=0.02) as prof:
        for _ in prof.epochs(4):
            list(prof.train(range(3)))
            time.sleep(0.03)
"""


def test_eight_processes_share_one_outbox(sink: Sink, home: Path) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url, export_interval=0.05)
    sink.status = 503
    over = threading.Event()

    def come_and_go() -> None:
        while not over.wait(0.1):
            sink.status = 200 if sink.status == 503 else 503

    flicker = threading.Thread(target=come_and_go)
    flicker.start()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: python("-c", EIGHT), range(8)))
    over.set()
    flicker.join()
    sink.status = 200
    assert {answer.code for answer in answers} == {0}, [answer.err for answer in answers]
    assert epochmeter("telemetry", "flush").code == 0
    assert len(epochs_in(sink)) == 24 and set(epochs_in(sink).values()) == {4}
    assert (box(home).waiting(), box(home).aside(), box(home).dropped()) == ([], [], {})


# ---- no room -------------------------------------------------------------------------------------------------------

FULL = """
import os, sys
from profiler import Profiler
from profiler.config.paths import outbox_path
from profiler.sending.flush import flush
home, free = sys.argv[1], int(sys.argv[2])
room = os.statvfs(home).f_bavail * os.statvfs(home).f_bsize
with open(f"{home}/filler", "wb") as file:
    file.write(b"x" * max(room - free, 0))
def run():
    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sys.argv[3]}) as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(3)))
    return prof.summary.to_dict().get("notes", {})
first = run()
os.unlink(f"{home}/filler")
second = run()
done = flush()
damaged = [path.name for path in outbox_path().rglob("*") if path.suffix == ".part"]
import json
print(json.dumps({"first": list(first), "second": list(second), "left": done.left, "damaged": damaged}))
"""
MOUNT = 'mkdir -p "$1" && mount -t tmpfs -o size=256k,mode=0700 tmpfs "$1" && shift && exec "$@"'


def test_full_disk_harms_no_run(sink: Sink, tmp_path: Path) -> None:
    small = tmp_path / "small"
    outside = ["unshare", "-rm", "sh", "-c", MOUNT, "sh", str(small)]
    if not shutil.which("unshare") or subprocess.run([*outside, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mount in a namespace of one's own")
    seen = set()
    for free in range(0, 40_001, 4096):
        before = len(epochs_in(sink))
        done = subprocess.run(
            [*outside, sys.executable, "-c", FULL, str(small), str(free), sink.url],
            capture_output=True,
            text=True,
            env={**os.environ, "EPOCHMETER_HOME": str(small)},
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        arrived = len(epochs_in(sink)) - before
        assert (told["left"], told["damaged"], told["second"]) == (0, [], []), told
        assert arrived == 2 or (arrived == 1 and "No space left" in str(told["first"])), (free, told, arrived)
        seen.add(arrived)
    assert seen == {1, 2}


# ---- the collector dies --------------------------------------------------------------------------------------------

LONG = """
import json, sys, time
from profiler import Profiler
with Profiler("x", interval=0.02) as prof:
    for epoch in prof.epochs(int(sys.argv[1])):
        for _ in prof.train(range(5)):
            time.sleep(0.01)
        print(epoch, flush=True)
    print(json.dumps(prof.summary.to_dict()["run"]), flush=True)
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_collector_killed_and_restarted_in_mid_run(sink: Sink, home: Path, tmp_path: Path, protocol: str) -> None:
    if protocol == "grpc":
        pytest.importorskip("grpc")
    ports = free_port(), free_port()
    chosen = ports[1 if protocol == "grpc" else 0]
    settings.update(
        exporter="otlp", otlp_endpoint=f"http://127.0.0.1:{chosen}", otlp_protocol=protocol, export_interval=0.1, exit_timeout=5
    )
    process = collector.start(ports, tmp_path, *collector.to_otlp(sink.url))
    training = subprocess.Popen([sys.executable, "-c", LONG, "60"], stdout=subprocess.PIPE, text=True)
    try:
        assert training.stdout is not None
        wait_for(lambda: sink.received)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        known = len(sink.received)
        time.sleep(0.6)
        assert len(sink.received) == known and training.poll() is None
        process = collector.start(ports, tmp_path, *collector.to_otlp(sink.url))
        wait_for(lambda: len(sink.received) > known)
        told = json.loads(training.communicate(timeout=60)[0].splitlines()[-1])
    finally:
        training.kill()
        process.terminate()
        process.wait(10)
        training.wait(10)
    wait_for(lambda: epochs_in(sink).get(told["id"]) == 60)
    assert Outbox(Folder(home / "outbox")).waiting() == []


# ---- the clock is set ----------------------------------------------------------------------------------------------

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
/* The wall clock, set by as many seconds as a file says. */
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(id, now);
    FILE *file = id == CLOCK_REALTIME ? fopen(getenv("CLOCK_FILE"), "r") : NULL;
    long seconds = 0;
    if (file) { if (fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds; fclose(file); }
    return answer;
}
"""
STEPPED = """
import os, sys, time
from profiler import Profiler
from profiler.config.folder import Folder
def clock(seconds):
    with open(os.environ["CLOCK_FILE"], "w") as file:
        file.write(str(seconds))
began = time.time()
with Profiler("x", interval=0.02) as prof:
    for epoch in prof.epochs(6):
        list(prof.train(range(3)))
        time.sleep(0.1)
        clock([400, -400, 0, -1, 1, 0][epoch] * 86_400)
        assert abs(time.time() - began - [400, -400, 0, -1, 1, 0][epoch] * 86_400) < 60
print(prof.summary.id)
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_clock_set_by_days_loses_nothing(sink: Sink, home: Path, tmp_path: Path) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c", "-ldl"], check=True)
    settings.update(exporter="otlp", otlp_endpoint=sink.url, export_interval=0.05)
    sink.status, sink.headers = 429, {"retry-after": "3000"}
    faked = {"LD_PRELOAD": str(tmp_path / "clock.so"), "CLOCK_FILE": str(tmp_path / "seconds")}
    (tmp_path / "seconds").write_text("0")
    answer = python("-c", STEPPED, **faked)
    assert answer.code == 0, answer.err
    assert (len(sink.received) >= 1, box(home).dropped()) == (True, {})
    sink.status, sink.headers = 200, {}
    shutil.rmtree(home / "outbox" / "trouble")  # the collector asked for patience
    assert epochmeter("telemetry", "flush").code == 0
    assert epochs_in(sink) == {answer.out.strip(): 6}
    assert (box(home).waiting(), box(home).dropped()) == ([], {})
