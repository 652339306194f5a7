"""The list: everything that may leave, with its closed vocabulary, its coarsening and its purpose. Reviewed data.

The rule it keeps: there is no free text. A text attribute has its words written here, and any other word becomes ``other``
or stays behind. A number is exact only if it is a timing or a count.

Made from it, and written nowhere else: the outgoing data (`gate`), the check of the final bytes (`payload`), the printed
list and ``docs/telemetry.md`` (`schema`), and OpenTelemetry views (`views`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from exporters.rules import DEV, OTHER, Declared, Frame, OfApp, Random, Rule, Version, Whole, Words, coarse, filled

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE_NAME = "epochmeter"
HEADERS = {  # the headers of a request: the same from every machine
    "content-type": "application/x-protobuf",
    "content-encoding": "gzip",
    "user-agent": "epochmeter",
    "accept": "*/*",
    "accept-encoding": "identity",
}
GA_HEADERS = {**{name: HEADERS[name] for name in HEADERS if name != "content-encoding"}, "content-type": "application/json"}
SENTRY_HEADERS = {
    **HEADERS,
    "content-type": "application/x-sentry-envelope",
    "x-sentry-auth": "Sentry sentry_version=7, sentry_client=epochmeter, sentry_key=<key>",
}
STAGES = ("train", "val", "inference")
PHASES = (
    *("data_wait", "transfer", "forward", "loss", "backward", "optimizer", "metrics", "checkpoint", "logging"),
    "custom",
)
GPU_IDS = tuple(f"gpu-{index}" for index in range(16))
GPU_OR_MIG_IDS = (*GPU_IDS, *(f"{gpu}/mig-{instance}" for gpu in GPU_IDS for instance in range(15)))
CORES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
OWN_DESTINATIONS = ("otlp", "prometheus")  # that may be the user's own
MOST_RANKS = 2**24
GIB_CLASSES = tuple(2**power for power in range(13))
GPU_MEMORY_CLASSES = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 256, 288)
GPU_MODELS = (  # the longest of these words in a card's name is sent
    *("B300", "B200", "GB200", "H200", "H100", "H20", "GH200", "A100", "A800", "A40", "A30", "A10G", "A10", "A16"),
    *("L40S", "L40", "L4", "V100", "P100", "P40", "T4", "RTX 6000", "RTX A6000", "RTX A5000", "RTX A4000"),
    *("RTX 5090", "RTX 5080", "RTX 5070", "RTX 5060", "RTX 4090", "RTX 4080", "RTX 4070", "RTX 4060"),
    *("RTX 3090", "RTX 3080", "RTX 3070", "RTX 3060", "RTX 2080", "RTX 2070", "RTX 2060", "GTX 1080", "GTX 1070"),
)
CPU_FAMILIES = (
    *("Intel Xeon", "Intel Core", "Intel other", "AMD EPYC", "AMD Ryzen Threadripper", "AMD Ryzen", "AMD other"),
    *("Apple M", "AWS Graviton", "NVIDIA Grace", "Ampere Altra", "ARM Neoverse", "ARM other"),
)


@dataclass(frozen=True)
class ListedMetric:
    """One metric that may leave.

    Attributes:
        name: its name.
        kind: histogram, sum, updowncounter or gauge.
        unit: its UCUM unit.
        attributes: the rule of each attribute.
        purpose: why it is sent.
        since: the version that first sent it.
        digits: the number of significant digits; None sends the exact number.
        sizes: for sizes in bytes, the classes in GiB; the nearest is sent.
        destinations: the targets that get it.
        optional: those of its attributes that a point may lack.
    """

    name: str
    kind: str
    unit: str
    purpose: str
    since: str = "0.1.0"
    attributes: Mapping[str, Rule] = field(default_factory=dict)
    digits: int | None = None
    sizes: tuple[int, ...] = ()
    destinations: tuple[str, ...] = OWN_DESTINATIONS
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListedFact:
    """One fact that may leave: about a run, its machine, a package, or a crash."""

    name: str
    rule: Rule
    purpose: str
    since: str = "0.1.0"
    destinations: tuple[str, ...] = ("otlp", "prometheus", "ga")
    ga_rule: Rule | None = None

    def rule_for(self, target: str) -> Rule:
        """Return the rule of its values for a destination: Google gets some of them coarser."""
        return self.ga_rule if target == "ga" and self.ga_rule is not None else self.rule


EVERYWHERE = ("otlp", "prometheus", "ga")
WITH_CRASHES = (*EVERYWHERE, "crash")
USAGE_DESTINATIONS = ("otlp", "ga")  # counts of a program that has ended cannot be fetched from it
STAGE: Mapping[str, Rule] = {"epochmeter.stage": Words(STAGES)}
STAGE_COLD: Mapping[str, Rule] = {**STAGE, "epochmeter.cold": Words((False, True))}
PHASE: Mapping[str, Rule] = {
    **STAGE_COLD,
    "epochmeter.phase": Words(PHASES),
    "epochmeter.phase.level": Words(("top", "nested")),
}
OUTSIDE_STAGES = ("epochmeter.stage",)  # what is measured outside every stage has none
GPU: Mapping[str, Rule] = {"hw.id": Words(GPU_IDS)}
GPU_OR_MIG: Mapping[str, Rule] = {"hw.id": Words(GPU_OR_MIG_IDS)}
GPU_STAGE: Mapping[str, Rule] = {**GPU, **STAGE}
GPU_TYPED: Mapping[str, Rule] = {**GPU, "hw.type": Words(("gpu",))}
MEMORY_STATE: Mapping[str, Rule] = {"system.memory.state": Words(("used",))}

BENCH: Mapping[str, Rule] = {
    **STAGE,
    "epochmeter.bench.suite": Words(("limits", "models", "loader", "yours")),
    "epochmeter.bench.name": Words(
        (
            *("matmul", "memory", "h2d_pinned", "h2d_pageable", "d2h_pinned", "launch", "all_reduce"),
            *("convnet", "resnet50", "vit", "gpt", "loader", "custom"),
        )
    ),
    "epochmeter.bench.device": Words(("cpu", "cuda", "mps", OTHER)),
    "epochmeter.bench.dtype": Words(("float64", "float32", "tf32", "bfloat16", "float16")),
    "epochmeter.bench.batch": Words(tuple(2**power for power in range(21)), upward=True),
    "epochmeter.bench.workers": Words((0, 1, 2, 4, 8, 16)),
    "epochmeter.bench.compiled": Words((False, True)),
}

OF_SOME_CASES = tuple(name for name in BENCH if name not in ("epochmeter.bench.suite", "epochmeter.bench.name"))

OUTCOMES = ("finished", "crashed", "interrupted")
OF_FEATURE: Mapping[str, Rule] = {"epochmeter.usage.feature": OfApp("features")}
OF_COMMAND: Mapping[str, Rule] = {"epochmeter.usage.command": OfApp("commands")}
OF_OPTION: Mapping[str, Rule] = {**OF_COMMAND, "epochmeter.usage.option": OfApp("options")}
OF_FACT: Mapping[str, Rule] = {"epochmeter.usage.fact": OfApp("told"), "epochmeter.usage.outcome": Words(OUTCOMES)}
USAGE = tuple(
    ListedMetric(f"epochmeter.usage.{name}s", "sum", unit, purpose, attributes=rules, destinations=destinations)
    for name, unit, purpose, rules, destinations in (
        ("feature", "{call}", "Which features of a package are used, and how often.", OF_FEATURE, USAGE_DESTINATIONS),
        ("command", "{call}", "Which commands of a package are used, and how often.", OF_COMMAND, USAGE_DESTINATIONS),
        ("option", "{call}", "Which options of its commands are given; never with what value.", OF_OPTION, USAGE_DESTINATIONS),
        ("fact", "{run}", "What a package's runs are like, and how they end.", OF_FACT, ("otlp",)),
    )
)

METRICS = (
    ListedMetric("epochmeter.run.duration", "gauge", "s", "How long runs take."),
    ListedMetric(
        *("epochmeter.run.overhead", "gauge", "s", "What the profiler itself costs."),
        attributes={"epochmeter.thread": Words(("loop", "background"))},
    ),
    ListedMetric("epochmeter.epoch.time", "sum", "s", "How much of a run its epochs are."),
    ListedMetric("epochmeter.epoch.count", "sum", "{epoch}", "How many epochs there were."),
    ListedMetric(
        "epochmeter.epoch.duration", "histogram", "s", "How long epochs take, and how evenly.", destinations=EVERYWHERE
    ),
    ListedMetric(
        *("epochmeter.stage.duration", "histogram", "s", "How long a stage takes in an epoch, and how evenly."),
        attributes=STAGE,
        destinations=EVERYWHERE,
    ),
    ListedMetric("epochmeter.stage.time", "sum", "s", "Where time goes: training, validation, inference.", attributes=STAGE),
    ListedMetric("epochmeter.stage.steps", "sum", "{step}", "To put times into relation.", attributes=STAGE),
    ListedMetric("epochmeter.stage.samples", "sum", "{sample}", "Throughput.", attributes=STAGE),
    ListedMetric(
        *("epochmeter.stage.passes", "sum", "{pass}", "How many passes there were, and how many ended early."),
        attributes={**STAGE, "epochmeter.pass.partial": Words((False, True))},
    ),
    *(
        ListedMetric(name, "histogram", "s", purpose, attributes=attributes, destinations=EVERYWHERE, optional=optional)
        for name, purpose, attributes, optional in (
            ("epochmeter.step.duration", "How long steps take, and how evenly.", STAGE_COLD, ()),
            ("epochmeter.inference.latency", "How long inference takes.", STAGE_COLD, ()),
            ("epochmeter.phase.duration", "What part of a step takes how long.", PHASE, OUTSIDE_STAGES),
        )
    ),
    ListedMetric(
        *("epochmeter.step.stalled", "gauge", "s", "Whether a run hangs, and in which part of a step."),
        attributes={**STAGE, "epochmeter.phase": Words(PHASES)},
        optional=(*OUTSIDE_STAGES, "epochmeter.phase"),
    ),
    ListedMetric(
        *("epochmeter.phase.device_duration", "histogram", "s", "The same on the GPU's clock."),
        attributes={name: rule for name, rule in PHASE.items() if name != "epochmeter.cold"},
        optional=OUTSIDE_STAGES,
    ),
    ListedMetric(
        *("process.cpu.time", "sum", "s", "What a run costs in CPU time."),
        attributes={"cpu.mode": Words(("user", "system"))},
        digits=3,
    ),
    ListedMetric(
        *("process.cpu.utilization", "gauge", "1", "Whether the CPU is the limit."),
        attributes={"cpu.mode": Words(("user", "system"))},
        digits=3,
    ),
    ListedMetric("process.memory.usage", "updowncounter", "By", "Whether memory is the limit.", digits=3),
    ListedMetric("system.cpu.utilization", "gauge", "1", "Whether something else uses the CPU.", digits=3),
    ListedMetric("system.memory.utilization", "gauge", "1", "Whether memory is short.", attributes=MEMORY_STATE, digits=3),
    ListedMetric("epochmeter.container.memory.utilization", "gauge", "1", "Whether a container's limit is near.", digits=3),
    ListedMetric("epochmeter.container.cpu.throttled_time", "sum", "s", "Whether a CPU quota stops the run.", digits=3),
    ListedMetric(
        *("hw.gpu.utilization", "gauge", "1", "Whether the GPU is busy."),
        attributes={**GPU, "hw.gpu.task": Words(("general",))},
        digits=3,
    ),
    ListedMetric(
        "hw.gpu.memory.usage", "updowncounter", "By", "Whether GPU memory is the limit.", attributes=GPU_OR_MIG, digits=3
    ),
    ListedMetric(
        *("hw.gpu.memory.limit", "updowncounter", "By", "Whether GPU memory is the limit."),
        attributes=GPU_OR_MIG,
        sizes=GPU_MEMORY_CLASSES,
    ),
    ListedMetric("hw.power", "gauge", "W", "What a run draws.", attributes=GPU_TYPED, digits=3),
    ListedMetric("hw.energy", "sum", "J", "What a run uses.", attributes=GPU_TYPED, digits=3),
    ListedMetric(
        *("hw.temperature", "gauge", "Cel", "Whether heat is the limit."),
        attributes={
            "hw.id": Words(tuple(f"{gpu}-{part}" for part in ("die", "hbm") for gpu in GPU_IDS)),
            "hw.parent": Words(GPU_IDS),
            "hw.sensor_location": Words(("gpu_die", "hbm")),
        },
        digits=3,
    ),
    ListedMetric(
        *("hw.status", "updowncounter", "1", "Whether heat slows a GPU, or it fails."),
        attributes={**GPU_TYPED, "hw.state": Words(("ok", "degraded", "failed", "predicted_failure"))},
    ),
    ListedMetric(
        *("hw.errors", "sum", "{error}", "Whether a GPU's memory fails."),
        attributes={**GPU_TYPED, "error.type": Words(("corrected", "uncorrected"))},
    ),
    *(
        ListedMetric(f"epochmeter.gpu.{name}", "gauge", "1", purpose, attributes=GPU_OR_MIG, digits=3)
        for name, purpose in (
            ("sm.utilization", "How much of a GPU is busy."),
            ("sm.occupancy", "How full a GPU is."),
            ("tensor.utilization", "Whether tensor cores are used."),
            ("dram.utilization", "Whether GPU memory bandwidth is the limit."),
        )
    ),
    ListedMetric(
        *("epochmeter.gpu.clock.frequency", "gauge", "Hz", "Whether clocks are held down."),
        attributes={**GPU, "epochmeter.gpu.clock": Words(("sm", "memory"))},
        digits=3,
    ),
    ListedMetric(
        *("epochmeter.gpu.throttled_time", "sum", "s", "What holds clocks down."),
        attributes={
            **GPU,
            "epochmeter.gpu.throttle_reason": Words(
                ("power_cap", "thermal", "sync_boost", "board_limit", "reliability", "sw_thermal", "hw_thermal", "power_brake")
            ),
        },
        digits=3,
    ),
    *(
        ListedMetric(
            f"epochmeter.gpu.energy.{what}", kind, unit, purpose, attributes={**GPU, **STAGE}, digits=3, optional=OUTSIDE_STAGES
        )
        for what, kind, unit, purpose in (
            ("used", "sum", "J", "What training and inference use."),
            ("metered", "sum", "s", "What training and inference use."),
            ("uncertain", "gauge", "J", "How sure that is."),
        )
    ),
    *(
        ListedMetric(
            *(f"epochmeter.torch.memory.{what}", "updowncounter", "By", "What a model needs of GPU memory."),
            attributes={"epochmeter.torch.device": Words(tuple(f"cuda:{index}" for index in range(16)))},
            digits=3,
        )
        for what in ("allocated", "reserved", "peak")
    ),
    ListedMetric(
        *("epochmeter.bench.cases", "gauge", "{case}", "What benchmarks measure, and what fails."),
        attributes={**BENCH, "epochmeter.bench.status": Words(("ok", "failed", "timed out", "skipped"))},
        optional=OF_SOME_CASES,
    ),
    ListedMetric(
        *("epochmeter.bench.limit_share", "gauge", "1", "How near models come to what a machine can do."),
        attributes={**BENCH, "epochmeter.bench.limit": Words(("operations", "memory"))},
        digits=3,
        optional=OF_SOME_CASES,
    ),
    *(
        ListedMetric(f"epochmeter.bench.{name}", "gauge", unit, purpose, attributes=BENCH, digits=3, optional=OF_SOME_CASES)
        for name, unit, purpose in (
            ("sample_rate", "{sample}/s", "Speed of training and inference by machine."),
            ("operation_rate", "{operation}/s", "Speed of training and inference by machine."),
            ("byte_rate", "By/s", "Speed of memory by machine."),
            ("time", "s", "Speed of training and inference by machine."),
            ("memory", "By", "What a model needs of memory."),
            ("energy", "J", "What a sample costs in energy."),
        )
    ),
    ListedMetric(
        *("epochmeter.bench.latency", "gauge", "s", "Latency by machine."),
        attributes={**BENCH, "epochmeter.bench.percentile": Words((50, 99))},
        digits=3,
        optional=OF_SOME_CASES,
    ),
    *USAGE,
    ListedMetric(
        *("epochmeter.usage.summaries", "sum", "{summary}", "How often a fact is told that is told apart from all others."),
        destinations=("otlp",),
    ),
)

RESOURCE = (
    ListedFact(
        *("service.name", Words(("epochmeter",)), "Tells our metrics from others."),
        destinations=OWN_DESTINATIONS,
    ),
    ListedFact("service.version", Words(("0.1.0", DEV, OTHER)), "To know which version measured."),
    ListedFact(
        *("service.instance.id", Random(12), "Keeps the metrics of two runs apart; drawn anew for each run."),
        destinations=OWN_DESTINATIONS,
    ),
    ListedFact("epochmeter.app.name", OfApp("app"), "Which package counted or measured.", destinations=WITH_CRASHES),
    ListedFact("epochmeter.app.version", Version(), "Which versions of it are in use.", destinations=WITH_CRASHES),
    ListedFact(
        *("epochmeter.app.install", Words(("index", "direct", "source"))),
        "Whether it came from a package index, from a folder, file or repository, or is not installed at all.",
        destinations=WITH_CRASHES,
    ),
    ListedFact(
        *("epochmeter.app.installer", Words(("pip", "uv", "conda", "poetry", "pdm", OTHER)), "What it is installed with."),
        destinations=WITH_CRASHES,
    ),
    ListedFact(
        *("os.type", Words(("linux", "darwin", "windows", OTHER)), "Differences between systems."), destinations=WITH_CRASHES
    ),
    ListedFact(*("host.arch", Words(("amd64", "arm64", OTHER)), "Differences between processors."), destinations=WITH_CRASHES),
    ListedFact(
        *("process.runtime.name", Words(("cpython", "pypy", OTHER)), "Differences between Pythons."),
        destinations=WITH_CRASHES,
    ),
    ListedFact(
        *("process.runtime.version", Words((*(f"3.{minor}" for minor in range(10, 20)), OTHER)), "Which Pythons are in use."),
        destinations=WITH_CRASHES,
    ),
    ListedFact(
        *("epochmeter.runtime.torch", Words((*(f"2.{minor}" for minor in range(40)), DEV, OTHER))),
        "Which versions of torch are in use.",
        destinations=WITH_CRASHES,
        ga_rule=Words(("2.10", "2.11", "2.12", "2.13", DEV, OTHER)),
    ),
    ListedFact(
        "epochmeter.runtime.cuda",
        Words((*(f"{major}.{minor}" for major in (11, 12, 13, 14) for minor in range(10)), OTHER)),
        "Which versions of CUDA are in use.",
        destinations=WITH_CRASHES,
        ga_rule=Words(("12.6", "12.8", "13.0", "13.2", OTHER)),
    ),
    *(
        ListedFact(
            *(f"epochmeter.runtime.{place}", Words((True,)), "What kind of place runs take place in."),
            destinations=WITH_CRASHES,
        )
        for place in ("container", "notebook", "colab", "kaggle", "ci", "cloud_job")
    ),
    *(
        ListedFact(f"epochmeter.distributed.{name}", Whole(MOST_RANKS), purpose, destinations=OWN_DESTINATIONS)
        for name, purpose in (
            ("rank", "Which rank of a distributed run measured."),
            ("world_size", "Speed by number of ranks."),
            ("node", "Which ranks were on one machine; a number within the run."),
        )
    ),
    ListedFact(
        *("epochmeter.distributed.job", Random(12), "Tells which ranks are of one run; drawn anew for each run."),
        destinations=OWN_DESTINATIONS,
    ),
    ListedFact("epochmeter.cpu.family", Words((*CPU_FAMILIES, OTHER)), "Speed by kind of CPU."),
    ListedFact("epochmeter.cpu.logical_cores", Words(CORES, upward=True), "Speed by number of cores."),
    ListedFact("epochmeter.cpu.available_cores", Words(CORES, upward=True), "Speed by number of cores."),
    ListedFact("epochmeter.memory.total_class_gib", Words(GIB_CLASSES, upward=True), "Speed by memory."),
    ListedFact("epochmeter.memory.limit_class_gib", Words(GIB_CLASSES, upward=True), "Speed by memory."),
    ListedFact("epochmeter.gpu.count", Words((1, 2, 4, 8, 16), upward=True), "Speed by number of GPUs."),
    ListedFact("epochmeter.gpu.model", Words((*GPU_MODELS, OTHER), contained=True), "Speed by kind of GPU."),
    ListedFact("epochmeter.gpu.memory_class", Words(GPU_MEMORY_CLASSES), "Speed by GPU memory."),
)

EXCEPTIONS = (  # the first of an error's class and bases that is in this list is sent
    *("ArithmeticError", "AssertionError", "AttributeError", "BlockingIOError", "BrokenPipeError", "BufferError"),
    *("CalledProcessError", "ChildProcessError", "ConnectionAbortedError", "ConnectionError", "ConnectionRefusedError"),
    *("ConnectionResetError", "DistBackendError", "DistNetworkError", "DistStoreError", "EOFError", "Exception"),
    *("ExceptionGroup", "FileExistsError", "FileNotFoundError", "FloatingPointError", "ImportError", "IndexError"),
    *("InterruptedError", "IsADirectoryError", "JSONDecodeError", "KeyError", "LinAlgError", "LookupError"),
    *("MemoryError", "ModuleNotFoundError", "NameError", "NotADirectoryError", "NotImplementedError", "OSError"),
    *("OutOfMemoryError", "OverflowError", "PermissionError", "PicklingError", "ProcessLookupError", "RecursionError"),
    *("ReferenceError", "RuntimeError", "StopAsyncIteration", "StopIteration", "SyntaxError", "SystemError"),
    *("TimeoutError", "TimeoutExpired", "TypeError", "UnboundLocalError", "UnicodeDecodeError", "UnicodeEncodeError"),
    *("UnicodeError", "UnpicklingError", "ValueError", "ZeroDivisionError", "ZipImportError"),
)
MAX_FRAMES = 16
CRASH = (
    ListedFact(*("exception.type", Words(EXCEPTIONS), "What kind of error it is; never its text."), destinations=("crash",)),
    ListedFact(
        *("exception.stacktrace", Frame()),
        f"Where in the package it came from: at most {MAX_FRAMES} frames, those of other code as one word.",
        destinations=("crash",),
    ),
)


@lru_cache(maxsize=32)
def metrics(target: str, declared: Declared | None = None) -> tuple[ListedMetric, ...]:
    """Return the metrics for a destination, with a package's declarations filled in."""
    return tuple(
        replace(entry, attributes={name: filled(rule, declared) for name, rule in entry.attributes.items()})
        for entry in METRICS
        if target in entry.destinations
    )


