"""What delivery costs: the end of a run, the longest pause of a loop, and a thousand runs that wait. All in one run.

    python benchmarks/bench_delivery.py [--json benchmarks/results/delivery.json]

- **The end of a run** with a collector that is down, and with one that accepts and never answers: ours and OpenTelemetry's
  own exporters behind its periodic reader, each in a process of its own. Told: seconds from the last step to the end of
  ``stop()`` or ``shutdown()``, and what became of the measurements.
- **The longest pause** of a loop of 1 ms steps (busy, in Python, so that it fights for the interpreter's lock) while it is
  exported once a second, sixty times as often as by default, to a server in another process, beside the same loop that
  exports nothing. Rounds take turns; machines are noisy, so the loop that exports nothing is the measure of what the
  machine itself does. Steps in which Python's garbage collector went through everything are told apart: whatever allocates
  brings that about in time.
- **A thousand runs** that wait: how long their delivery takes, how much memory, and how much a loop of 1 ms steps beside
  it is slowed down.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROUNDS = 3
WAITING = 1_000
GOALS = {"end_s": 1.1, "pause_ms": 2.0}
SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
OURS = """
import sys, time
from profiler import Profiler
where = {{"otlp_endpoint": sys.argv[1], "otlp_protocol": "{protocol}"}}
prof = Profiler("end", exporter="{exporter}", settings=where)
began = time.perf_counter()
prof.start()
start = time.perf_counter() - began
for _ in prof.epochs(3):
    for _ in prof.train(range(100)):
        pass
began = time.perf_counter()
prof.stop()
print(time.perf_counter() - began, start, flush=True)
"""
STOCK = """
import sys, time
from opentelemetry.exporter.otlp.proto.{module}.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
exporter = OTLPMetricExporter(endpoint=sys.argv[1] + "{path}")
provider = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)])
steps = provider.get_meter("end").create_counter("steps")
for _ in range(300):
    steps.add(1)
began = time.perf_counter()
provider.shutdown()
print(time.perf_counter() - began, flush=True)
"""
LOOP = """
import gc, json, resource, sys, time
from profiler import Profiler
endpoint, interval, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
chosen = {"otlp_endpoint": endpoint, "export_interval": interval} if endpoint != "none" else {"exporter": "none"}
prof = Profiler("loop", exporter="otlp" if endpoint != "none" else "none", settings=chosen, interval=0.1)
durations, collected = [], [0]
gc.callbacks.append(lambda phase, info: collected.__setitem__(0, collected[0] + (info["generation"] == 2)))
with prof:
    time.sleep(1.0)  # past the start, whose imports are a matter of their own
    began = time.perf_counter()
    for _ in prof.epochs(10_000):
        for _ in prof.train(range(100)):
            collections, before = collected[0], time.perf_counter_ns()
            with prof.phase("forward"):
                until = before + 1_000_000
                while time.perf_counter_ns() < until:
                    pass
            durations.append((time.perf_counter_ns() - before, collected[0] != collections))
        if time.perf_counter() - began > seconds:
            break
    took = time.perf_counter() - began
