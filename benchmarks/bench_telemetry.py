"""What `Telemetry` costs a program that embeds it: a count, its start, and a process that counts and ends.

Counting takes turns with what else a package might count with: a dictionary, and OpenTelemetry's own counter. Starts are
measured in processes of their own, each way in turn, in one that has imported nothing and in one that has imported numpy.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "telemetry.json"
ROUNDS, CALLS, STARTS = 200, 2_000, 15
START = """
import sys, time
if {numpy}:
    import numpy
began = time.perf_counter()
from profiler import Telemetry
imported = time.perf_counter()
modules = set(sys.modules)
telemetry = Telemetry("digits", "1.2.3", features=("export",), commands={{"fit": ("epochs",)}}, exporter="otlp",
                      settings={{"otlp_endpoint": "http://127.0.0.1:4318"}}, crash_dsn="https://key@127.0.0.1/1")
made = time.perf_counter()
print(imported - began, made - imported, len(set(sys.modules) - modules))
"""
ENDS = {
    "bare": "pass",
    "made, nothing counted": "from profiler import Telemetry\nTelemetry('digits', '1', features=('a',))",
    "a count, kept here": "from profiler import Telemetry\nTelemetry('digits', '1', features=('a',)).feature('a')",
}


def counting() -> dict[str, tuple[Callable[..., object], tuple[object, ...]]]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from profiler import Telemetry

    telemetry = Telemetry("digits", "1.2.3", features=("export",), commands={"fit": ("epochs",)})
    counts = {"export": 0}
    counter = MeterProvider(metric_readers=[InMemoryMetricReader()]).get_meter("digits").create_counter("features")

    def dictionary(name: str) -> None:
        counts[name] += 1

    return {
        "floor: a function that adds 1 to a dictionary's value": (dictionary, ("export",)),
        'telemetry.feature("export")': (telemetry.feature, ("export",)),
        'telemetry.command("fit", ("epochs",))': (telemetry.command, ("fit", ("epochs",))),
        "OpenTelemetry's counter.add(1, attributes)": (counter.add, (1, {"feature": "export"})),
    }


def count() -> dict[str, dict[str, float]]:
    """Nanoseconds a call, what calling a function costs included: the median of rounds that take turns."""
    ways = counting()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (call, arguments) in ways.items():
            began = time.perf_counter_ns()
            for _ in range(CALLS):
                call(*arguments)
            found[name].append((time.perf_counter_ns() - began) / CALLS)
    medians = {name: statistics.median(times) for name, times in found.items()}
    floor = next(iter(medians.values()))
    return {name: {"ns": round(took, 1), "x floor": round(took / floor, 2)} for name, took in medians.items()}


def start() -> dict[str, dict[str, float]]:
    found: dict[str, list[list[float]]] = {"nothing imported": [], "numpy imported": []}
    for _ in range(STARTS):
        for name, times in found.items():
            script = START.format(numpy=name.startswith("numpy"))
            done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
            times.append([float(text) for text in done.stdout.split()])
    return {
        name: {
            "import, ms": round(1e3 * statistics.median(row[0] for row in times), 2),
            "Telemetry(...), ms": round(1e3 * statistics.median(row[1] for row in times), 3),
            "modules loaded by it": max(row[2] for row in times),
        }
        for name, times in found.items()
    }


def end() -> dict[str, float]:
    """Seconds of a whole process, the median, above the bare one."""
    found: dict[str, list[float]] = {name: [] for name in ENDS}
    with tempfile.TemporaryDirectory() as home:
        for _ in range(STARTS):
            for name, script in ENDS.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "EPOCHMETER_HOME": home})
                found[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in found.items()}
    return {f"{name}, + s": round(took - medians["bare"], 3) for name, took in medians.items()}


def main() -> None:
    result = {
        "machine": {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()},
        "counting": count(),
        "start": start(),
        "process": end(),
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