@lru_cache(maxsize=32)
def facts(target: str, declared: Declared | None = None) -> dict[str, Rule]:
    """Return the facts for a destination, with a package's declarations and the user's own words filled in."""
    listed = {entry.name: filled(entry.rule_for(target), declared) for entry in RESOURCE if target in entry.destinations}
    return {**listed, **{name: Words((value,)) for name, value in said(target, declared).items()}}


def said(target: str, declared: Declared | None) -> dict[str, str]:
    """Return the user's own words for this destination: Google, and a package's author, get none."""
    return dict(declared.said) if declared is not None and target in OWN_DESTINATIONS else {}


def sendable_facts(known: Mapping[str, Any], target: str, declared: Declared | None = None) -> dict[str, Any]:
    """Return the listed ones of these facts as they may be sent, in the list's order, and the user's own words."""
    told = {**known, **said(target, declared)}
    sendable = {name: coarse(rule, told[name]) for name, rule in facts(target, declared).items() if name in told}
    return {name: value for name, value in sendable.items() if value is not None}


@lru_cache(maxsize=32)
def crash(declared: Declared | None = None) -> dict[str, Rule]:
    """Return the parts of a crash report, with a package's declarations filled in."""
    return {entry.name: filled(entry.rule, declared) for entry in CRASH}
