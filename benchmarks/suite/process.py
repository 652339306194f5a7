"""Cases of whole processes: import, start, stop, an end with a dead collector, memory, reports of long runs."""

from __future__ import annotations

from case import FLOOR, OURS, Case, Figure, Way

IMPORT = """
import time
began = time.perf_counter()
{imports}
took = time.perf_counter() - began
import sys
told(ms=took * 1e3, modules=len(sys.modules))
"""


def imported(name: str, imports: str, whose: str = "peer", needs: str = "") -> Way:
    return Way(name, IMPORT.format(imports=imports), whose, needs)


imports = Case(
    "import",
    "an import in a bare interpreter",
    (
        imported("nothing", "pass", FLOOR),
        imported("Epochmeter: import profiler", "import profiler", OURS),
        imported("Epochmeter: from profiler import Profiler", "from profiler import Profiler", OURS),
        imported("prometheus_client", "import prometheus_client", needs="prometheus_client"),
        imported("OpenTelemetry SDK", "from opentelemetry.sdk.metrics import MeterProvider", needs="opentelemetry.sdk"),
        imported("psutil", "import psutil", needs="psutil"),
        imported("pyinstrument", "import pyinstrument", needs="pyinstrument"),
        imported("nvitop", "import nvitop", needs="nvitop"),
        imported("codecarbon", "import codecarbon", needs="codecarbon"),
        imported("mlflow", "import mlflow", needs="mlflow"),
        imported("wandb", "import wandb", needs="wandb"),
        imported("TraceML", "import traceml_ai\ntraceml_ai.init", needs="traceml_ai"),
    ),
    (Figure("ms", "", "ms", against=""),),
)

LIFE = """
import time
import torch
{imports}
def clocked(action):
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result
start, thing = clocked(lambda: {start})
time.sleep(1.5)
stop, _ = clocked(lambda: {stop})
told(start_ms=start * 1e3, stop_ms=stop * 1e3)
"""


def lived(name: str, imports: str, start: str, stop: str, whose: str = "peer", needs: str = "") -> Way:
    return Way(name, LIFE.format(imports=imports, start=start, stop=stop), whose, needs)


CODECARBON = (
    "from codecarbon import OfflineEmissionsTracker\n"
    "tracker = lambda: OfflineEmissionsTracker(country_iso_code='DEU', measure_power_secs=1, log_level='critical')\n"
    "def start():\n    made = tracker()\n    made.start()\n    return made\n"
)
MLFLOW = (
    "import mlflow\nmlflow.set_tracking_uri('file:mlruns')\nmlflow.set_system_metrics_sampling_interval(1)\n"
    "mlflow.enable_system_metrics_logging()\n"
)
OTEL = (
    "from opentelemetry import metrics\nfrom opentelemetry.sdk.metrics import MeterProvider\n"
    "from opentelemetry.sdk.metrics.export import InMemoryMetricReader\n"
    "from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor\n"
    "def start():\n    reader = InMemoryMetricReader()\n    metrics.set_meter_provider(MeterProvider([reader]))\n"
    "    SystemMetricsInstrumentor().instrument()\n    reader.get_metrics_data()\n    return metrics.get_meter_provider()\n"
)
WANDB = "import wandb\nsettings = wandb.Settings(silent=True, x_stats_sampling_interval=1)\n"
life = Case(
    "life",
    "a run of nothing in a process that has imported torch and the tool: hardware once a second, nothing sent",
    (
        lived("Epochmeter", "from profiler import Profiler", "Profiler('life', exporter='none').start()", "thing.stop()", OURS),
        lived(
            "OpenTelemetry system metrics",
            OTEL,
            "start()",
            "thing.shutdown()",
            needs="opentelemetry.instrumentation.system_metrics",
        ),
        lived("codecarbon, offline", CODECARBON, "start()", "thing.stop()", needs="codecarbon"),
        lived("mlflow system metrics", MLFLOW, "mlflow.start_run()", "mlflow.end_run()", needs="mlflow"),
        lived("wandb, offline", WANDB, "wandb.init(mode='offline', settings=settings)", "thing.finish()", needs="wandb"),
        lived(
            "ZeusMonitor, no GPU",
            "from zeus.monitor import ZeusMonitor",
            "ZeusMonitor(gpu_indices=[])",
            "None",
            needs="zeus",
        ),
    ),
    (Figure("start_ms", "start", "ms", against=""), Figure("stop_ms", "stop", "ms", against="")),
)