count = len(durations)
own = sorted(ns for ns, collects in durations if not collects)
told = {"steps_per_s": count / took, "longest_ms": own[-1] / 1e6 - 1, "p999_ms": own[len(own) * 999 // 1000] / 1e6 - 1}
told["longest_with_gc_ms"] = max(ns for ns, _ in durations) / 1e6 - 1
told["full_collections"] = sum(collects for _, collects in durations)
print(json.dumps({**told, "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)
"""
FILL = """
import sys, time
from profiler import Profiler
from profiler.records.run import EpochRecord, Run
from profiler.sending.snapshot import run_snapshot
from profiler.config.resolve import resolve
from profiler.sending.dispatch import Dispatch, outbox_of
from profiler.sending.destination import destination
import copy, exporters
arguments = {"exporter": "otlp", "otlp_endpoint": sys.argv[1]}
with Profiler("fill", interval=0.05) as prof:
    for _ in prof.epochs(5):
        for _ in prof.train(range(200), samples=32):
            for phase in ("forward", "loss", "backward", "optimizer"):
                with prof.phase(phase):
                    pass
        list(prof.validate(range(20)))
    time.sleep(0.3)
resolved = resolve(arguments)
config = exporters.Config(**destination(resolved))
post = Dispatch(resolved, outbox_of(resolved), config, exporters.gate_for(config, lambda: True))
for number in range(int(sys.argv[2])):
    run = copy.copy(prof.session.run)
    run.id, run.started_unix_ns = f"{number:012x}", prof.session.run.started_unix_ns + number
    post.put(run, run_snapshot(run, run.started_unix_ns + run.duration_ns), "final")
"""
FLUSH = """
import json, resource, time
from profiler.sending.flush import flush
began = time.perf_counter()
done = flush()
told = {"seconds": time.perf_counter() - began, "delivered": done.delivered, "left": done.left}
print(json.dumps({**told, "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def run(code: str, *arguments: str, home: str) -> tuple[str, str]:
    """Run a program, and return its stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "EPOCHMETER_HOME": home},
    )
    return done.stdout, done.stderr


@contextlib.contextmanager
def answering() -> Iterator[str]:
    """Run a server that accepts everything, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """Run a server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def ends() -> list[dict[str, Any]]:
    rows = []
    with silent() as hanging:
        for state, address in (("down", "http://127.0.0.1:9"), ("never answers", hanging)):
            for who, code in (
                ("epochmeter, HTTP", OURS.format(protocol="http/protobuf", exporter="otlp")),
                ("epochmeter, gRPC", OURS.format(protocol="grpc", exporter="otlp")),
                ("OpenTelemetry's own, HTTP", STOCK.format(module="http", path="/v1/metrics")),
                ("OpenTelemetry's own, gRPC", STOCK.format(module="grpc", path="")),
            ):
                with tempfile.TemporaryDirectory() as home:
                    out, err = run(code, address, home=home)
                    kept = len(list(Path(home).rglob("*.entry")))
                lines = len([line for line in err.splitlines() if not line.startswith("epochmeter: this run's")])
                rows.append(
                    {
                        "collector": state,
                        "who": who,
                        "end_s": float(out.split()[0]),
                        "kept": kept == 1,
                        "lines_on_stderr": lines,
                    }
                )
    return rows


def starts() -> dict[str, float]:
    """Return the seconds of a process's first ``start()``: the imports that must not disturb the loop later."""
    found: dict[str, list[float]] = {"sends nothing": [], "HTTP": [], "gRPC": []}
    for _ in range(5):
        for name, exporter, protocol in zip(
            found, ("none", "otlp", "otlp"), ("http/protobuf", "http/protobuf", "grpc"), strict=True
        ):
            with tempfile.TemporaryDirectory() as home:
                code = OURS.format(protocol=protocol, exporter=exporter)
                found[name].append(float(run(code, "http://127.0.0.1:9", home=home)[0].split()[1]))
    return {name: statistics.median(values) for name, values in found.items()}


def pauses(seconds: float) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {"exports nothing": [], "exports once a second": []}
    with answering() as server, tempfile.TemporaryDirectory() as home:
        for _ in range(ROUNDS):
            for name, endpoint in zip(found, ("none", server), strict=True):
                found[name].append(json.loads(run(LOOP, endpoint, "1", str(seconds), home=home)[0]))
    return {
        name: {
            "longest_ms": max(row["longest_ms"] for row in rows),
            "longest_with_gc_ms": max(row["longest_with_gc_ms"] for row in rows),
            "full_collections": sum(row["full_collections"] for row in rows),
            "longest_ms_median_of_rounds": statistics.median(row["longest_ms"] for row in rows),
            "p999_ms": statistics.median(row["p999_ms"] for row in rows),
        }
        for name, rows in found.items()
    }


def load(seconds: float) -> dict[str, Any]:
    with answering() as server, tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        run(FILL, server, str(WAITING), home=first)
        run(FILL, server, str(WAITING), home=second)
        files = list(Path(first).rglob("*.entry"))
        waiting = {"files": len(files), "megabytes": sum(path.stat().st_size for path in files) / 1e6}
        flushed = json.loads(run(FLUSH, home=first)[0])
        assert (flushed["delivered"], flushed["left"]) == (WAITING, 0), flushed
        beside = json.loads(run(LOOP, server, "0.2", str(seconds), home=second)[0])
        left = len(list(Path(second).rglob("*.entry")))
        with tempfile.TemporaryDirectory() as empty:
            alone = json.loads(run(LOOP, "none", "0.2", str(seconds), home=empty)[0])
    return {
        "waiting": waiting,
        "flush": flushed,
        "beside_a_loop": {
            "left_after_the_run": left,
            "slowdown": alone["steps_per_s"] / beside["steps_per_s"],
            "longest_ms": beside["longest_ms"],
            "longest_ms_alone": alone["longest_ms"],
            "max_rss_mb": beside["max_rss_mb"],
            "max_rss_mb_alone": alone["max_rss_mb"],
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each loop runs")
    arguments = parser.parse_args()
    data: dict[str, Any] = {
        "where": f"Python {platform.python_version()}, {platform.machine()} {sys.platform}, {os.cpu_count()} cores"
    }
    print(data["where"])
    data["end"] = ends()
    for row in data["end"]:
        kept = "kept" if row["kept"] else "LOST"
        print(f"{row['collector']:14} {row['who']:26} {row['end_s']:6.2f} s  {kept}, {row['lines_on_stderr']} lines on stderr")
    data["start_s"] = starts()
    print("the first start() of a process: " + ", ".join(f"{name} {s * 1e3:.0f} ms" for name, s in data["start_s"].items()))
    data["pause"] = pauses(arguments.seconds)
    for name, row in data["pause"].items():
        print(
            f"{name:28} longest pause {row['longest_ms']:.2f} ms (median of {ROUNDS} rounds "
            f"{row['longest_ms_median_of_rounds']:.2f}), 99.9 % {row['p999_ms']:.3f} ms; "
            f"with {row['full_collections']} full garbage collections {row['longest_with_gc_ms']:.2f} ms"
        )
    data["load"] = load(arguments.seconds)
    flush, beside = data["load"]["flush"], data["load"]["beside_a_loop"]
    size = data["load"]["waiting"]["megabytes"]
    print(f"{WAITING} runs, {size:.1f} MB: flushed in {flush['seconds']:.1f} s, {flush['max_rss_mb']:.0f} MB of memory")
    print(
        f"delivered beside a loop: {beside['left_after_the_run']} left, steps {beside['slowdown']:.3f} times as long, "
        f"longest pause {beside['longest_ms']:.2f} ms (alone {beside['longest_ms_alone']:.2f}), "
        f"{beside['max_rss_mb']:.0f} MB (alone {beside['max_rss_mb_alone']:.0f})"
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    ours = [row for row in data["end"] if row["who"].startswith("epochmeter")]
    good = all(row["kept"] and row["end_s"] <= GOALS["end_s"] for row in ours)
    return 0 if good and data["pause"]["exports once a second"]["longest_ms_median_of_rounds"] <= GOALS["pause_ms"] else 1


if __name__ == "__main__":
    sys.exit(main())
