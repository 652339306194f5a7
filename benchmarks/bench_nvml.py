"""What watching GPUs costs, on a machine without one: NVML's stand-in of the tests plays 1 and 8 H100s. All in one run.

    python benchmarks/bench_nvml.py [--json benchmarks/results/nvml.json]

- **A tick** of the NVML probe, its values kept, against the same calls made raw through ctypes, with arrays that are kept
  and the same values taken out of them. The stand-in answers within about a microsecond; the calls of a real driver take
  longer, so there the ratio is nearer to 1. Rounds take turns.
- **The end of a run** while a call to the driver hangs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from ctypes import byref
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "suite"))

from machine import build

ROUNDS, TICKS = 15, 40
STOPS = 5
GOALS = {"tick_ratio": 1.5, "stop_s": 0.05}
HANGS = """
import time
from profiler import Profiler
with Profiler("hung", interval=0.05):
    time.sleep(0.5)
    began = time.perf_counter()
print(time.perf_counter() - began)
"""


class Raw:
    """The same calls as the probe's, and the same values, as one would write them with ctypes alone."""

    def __init__(self, library: Any, pynvml: Any, gpus: int) -> None:
        from profiler.hardware.nvidia.fields import QUICK, SLOW
        from profiler.hardware.nvidia.gpm import Gpm

        self.library = library
        self.handles = []
        self.tick = 0
        self.utilization = (ctypes.c_uint * 2)()
        self.memory = pynvml.c_nvmlMemory_v2_t(version=pynvml.nvmlMemory_v2)
        self.temperature = (ctypes.c_uint * 3)(0x100000C, 0, 0)
        self.fields = [self._fields(pynvml, QUICK), self._fields(pynvml, (*QUICK, *SLOW))]
        self.gpm = []
        self.samples = (pynvml.c_nvmlSample_t * 120)()
        self.since = {}
        for index in range(gpus):
            handle = ctypes.c_void_p()
            library.nvmlDeviceGetHandleByIndex_v2(index, byref(handle))
            self.handles.append(handle)
            query = pynvml.c_nvmlGpmMetricsGet_t(version=1, numMetrics=len(Gpm.METRICS))
            for position, metric in enumerate(Gpm.METRICS):
                query.metrics[position].metricId = metric[0]
            samples = [pynvml.c_nvmlGpmSample_t(), pynvml.c_nvmlGpmSample_t()]
            for sample in samples:
                library.nvmlGpmSampleAlloc(byref(sample))
            library.nvmlGpmSampleGet(handle, samples[0])
            self.gpm.append((query, samples, len(Gpm.METRICS)))

    @staticmethod
    def _fields(pynvml: Any, fields: Any) -> Any:
        array = (pynvml.c_nvmlFieldValue_t * len(fields))()
        for value, field in zip(array, fields, strict=True):
            value.fieldId, value.scopeId = field.id, field.scope
        return array

    def read(self) -> list[Any]:
        found: list[Any] = []
        slow, second = self.tick % 10 == 0, self.tick % 2 == 0
        self.tick += 1
        for index, handle in enumerate(self.handles):
            self._read(index, handle, slow, found)
            if second:
                self._read_second(index, handle, slow, found)
        return found

    def _read(self, index: int, handle: Any, slow: bool, found: list[Any]) -> None:
        library, wide = self.library, ctypes.c_ulonglong()
        if not library.nvmlDeviceGetCurrentClocksEventReasons(handle, byref(wide)):
            found.append(wide.value)
        if not library.nvmlDeviceGetUtilizationRates(handle, self.utilization):
            found += (self.utilization[0] / 100, self.utilization[1] / 100)
        fields = self.fields[slow]
        if not library.nvmlDeviceGetFieldValues(handle, len(fields), fields):
            for value in fields:
                if value.nvmlReturn == 0:
                    found.append(value.value.uiVal / 1000 if value.valueType == 1 else value.value.ullVal / 1000)
        if slow:
            self._read_slow(handle, found)

    def _read_second(self, index: int, handle: Any, slow: bool, found: list[Any]) -> None:
        if not self.library.nvmlDeviceGetMemoryInfo_v2(handle, byref(self.memory)):
            found += (self.memory.used, self.memory.total, self.memory.reserved)
        self._read_gpm(handle, *self.gpm[index], found)
        for kind in (0, 1) if slow else (0,):
            self._read_samples(handle, (index, kind), found)

    def _read_gpm(self, handle: Any, query: Any, samples: list[Any], metrics: int, found: list[Any]) -> None:
        if self.library.nvmlGpmSampleGet(handle, samples[1]):
            return
        query.sample1, query.sample2 = samples
        samples.reverse()
        if not self.library.nvmlGpmMetricsGet(byref(query)):
            for position in range(metrics):
                metric = query.metrics[position]
                if metric.nvmlReturn == 0:
                    found.append(metric.value / 100)

    def _read_slow(self, handle: Any, found: list[Any]) -> None:
        number = ctypes.c_uint()
        if not self.library.nvmlDeviceGetTemperatureV(handle, self.temperature):
            found.append(self.temperature[2])
        for kind in (1, 2):
            if not self.library.nvmlDeviceGetClockInfo(handle, kind, byref(number)):
                found.append(number.value)

    def _read_samples(self, handle: Any, which: tuple[int, int], found: list[Any]) -> None:
        since, value_type, count = ctypes.c_ulonglong(self.since.get(which, 0)), ctypes.c_uint(), ctypes.c_uint(120)
        arguments = (handle, which[1], since, byref(value_type), byref(count), self.samples)
        if not self.library.nvmlDeviceGetSamples(*arguments) and count.value:
            given = self.samples[: count.value]
            found.append([sample.sampleValue.uiVal / 1000 for sample in given])
            self.since[which] = given[-1].timeStamp