DEAD = "http://127.0.0.1:9"
DEAD_OURS = f"""
import time
from profiler import Profiler
prof = Profiler("end", exporter="otlp", settings={{"otlp_endpoint": "{DEAD}"}})
prof.start()
for _ in prof.epochs(3):
    for _ in prof.train(range(100)):
        pass
began = time.perf_counter()
prof.stop()
took = time.perf_counter() - began
from pathlib import Path
told(s=took, kept=len(list(Path.home().rglob("*.entry"))))
"""
DEAD_OTEL = f"""
import time
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint="{DEAD}/v1/metrics"), export_interval_millis=60_000)
provider = MeterProvider([reader])
steps = provider.get_meter("end").create_counter("steps")
for _ in range(300):
    steps.add(1)
began = time.perf_counter()
provider.shutdown()
told(s=time.perf_counter() - began, kept=0)
"""
SENDS = {"EPOCHMETER_SYNC": "1", "DO_NOT_TRACK": "0"}
dead = Case(
    "dead",
    "the end of a run whose collector is down",
    (
        Way("OpenTelemetry's exporter", DEAD_OTEL, needs="opentelemetry.exporter.otlp.proto.http"),
        Way("Epochmeter", DEAD_OURS, OURS, environment=SENDS),
    ),
    (Figure("s", "time", "s", against=""), Figure("kept", "payloads kept to be sent later", "", against="")),
)

MEMORY = """
import gc, os
from pathlib import Path
import torch
def memory():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
before = memory()
STEPS = 10_000_000
"""
THREE = """
for _ in {batches}:
    for name in ("forward", "backward", "optimizer"):
        with {enter}:
            pass
told(mib=memory() - before)
"""
OPEN = "from profiler import Profiler\nprof = Profiler('memory', exporter='none')\nprof.start()\n"
memory = Case(
    "memory",
    "memory over that of torch, after 10 million steps of three phases",
    (
        Way("the bare loop", MEMORY + "for _ in range(STEPS):\n    pass\ntold(mib=memory() - before)", FLOOR),
        Way("Epochmeter", MEMORY + OPEN + THREE.format(batches="prof.train(range(STEPS))", enter="prof.phase(name)"), OURS),
        Way(
            "SimpleProfiler.profile (1 million)",
            MEMORY
            + "from lightning.pytorch.profilers import SimpleProfiler\nsimple = SimpleProfiler()\nbefore = memory()\n"
            + THREE.format(batches="range(STEPS // 10)", enter="simple.profile(name)"),
            needs="lightning",
        ),
        Way(
            "prometheus_client Histogram.time",
            MEMORY
            + "from prometheus_client import Histogram\nhistogram = Histogram('p', 'p', ['name'])\n"
            + THREE.format(batches="range(STEPS)", enter="histogram.labels(name).time()"),
            needs="prometheus_client",
        ),
    ),
    (Figure("mib", "", "MiB", against="difference"),),
    repeats=3,
    goals={("Epochmeter", "mib"): 12.0},
)
SPAWN = """
import threading
def work():
    {work}
def live(n):
    for _ in range(n):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
live(1000)
before = memory()
live(100_000)
told(kib=(memory() - before) * 1024)
"""
threads = Case(
    "threads",
    "memory that 100,000 threads leave behind, each with one phase",
    (
        Way("bare threads", MEMORY + SPAWN.format(work="pass"), FLOOR),
        Way("Epochmeter", MEMORY + OPEN + SPAWN.format(work="with prof.phase('request'):\n        pass"), OURS),
        Way(
            "prometheus_client Histogram.time",
            MEMORY
            + "from prometheus_client import Histogram\nhistogram = Histogram('p', 'p')\n"
            + SPAWN.format(work="with histogram.time():\n        pass"),
            needs="prometheus_client",
        ),
    ),
    (Figure("kib", "", "KiB", against="difference"),),
    repeats=3,
)

LONG = """
import os, time
from pathlib import Path
home = os.environ["SHARED"]
for epochs in (1_000, 50_000):
    os.environ["EPOCHMETER_HOME"] = f"{home}/{epochs}"
    from profiler import Profiler
    with Profiler("long", exporter="none", interval=60.0) as prof:
        for _ in prof.epochs(epochs):
            for _ in prof.train(range(2)):
                for name in ("forward", "backward", "optimizer"):
                    with prof.phase(name):
                        pass
told(done=1)
"""
REPORT = """
import os, subprocess, sys, time
environment = {{**os.environ, "EPOCHMETER_HOME": os.environ["SHARED"] + "/{epochs}"}}
began = time.perf_counter()
arguments = ["report", "last", "--format", "{format}", "-o", "out"]
program = [sys.executable, "-m", "profiler.cli", *arguments]
process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
assert status == 0
told(s=time.perf_counter() - began, mb=usage.ru_maxrss / 1024)
"""
report = Case(
    "report",
    "a report from the log of a long run, in a process of its own",
    tuple(
        Way(f"{epochs:,} epochs, {form}", REPORT.format(epochs=epochs, format=form), OURS)
        for epochs in (1_000, 50_000)
        for form in ("text", "html")
    ),
    (Figure("s", "time", "s", against=""), Figure("mb", "memory", "MB", against="")),
    setup=LONG,
)
CASES = (imports, life, dead, memory, threads, report)
