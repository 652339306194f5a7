"""Cases of watching the machine: what a tick of all probes takes, and which share of a core a second's tick is.

There is no GPU here: the tests' stand-in for NVML plays 0, 1 and 8 H100s, for ours and for peers alike.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from case import FLOOR, OURS, Case, Figure, Way
from trackers import CODECARBON, MLFLOW, WANDB

SOURCE = Path(__file__).parents[2] / "tests" / "support" / "fake_nvml" / "nvml.c"
WATCH = """
import os, time
import psutil
{setup}
me = psutil.Process()
def cpu():
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
def fine():  # of this process alone, but to the nanosecond
    return time.process_time()
clock = cpu if {has_children} else fine
def wait(seconds):
    for _ in range(seconds):
        {once}
        time.sleep(1)
wait(5)
began, used = time.perf_counter(), clock()
wait({seconds})
told(share=(clock() - used) / (time.perf_counter() - began))
"""
SECONDS = 20
OURS_CODE = "from profiler.hardware.sampler import Sampler\nsampler = Sampler(1.0)\nsampler.start()"
NVITOP = (
    "from nvitop import ResourceMetricCollector\n"
    "ResourceMetricCollector(root_pids=[]).daemonize(on_collect=lambda metrics: True, interval=1.0)"
)
OPENLIT = """
import types, importlib.util, pathlib, sys
place = pathlib.Path(importlib.util.find_spec("openlit").submodule_search_locations[0])
package = types.ModuleType("openlit"); package.__path__ = [str(place)]; sys.modules["openlit"] = package
package = types.ModuleType("openlit.instrumentation"); package.__path__ = [str(place / "instrumentation")]
sys.modules["openlit.instrumentation"] = package  # its own __init__ imports every framework there is
from openlit.instrumentation.gpu import GPUInstrumentor
"""
READER = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
"""
SYSTEM = """
from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
SystemMetricsInstrumentor().instrument()
"""


def watching(
    name: str, setup: str, whose: str = "peer", needs: str = "", once: str = "pass", has_children: bool = False
) -> Way:
    code = WATCH.format(setup=setup, once=once, has_children=has_children, seconds=SECONDS)
    return Way(name, code, whose, needs)


def share(gpus: int) -> Case:
    only_gpus = (
        ()
        if gpus == 0
        else (
            watching("nvitop's collector", NVITOP, needs="nvitop"),
            watching(
                "gpustat's query",
                "from gpustat import GPUStatCollection",
                needs="gpustat",
                once="GPUStatCollection.new_query()",
            ),
            watching(
                "OpenLIT's GPU metrics",
                OPENLIT + READER + "GPUInstrumentor().instrument()",
                needs="openlit",
                once="reader.get_metrics_data()",
            ),
        )
    )
    ways = (
        watching("a process that sleeps", "", FLOOR),
        watching("Epochmeter, all probes", OURS_CODE, OURS),
        watching(
            "OpenTelemetry system metrics",
            READER + SYSTEM,
            needs="opentelemetry.instrumentation.system_metrics",
            once="reader.get_metrics_data()",
        ),
        watching("mlflow system metrics", MLFLOW, needs="mlflow"),
        watching("wandb, its other process included", WANDB, needs="wandb", has_children=True),
        watching("codecarbon", CODECARBON, needs="codecarbon"),
        *only_gpus,
    )
    return Case(
        f"share_{gpus}",
        f"watching a machine with {gpus} GPU{'' if gpus == 1 else 's'} once a second: share of a core",
        tuple(_with(way, gpus) for way in ways),
        (Figure("share", "", "%", 100, "difference"),),
        at_once=True,
        goals={("Epochmeter, all probes", "share"): goal} if (goal := {0: 0.05, 8: 0.1}.get(gpus)) else {},
    )


TICK = """
import statistics, time
from profiler.hardware.sampler import PROBES, Sampler
sampler = Sampler(1.0)
for name in PROBES:
    sampler.open(name)
def tick():
    began = time.perf_counter()
    sampler.tick()
    return time.perf_counter() - began
for _ in range(40):
    tick()
told(us=statistics.mean(tick() for _ in range(400)) * 1e6)
"""


def _with(way: Way, gpus: int) -> Way:
    """Return the way on a machine with so many GPUs; with none, there is no library of NVIDIA's either."""
    variables = {"FAKE_NVML": f"gpus={gpus}"} if gpus else {"LD_LIBRARY_PATH": ""}
    return replace(way, environment={**way.environment, **variables})


tick = Case(
    "tick",
    "a tick of all probes, one after another without a pause",
    tuple(_with(Way(f"Epochmeter, {gpus} GPUs", TICK, OURS), gpus) for gpus in (0, 1, 8)),
    (Figure("us", "", "us", against=""),),
)


def build(into: Path) -> str:
    """Build the stand-in for NVML, and return its folder; "" where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return ""
    flags = ["-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-soname,fake-nvml.so"]
    target = into / "libnvidia-ml.so.1"
    subprocess.run([compiler, *flags, "-o", str(target), str(SOURCE), "-lm", "-lpthread"], check=True)
    return str(into)


CASES = (tick, *(share(gpus) for gpus in (0, 1, 8)))