def median_us(once: Callable[[], Any], pass_a_second: Callable[[], None]) -> float:
    times = []
    for _ in range(TICKS):
        pass_a_second()
        began = time.perf_counter_ns()
        once()
        times.append(time.perf_counter_ns() - began)
    return statistics.mean(times) / 1000


def ticks(library: Any, pynvml: Any, gpus: int) -> dict[str, float]:
    """Microseconds of a tick: the mean of each round, as every tenth tick is dearer; the median of the rounds."""
    from profiler.hardware.nvidia.probe import NvmlProbe
    from profiler.hardware.sampler import Sampler

    os.environ["FAKE_NVML"] = f"gpus={gpus}"
    now = [0.0]

    def pass_a_second() -> None:
        now[0] += 1.0
        library.fake_nvml_pass(1000)

    probe = NvmlProbe(clock=lambda: now[0])
    sampler = Sampler(1.0, probes=("nvml",), load=lambda name: probe)
    sampler.open("nvml")
    raw = Raw(library, pynvml, gpus)
    ways: dict[str, Callable[[], Any]] = {"raw": raw.read, "probe": lambda: read_all(sampler), "kept": sampler.tick}
    for once in (sampler.tick, raw.read):
        for _ in range(TICKS):  # leaves out readings that are due only once
            pass_a_second()
            once()
    rounds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, once in ways.items():
            rounds[way].append(median_us(once, pass_a_second))
    costs = {way: statistics.median(times) for way, times in rounds.items()}
    return {
        "raw_us": costs["raw"],
        "probe_us": costs["probe"],
        "probe_and_kept_us": costs["kept"],
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(rounds["probe"], rounds["raw"], strict=True)),
    }


def read_all(sampler: Any) -> list[Any]:
    """Return the probe's readings of one tick, before they are added up."""
    drivers = sampler.threads[1]
    drivers.ticks += 1
    return [row.reading.all() for row in drivers.rows if drivers.ticks % row.reading.every == 0]


def stops(folder: Path) -> float:
    """Return the longest of some ends of runs (s), while a call hangs for a minute."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(folder),
            "EPOCHMETER_HOME": home,
            "FAKE_NVML": "nvmlDeviceGetMemoryInfo_v2~60000",
            "EPOCHMETER_SYNC": "0",
        }
        took = []
        for _ in range(STOPS):
            done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, env=environment, check=True)
            took.append(float(done.stdout.split()[-1]))
    return max(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import pynvml

    result: dict[str, Any] = {
        "where": f"Python {platform.python_version()}, {platform.machine()} {sys.platform}, {os.cpu_count()} cores",
        "goals": GOALS,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(build(Path(place)))
        pynvml.nvmlLib = library = ctypes.CDLL(str(folder / "libnvidia-ml.so.1"))
        pynvml.nvmlInit()
        result["tick"] = {str(gpus): ticks(library, pynvml, gpus) for gpus in (1, 8)}
        for gpus, costs in result["tick"].items():
            print(f"a tick, {gpus} GPU(s): " + ", ".join(f"{name} {value:.2f}" for name, value in costs.items()))
        result["stop_s"] = stops(folder)
        print(f"end of a run while a call hangs: {result['stop_s'] * 1000:.1f} ms at most")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
