"""Cases within one process, a call at a time: a phase, a step, a count, the encoding of 200 series, a slice to disk."""

from __future__ import annotations

from case import FLOOR, OURS, Case, Figure, Way

PURE = {"EPOCHMETER_PURE": "1"}
TURNS = """
import statistics
from time import perf_counter_ns

def floor(n):
    for _ in range(n):
        perf_counter_ns()
        perf_counter_ns()

def timed(function, n):
    began = perf_counter_ns()
    function(n)
    return (perf_counter_ns() - began) / n

def turns(way, n=1_500, rounds=60):
    for function in (floor, way):
        function(n)
    pairs = [(timed(floor, n), timed(way, n)) for _ in range(rounds)]
    told(ns=statistics.median(way for _, way in pairs), floor_ns=statistics.median(floor for floor, _ in pairs))
"""
INSIDE = """
from profiler import Profiler
prof = Profiler("hot", settings={"local": False}, exporter="none", interval=3600)
prof.start()
steps = iter(prof.train(range(3)))
next(steps), next(steps)
"""
PHASE = """
def way(n):
    for _ in range(n):
        with {enter}:
            pass
turns(way)
"""
RECORD = """
def way(n):
    for _ in range(n):
        began = perf_counter_ns()
        record((perf_counter_ns() - began) / 1e9)
turns(way)
"""
OTEL = """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
views = [View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation())]
meter = MeterProvider([InMemoryMetricReader()], views=views).get_meter("hot")
"""
SIMPLE = "from lightning.pytorch.profilers import SimpleProfiler\nsimple = SimpleProfiler()\n"
PROMETHEUS = "from prometheus_client import Histogram\nhistogram = Histogram('phase', 'of a step')\n"
ZEUS = """
from zeus.monitor import ZeusMonitor
monitor = ZeusMonitor(gpu_indices=[])
def way(n):
    for _ in range(n):
        monitor.begin_window("forward", sync_execution=False)
        monitor.end_window("forward", sync_execution=False)
turns(way, n=300)
"""
phase = Case(
    "phase",
    "a phase around nothing, within a step",
    (
        Way("two clock readings", TURNS + "turns(floor)", FLOOR),
        Way("Epochmeter", TURNS + INSIDE + PHASE.format(enter="prof.phase('forward')"), OURS),
        Way("Epochmeter in Python alone", TURNS + INSIDE + PHASE.format(enter="prof.phase('forward')"), OURS, "", (), PURE),
        Way("SimpleProfiler.profile", TURNS + SIMPLE + PHASE.format(enter="simple.profile('forward')"), needs="lightning"),
        Way(
            "torch.profiler.record_function, nothing recording",
            TURNS + "import torch\n" + PHASE.format(enter="torch.profiler.record_function('forward')"),
            needs="torch",
        ),
        Way(
            "prometheus_client Histogram.time",
            TURNS + PROMETHEUS + PHASE.format(enter="histogram.time()"),
            needs="prometheus_client",
        ),
        Way(
            "OpenTelemetry Histogram.record",
            TURNS + OTEL + "record = meter.create_histogram('phase').record" + RECORD,
            needs="opentelemetry.sdk",
        ),
        Way("ZeusMonitor window, no GPU", TURNS + ZEUS, needs="zeus"),
    ),
    (Figure("ns", "", "ns"),),
    goals={("Epochmeter", "ns"): 2.0, ("Epochmeter in Python alone", "ns"): 4.0},
)

BATCH = "import torch\nbatch = (torch.zeros(64, 1, 8, 8), torch.zeros(64))\n"
STEP = """
def way(n):
    for _ in {batches}:
        pass
turns(way)
"""
TRACED = """
def way(n):
    for _ in [batch] * n:
        with traceml.trace_step(model):
            pass
turns(way, n=200, rounds=30)
"""
step = Case(
    "step",
    "a step of `for batch in prof.train(loader)` that does nothing",
    (
        Way("two clock readings", TURNS + "turns(floor)", FLOOR),
        Way("the bare loop", TURNS + BATCH + STEP.format(batches="[batch] * n"), FLOOR),
        Way("Epochmeter", TURNS + BATCH + INSIDE + STEP.format(batches="prof.train([batch] * n)"), OURS),
        Way(
            "Epochmeter in Python alone",
            TURNS + BATCH + INSIDE + STEP.format(batches="prof.train([batch] * n)"),
            OURS,
            environment=PURE,
        ),
        Way(
            "SimpleProfiler around next()",
            TURNS + BATCH + SIMPLE + "def way(n):\n    batches = iter([batch] * n)\n    for _ in range(n):\n"
            "        with simple.profile('next'):\n            next(batches)\nturns(way)",
            needs="lightning",
        ),
        Way(
            "tqdm",
            TURNS
            + BATCH
            + "import tqdm, os\nsink = open(os.devnull, 'w')\n"
            + STEP.format(batches="tqdm.tqdm([batch] * n, file=sink)"),
            needs="tqdm",
        ),
        Way(
            "TraceML trace_step",
            TURNS + BATCH + "import traceml_ai as traceml\ntraceml.init()\nmodel = torch.nn.Linear(1, 1)\n" + TRACED,
            needs="traceml_ai",
            command=("traceml", "run", "--mode", "summary"),
        ),
    ),
    (Figure("ns", "", "ns"),),
    goals={("Epochmeter", "ns"): 5.0},
)

