"""The plan: which cases a machine can measure, in which order and shape. Plain data; torch is not imported.

Shapes depend only on the kind of device, its memory or cores, and ``--quick``. So one machine always gets the same cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from profiler.errors import ArgumentValueError, did_you_mean

SUITES = ("limits", "models", "loader")
NETS = ("convnet", "resnet50", "vit", "gpt")
LIMITS = ("matmul", "memory", "h2d_pinned", "h2d_pageable", "d2h_pinned", "launch", "all_reduce")
STAGES = ("train", "val", "inference")
DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16")
NARROW = ("tf32", "bfloat16", "float16")
MIN_ROUNDS = 3
WORTH = 1.2  # a narrower type is used for the models where its matrix product is so much faster than float32's
MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """The devices and types that a process with torch has found.

    Attributes:
        dtypes: by device ("cpu", "cuda:0", "mps"), the types of its matrix products; each a word of `DTYPES`.
        memory: by device, in bytes; a device without that information is missing.
        threads: torch's threads on the CPU.
        facts: versions, for the run's facts.
    """

    dtypes: Mapping[str, tuple[str, ...]]
    memory: Mapping[str, int]
    threads: int
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str:
        return next((device for device in self.dtypes if device != "cpu"), "cpu")


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        suite: one of `SUITES`, or "yours".
        name: one of `LIMITS` or `NETS`, "loader", or "module:factory".
        shape: its size in words; two results are compared only if it is the same.
        size: the numbers behind the shape.
        group: the cases of a group are measured in turns, round by round.
        compiled: compiled by torch.compile.
    """

    suite: str
    name: str
    device: str
    group: str
    stage: str | None = None
    dtype: str | None = None
    batch: int | None = None
    workers: int | None = None
    shape: str = ""
    size: tuple[int, ...] = ()
    compiled: bool = False

    def __str__(self) -> str:
        words = [self.name, self.stage, self.dtype, None if self.workers is None else f"{self.workers} workers"]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Method:
    """How long and how often to measure; all times in seconds."""

    block_s: float  # a block of calls takes about so long
    rounds: int  # blocks of a case in each launch
    launches: int  # fresh processes that a case is measured in
    warm_up_s: float  # at most, until the times are stable
    stable: float  # times are, when three in a row differ by no more than this share
    energy_s: float  # for so long a case runs on, where the device counts its energy
    limit_s: float  # a case may take so long in a launch
    quick: bool = False
    budget_s: float | None = None  # rounds beyond `MIN_ROUNDS` are left out where they would take longer than this in all


QUICK = Method(0.05, rounds=6, launches=1, warm_up_s=0.3, stable=0.1, energy_s=0.5, limit_s=60.0, quick=True, budget_s=22.0)
FULL = Method(0.2, rounds=5, launches=3, warm_up_s=5.0, stable=0.05, energy_s=2.0, limit_s=300.0)
COMPILED_LIMIT_S = 900.0


