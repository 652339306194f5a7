"""The rules of the verdict, as a table: each cause with its condition, its threshold, where that comes from, and the advice.

`findings` applies them; ``docs/causes.md`` is made from them.
"""

from __future__ import annotations

from dataclasses import dataclass

NOTABLE = 0.20  # of the loop's time: a smaller loss is no finding
CERTAIN_WAIT = 0.30  # of the loop's time: waiting for data, of which each loop has some, then stands first beside useful work
SMALL_GAPS = 0.75  # of the host's own time in small gaps, which each loop has, too
WAITED_FOR = NOTABLE  # that ranks wait for one of them
COMPUTE_SHARE = 0.60  # of the loop's time in forward, loss, backward and optimizer: then the work itself is the limit
THROTTLED_SHARE = 0.10
HELD_DOWN_SHARE = 0.10
MEMORY_SHARE = 0.95
VALIDATION_SHARE = 0.30
START_UP_NS = 5_000_000_000  # a shorter one is nobody's complaint
START_UP_SHARE = 0.20  # of the run
NOTABLE_NS = 100_000_000  # beside a loop that mostly works, a loss below that is none worth a change
WORTH_SAYING = 0.05  # of a stage's time: less of a wait is no news
OPERATION_NS = 16_000  # of forward and loss, for each operation: below that, fixed costs are most of it
OPERATION_OF_SMALL_BATCH_NS = 45_000  # for at most `SMALL_BATCH` samples: a slow machine takes 29 us for the known loop
SMALL_BATCH = 8
GROWTH_FIT = 0.9
GROWTH_BYTES = 64 * 2**20
GROWTH_PER_STEP = 2**20
TAIL_PART = 0.5  # of a loss: if so much of it lies in few slow steps, they are the finding
READ_BYTES = 64 * 2**20  # from disks: less explains no wait
MAJOR_FAULTS = 1_000
IDLE_WORKER = 0.50
MIN_STEPS = 8


@dataclass(frozen=True)
class Rule:
    """One cause.

    Attributes:
        cause: its word in a finding.
        kind: the verdict's kind if it stands first.
        condition: the measurement it needs.
        threshold: from which value on.
        source: where the threshold comes from.
        advice: the next step.
    """

    cause: str
    kind: str
    condition: str
    threshold: str
    source: str
    advice: str


OURS = "no healthy known loop reaches it"
RULES = (
    Rule(
        *("throttled", "throttled", "time for which the CPU quota, heat or a power brake held the run back"),
        *("10 % of the run", "NVML's throttle reasons; a quota is never meant to be hit"),
        "raise the quota, or use fewer threads and workers; cool the card",
    ),
    Rule(
        *("memory", "memory-bound", "the working set beside the container's memory limit"),
        *("95 % of the limit", "the kernel reclaims near the limit, and then kills"),
        "raise the limit, or lower the batch size or the number of workers",
    ),
    Rule(
        *("ranks", "rank-bound", "one rank is behind in a phase, and the others have as much more time where they meet"),
        *("20 % of the loop", "`report/stragglers.py`: over all epochs it is the same rank and the same phase"),
        "look at that rank's phase: its data, its machine, its card",
    ),
    Rule(
        *("starved", "starved", "the loop's thread was ready to run, and other threads or programs had the CPUs"),
        *("20 % of the loop", "/proc/<pid>/schedstat; " + OURS),
        "free CPUs: fewer programs, threads or workers, or more cores",
    ),
    Rule(
        *("collection", "collection-bound", "time for which Python's garbage collector stopped the loop"),
        *("20 % of the loop", OURS),
        "collect less often: gc.freeze() after the set-up, a higher gc.set_threshold, or gc.collect() every N steps alone",
    ),
    Rule(
        *("compilation", "host-bound", "time in compilations of torch.compile"),
        *("20 % of the loop", OURS),
        "compile once: constant shapes or dynamic=True, and a cache that is kept between runs",
    ),
    Rule(
        *("data_wait", "input-bound", "time inside the loader's iterator"),
        *("30 % of the loop, or 20 % if compute has less than 60 %", "30 %: the limit of the first version; " + OURS),
        "let workers load (num_workers), or make an item cheaper",
    ),
    Rule(
        *("loader_start", "input-bound", "time from iter(loader) to the first batch, of a loader with workers"),
        *("20 % of the loop", OURS),
        "persistent_workers=True, or fewer workers",
    ),
    Rule(
        *("transfer", "transfer-bound", "time in the phase transfer"),
        *("20 % of the loop", OURS),
        "pin_memory=True and non_blocking=True",
    ),
    Rule(
        *("checkpoint", "checkpoint-bound", "time in torch.save, or the phase checkpoint"),
        *("20 % of the loop", OURS),
        "save less often, or in the background",
    ),
    Rule(
        *("tail", "host-bound", "a phase's loss lies for the most part in steps slower than three times the median"),
        *("20 % of the loop", OURS),
        "look at what those steps do besides: every N-th step, one epoch, a slow file",
    ),
    Rule(
        *(
            "growth",
            "memory-bound",
            "the peak of memory grows along a line (R² of 0.9), by 1 MiB a step or more, and host time",
        ),
        *("64 MiB in all, and 20 % of the loop", OURS),
        "keep less: what a step makes must be free when the step ends",
    ),
    Rule(
        *("host", "host-bound", "time of the loop's own code between torch's phases, and in phases of its own"),
        *("20 % of the loop", OURS),
        "do it less often, or beside the loop",
    ),
    Rule(
        *("validation", "compute-bound", "time of validation beside training"),
        *("30 % of the loop", OURS),
        "validate less often, or on a part of the data",
    ),
    Rule(
        *(
            "launch",
            "launch-bound",
            "compute is the most of the loop, and an operation of it takes little more than its fixed cost",
        ),
        *(
            "16 us of forward and loss for each operation, 45 us with at most 8 samples a step",
            "between small nets and a batch of 64 in `benchmarks/bench_causes.py`",
        ),
        "larger batches, or fewer and larger operations: torch.compile, foreach or fused optimizers",
    ),
    Rule(
        *("compute", "compute-bound", "time in forward, loss, backward and optimizer"),
        *("60 % of the loop", "what is left cannot speed it up by more than 2.5 times"),
        "make the work smaller or faster: mixed precision, torch.compile, a faster machine",
    ),
    Rule(
        *("start-up", "host-bound", "time before the first epoch, without imports"),
        *("20 % of the run and 5 s; never first while the loop itself has a finding", OURS),
        "keep what is prepared: a cache on disk, lazy loading",
    ),
)
BY_CAUSE = {rule.cause: rule for rule in RULES}


def markdown() -> str:
    """Return the table for the documentation."""
    head = ["cause", "verdict", "condition", "threshold", "source of the threshold", "next step"]
    rows = [[rule.cause, rule.kind, rule.condition, rule.threshold, rule.source, rule.advice] for rule in RULES]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"