COUNT = """
def way(n):
    for _ in range(n):
        {count}
turns(way)
"""
count = Case(
    "count",
    "a count of a feature that a package's user used",
    (
        Way("two clock readings", TURNS + "turns(floor)", FLOOR),
        Way(
            "Epochmeter",
            TURNS
            + "from profiler import Telemetry\ntelemetry = Telemetry('digits', '1.2.3', features=('export',))\n"
            + COUNT.format(count="telemetry.feature('export')"),
            OURS,
        ),
        Way(
            "prometheus_client Counter.labels().inc",
            TURNS
            + "from prometheus_client import Counter\ncounter = Counter('features', 'used', ['feature'])\n"
            + COUNT.format(count="counter.labels('export').inc()"),
            needs="prometheus_client",
        ),
        Way(
            "OpenTelemetry Counter.add",
            TURNS
            + OTEL
            + "counter = meter.create_counter('features')\n"
            + COUNT.format(count="counter.add(1, {'feature': 'export'})"),
            needs="opentelemetry.sdk",
        ),
    ),
    (Figure("ns", "", "ns"),),
)

REPEATED = """
import statistics, time
def repeated(once, n=30):
    once()
    times = []
    for _ in range(n):
        began = time.perf_counter()
        size = len(once())
        times.append(time.perf_counter() - began)
    told(ms=statistics.median(times) * 1e3, bytes=size)
"""
SERIES = """
from exporters.measurements import HistogramValue, Outgoing, OutgoingMetric
from exporters.payload import encode
value = HistogramValue(1000, 12.5, 3, 0, -60, tuple(range(1, 41)), 0.005, 0.02)
points = tuple(({"epochmeter.stage": "train", "epochmeter.phase": "forward", "epochmeter.epoch": n}, value) for n in range(200))
metric = OutgoingMetric("epochmeter.phase.duration", "How long phases take.", "s", "histogram", points)
data = Outgoing({"service.name": "epochmeter", "service.version": "1.0"}, (metric,), 0, 1)
repeated(lambda: encode(data))
"""
SERIES_OTEL = """
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
reader = InMemoryMetricReader()
views = [View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation(max_size=40))]
histogram = MeterProvider([reader], views=views).get_meter("hot").create_histogram("epochmeter.phase.duration", "s")
for n in range(200):
    attributes = {"epochmeter.stage": "train", "epochmeter.phase": "forward", "epochmeter.epoch": n}
    for k in range(200):
        histogram.record(0.005 + 0.15 * k / 200, attributes)
data = reader.get_metrics_data()
repeated(lambda: encode_metrics(data).SerializeToString())
"""
SERIES_PROMETHEUS = """
from prometheus_client import CollectorRegistry, Histogram, generate_latest
registry = CollectorRegistry()
buckets = [0.005 * 1.1**n for n in range(40)]
histogram = Histogram("phase", "How long phases take.", ["stage", "phase", "epoch"], buckets=buckets, registry=registry)
for n in range(200):
    for k in range(200):
        histogram.labels("train", "forward", str(n)).observe(0.005 + 0.15 * k / 200)
repeated(lambda: generate_latest(registry))
"""
encoding = Case(
    "encoding",
    "encoding 200 series, histograms of 40 buckets",
    (
        Way(
            "OpenTelemetry encode_metrics",
            REPEATED + OTEL + SERIES_OTEL,
            needs="opentelemetry.exporter.otlp.proto.common",
        ),
        Way("Epochmeter", REPEATED + SERIES, OURS),
        Way("prometheus_client generate_latest", REPEATED + SERIES_PROMETHEUS, needs="prometheus_client"),
    ),
    (Figure("ms", "time", "ms", against=""), Figure("bytes", "size", "kB", 1e-3, against="")),
)

BOUNDARY = """
import statistics, time
def told_of(times):
    times = sorted(times[5:])
    told(us=statistics.median(times) * 1e6)
"""
EPOCHS = (
    BOUNDARY
    + """
import torch
from profiler import Profiler
with Profiler("disk", exporter="none") as prof:
    ends, times = None, []
    for _ in prof.epochs(120):
        if ends is not None:
            times.append(time.perf_counter() - ends)
        for _ in prof.train(range(20)):
            for name in ("forward", "backward", "optimizer"):
                with prof.phase(name):
                    pass
            time.sleep(0.001)
            ends = time.perf_counter()
told_of(times)
"""
)
LOGGED = """
times = []
for epoch in range(120):
    time.sleep(0.02)
    names = ("loss", "acc", "time", "wait", "forward", "backward", "optimizer", "lr")
    values = {f"train/{name}": 0.1 * epoch for name in names}
    began = time.perf_counter()
    %s
    times.append(time.perf_counter() - began)
told_of(times)
"""
disk = Case(
    "disk",
    "the end of an epoch: its sums are on the disk before the next one begins (trackers: eight numbers are handed over)",
    (
        Way("Epochmeter", EPOCHS, OURS),
        Way(
            "mlflow.log_metrics, files",
            BOUNDARY
            + "import mlflow\nmlflow.set_tracking_uri('file:mlruns')\nmlflow.start_run()"
            + LOGGED % "mlflow.log_metrics(values, step=epoch)",
            needs="mlflow",
        ),
        Way(
            "wandb.log, offline: to another process",
            BOUNDARY + "import wandb\nrun = wandb.init(mode='offline')" + LOGGED % "run.log(values)" + "run.finish()",
            needs="wandb",
        ),
    ),
    (Figure("us", "", "us", against=""),),
)
CASES = (phase, step, count, encoding, disk)