def chosen(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names on the command line: suites and names of cases, and the user's factories.

    Raises:
        ArgumentValueError: a word is neither.
    """
    known = (*SUITES, *LIMITS, *NETS)
    yours = [word for word in wanted if ":" in word]
    for word in yours:
        module, _, function = word.partition(":")
        if module.endswith(".py") or not all(part.isidentifier() for part in (*module.split("."), function)):
            hint = f" Perhaps {module.removesuffix('.py')}:{function}?" if module.endswith(".py") else ""
            raise ArgumentValueError(f"a model of yours is named as package.module:factory, not {word!r}.{hint}")
    for word in wanted:
        if word not in known and ":" not in word:
            hint = did_you_mean(word, known)
            raise ArgumentValueError(
                f"there is no suite {word!r}.{hint} There are {', '.join(SUITES)}, their cases ({', '.join((*LIMITS, *NETS))}),"
                " and package.module:factory for a model of yours."
            )
    return ([word for word in wanted if ":" not in word] if wanted else list(SUITES)), yours


def device_of(machine: Machine, wanted: str | None) -> str:
    """Return the device to measure.

    Raises:
        ArgumentValueError: torch has no device of that name here.
    """
    if wanted is None:
        return machine.best
    names = {device: device for device in machine.dtypes} | {"cuda": next((d for d in machine.dtypes if "cuda" in d), "")}
    if not names.get(wanted):
        raise ArgumentValueError(f"torch has no device {wanted!r} here. There is {', '.join(machine.dtypes)}.")
    return names[wanted]


def check_names(dtypes: Iterable[str]) -> None:
    """Check that all types are known.

    Raises:
        ArgumentValueError: one is not.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            hint = did_you_mean(dtype, DTYPES)
            raise ArgumentValueError(f"there is no dtype {dtype!r}.{hint} There are {', '.join(DTYPES)}.")


def check_dtypes(machine: Machine, device: str, wanted: Iterable[str]) -> None:
    """Check that the device can multiply matrices in these types.

    Raises:
        ArgumentValueError: it cannot in one of them.
    """
    for dtype in wanted:
        if dtype not in machine.dtypes[device]:
            raise ArgumentValueError(f"{device} has no {dtype}. It has {', '.join(machine.dtypes[device])}.")


def check_there(device: str, names: Iterable[str], ranks: int) -> None:
    """Check that this machine and process have the named limits.

    Raises:
        ArgumentValueError: one is missing.
    """
    for name in names:
        if name.startswith(("h2d", "d2h")) and device == "cpu":
            raise ArgumentValueError(f"{name} copies between a GPU and its host, and there is no GPU")
        if name == "all_reduce" and ranks < 2:
            raise ArgumentValueError("all_reduce needs ranks: torchrun --nproc-per-node 2 -m profiler.cli bench all_reduce")


def rank_device(machine: Machine, wanted: str | None, local_rank: int) -> str:
    """Return the device of a rank's all-reduce: its own GPU if CUDA is used, else the host."""
    return f"cuda:{local_rank}" if device_of(machine, wanted).startswith("cuda") else "cpu"


# ---- the suites ----------------------------------------------------------------------------------------------------


def limits(machine: Machine, device: str, dtypes: Sequence[str], quick: bool, ranks: int) -> list[Case]:
    """Return the cases of the limits. They are one group, so that all are measured over the same time."""
    found = [matmul(machine, device, dtype) for dtype in dtypes or _limit_dtypes(machine, device, quick)]
    found += [memory(machine, place) for place in dict.fromkeys((device, "cpu"))]
    if device != "cpu":
        size = 16 * MIB if quick else 64 * MIB
        found += [
            Case("limits", name, device, "limits", shape=f"{size // MIB} MiB", size=(size,))
            for name in ("h2d_pinned", "h2d_pageable", "d2h_pinned")
            if device.startswith("cuda") or "pinned" not in name
        ]
    found.append(Case("limits", "launch", device, "limits", shape="1 element", size=(1,)))
    if ranks > 1:
        found.append(all_reduce(rank_device(machine, device, 0), quick, ranks))
    return found


def all_reduce(device: str, quick: bool, ranks: int) -> Case:
    """Return the case of an all-reduce of this many ranks."""
    size = 8 * MIB if quick else 64 * MIB
    return Case("limits", "all_reduce", device, "ranks", shape=f"{size // MIB} MiB, {ranks} ranks", size=(size, ranks))


def matmul(machine: Machine, device: str, dtype: str, group: str = "limits") -> Case:
    """Return the case of square matrices large enough to keep every core or multiprocessor busy."""
    if device == "cpu":
        side = 1024 if machine.threads <= 4 else 2048 if machine.threads <= 16 else 4096
    else:
        side = 8192 if machine.memory.get(device, 0) >= 12 * GIB else 4096
    return Case("limits", "matmul", device, group, dtype=dtype, shape=f"{side} x {side}", size=(side,))


def memory(machine: Machine, device: str, group: str = "limits") -> Case:
    """Return the case of three arrays, each far larger than the caches."""
    size = 256 * MIB if machine.memory.get(device, 0) >= 6 * GIB else 64 * MIB
    return Case("limits", "memory", device, group, shape=f"3 x {size // MIB} MiB", size=(size,))


def models(
    machine: Machine, device: str, nets: Iterable[str], dtypes: Sequence[str], quick: bool, batch: int | None
) -> list[Case]:
    """Return training, validation and inference of each net. Inference takes one sample at a time, like a service."""
    found = []
    for net in nets:
        shape, size, usual = _net(machine, device, net, quick)
        for dtype in dtypes:
            for stage in STAGES:
                samples = batch or (1 if stage == "inference" else usual)
                found.append(Case("models", net, device, f"{net} {dtype}", stage, dtype, samples, None, shape, size))
    return found


def yours(device: str, factory: str, dtypes: Sequence[str], batch: int | None) -> list[Case]:
    """Return the cases of a user's factory."""
    return [
        Case("yours", factory, device, f"{factory} {dtype}", stage, dtype, batch or (1 if stage == "inference" else 8))
        for dtype in dtypes or ("float32",)
        for stage in STAGES
    ]


def loader(machine: Machine, quick: bool, batch: int | None) -> list[Case]:
    """Return the cases of a data set whose items take some work, read by more and more workers."""
    cores = max(machine.threads, 1)
    counts = (0, min(2, cores)) if quick else (0, 1, *(n for n in (2, 4, 8, 16) if n <= cores))
    return [
        Case("loader", "loader", "cpu", "loader", None, None, batch or 32, workers, "3 x 256 x 256 to 224 x 224", (256, 224))
        for workers in counts
    ]


def with_references(machine: Machine, cases: Sequence[Case]) -> list[Case]:
    """Return the cases with their limits beside them, so that both are measured in the same rounds."""
    groups: dict[str, Case] = {case.group: case for case in cases if case.suite in ("models", "yours")}
    found = [
        reference
        for group, case in groups.items()
        for reference in (
            matmul(machine, case.device, case.dtype or "float32", group),
            memory(machine, case.device, group),
        )
    ]
    return [*found, *cases]


def model_dtypes(speeds: Mapping[str, float]) -> list[str]:
    """Return float32, and each narrower type whose matrix product is faster here.

    Args:
        speeds: the speed of the matrix product in FLOP/s, by dtype.
    """
    base = speeds.get("float32")
    if base is None:
        return ["float32"]
    return ["float32", *(dtype for dtype in NARROW if speeds.get(dtype, 0.0) >= WORTH * base)]


def groups(cases: Iterable[Case]) -> Iterator[list[Case]]:
    """Yield the groups of cases that are measured in turns."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    yield from found.values()


def halved(case: Case) -> Case | None:
    """Return the case with half the batch, or None if it cannot be halved."""
    return replace(case, batch=case.batch // 2) if case.batch and case.batch > 1 else None


def _limit_dtypes(machine: Machine, device: str, quick: bool) -> list[str]:
    """Return the types of the limits: on a CPU with ``--quick``, float32 alone."""
    return [dtype for dtype in machine.dtypes[device] if not quick or device != "cpu" or dtype == "float32"]


def _net(machine: Machine, device: str, net: str, quick: bool) -> tuple[str, tuple[int, ...], int]:
    """Return a net's shape in words, its numbers, and the batch of training and validation."""
    memory = machine.memory.get(device, 0)
    tier = 0 if device == "cpu" else 1 if memory < 12 * GIB else 2 if memory < 24 * GIB else 3
    small = tier == 0 and quick
    if net == "convnet":
        return "LeNet-5, 1 x 32 x 32", (), (64, 256, 256, 256)[tier]
    if net == "resnet50":
        return "ResNet-50, 3 x 224 x 224", (), 1 if small else (8, 8, 32, 64)[tier]
    if net == "vit":
        letter, width, heads = ("Ti", 192, 3) if small else ("S", 384, 6) if tier == 0 else ("B", 768, 12)
        return f"ViT-{letter}/16, 3 x 224 x 224", (width, heads), 2 if small else (8, 8, 32, 64)[tier]
    width, heads, tokens = (768, 12, 256) if small else (768, 12, 1024) if tier < 2 else (4096, 32, 2048)
    label = "GPT-2" if width == 768 else "GPT-3 6.7B"
    return f"block of {label}, {tokens} x {width}", (width, heads, tokens), (1, 8, 2, 4)[tier]
