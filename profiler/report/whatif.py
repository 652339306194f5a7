"""The time that a run would have taken without a cause: the counterfactuals of the verdict, each with an interval.

The interval comes from the run's slices. They are blocks of neighbouring steps, so steps that are alike do not count as many.
It is that of a ratio of sums (W. G. Cochran, Sampling Techniques, 3rd ed., 6.4), with Student's t for the few slices of a short
run. Where work overlaps (workers beside the loop, a GPU beside the host), a saving is a bound, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from profiler.records.causes import COLLECTION, COMPILATION, STARVED
from profiler.records.histogram import NS
from profiler.records.student import student
from profiler.report.accounts import CHECKPOINT, DATA_WAIT, HOST, OTHER, Accounts
from profiler.report.stragglers import rank_table
from profiler.report.tails import tail_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run
    from profiler.records.slices import Slice
    from profiler.report.tails import Tail


LEAST = 0.001  # of the loop: a smaller saving is no row
FEWEST_SLICES = 3
# Between long waits the rest of a step runs with cold caches, and at a lower clock. Without the waits it takes down to 0.4
# times as long: `python benchmarks/bench_proofs.py` measures it.
MOSTLY_SAVED, WARM = 0.5, 0.4
Z = 1.96  # of the normal distribution, for 95 %
LOGGING_CALLS = ("print", "fsync", "flush", "write", "info", "debug", "warning", "log", "add_scalar", "writelines")


@dataclass(frozen=True)
class WhatIf:
    """One counterfactual.

    Attributes:
        key: its word; see `whatifs`.
        what: the difference, in words.
        saved: the share of the loop's time that would be saved.
        low: the lower end of its 95 % interval, or None if the run has too few slices.
        high: the upper end.
        now_s: an epoch's (or the loop's) time now.
        bound: why the saving is at most that, or "".
    """

    key: str
    what: str
    saved: float
    low: float | None
    high: float | None
    now_s: float
    bound: str = ""

    @property
    def then_s(self) -> float:
        """The time (s) that it would take instead."""
        return self.now_s * (1 - self.saved)

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in a document."""
        told: dict[str, Any] = {"key": self.key, "what": self.what, "saved": self.saved}
        if self.low is not None and self.high is not None:
            told["interval"] = [self.low, self.high]
        told.update(now_s=self.now_s, then_s=self.then_s)
        return {**told, "bound": self.bound} if self.bound else told


def whatifs(run: Run, whole: EpochRecord | None = None) -> list[WhatIf]:
    """Return the counterfactuals of a run, the one that saves most first. The first step of each stage is left out.

    Args:
        run: the run.
        whole: the result of ``run.whole()``, if the caller has it.
    """
    whole = run.whole() if whole is None else whole
    accounts = Accounts(run, whole)
    cold_ns = sum(stage.step.cold.sum_ns for stage in whole.stages.values())
    loop_ns = accounts.loop_ns - cold_ns
    if loop_ns <= 0 or not whole.stages:
        return []

    def of_cause(cause: str) -> float:
        return accounts.steady(lambda account: account.cause == cause)

    def of_phase(cause: str) -> float:
        return accounts.steady(lambda account: cause in (account.cause, account.phase))

    tails = {name: tail for name, stage in whole.stages.items() if (tail := tail_of(run, stage)) is not None}
    waited = round(sum(wait["waited_s"] for wait in rank_table(run).get("waits", ())) * NS)
    logging = of_cause(HOST) * _logging_share(accounts)
    rows: list[tuple[str, str, float, Callable[[Slice], float] | None]] = [
        ("data_wait", "no waiting for data", of_phase(DATA_WAIT), _waited_in),
        ("ranks", "the slowest rank as fast as the median", waited, None),
        ("collection", "no garbage collections", of_cause(COLLECTION), _costs_in(COLLECTION)),
        ("compilation", "no compilations", of_cause(COMPILATION), _costs_in(COMPILATION)),
        ("starved", "a free CPU whenever the loop was ready", of_cause(STARVED), _costs_in(STARVED)),
        ("host", "none of the loop's own code", of_cause(HOST), _own_code_in(accounts)),
        ("tail", "no step above three times the median", sum(t.excess_ns for t in tails.values()), _tail_in(tails)),
        ("checkpoint", "checkpoints in the background", of_phase(CHECKPOINT), _saved_in),
        ("logging", "nothing printed, written or synced to disk in the loop", logging, None),
    ]
    parts = len(run.epochs) or 1
    found = []
    for key, what, saved_ns, of_slice in rows:
        share = min(max(saved_ns / loop_ns, 0.0), 1.0)
        if share >= LEAST:
            low, high = (None, None) if of_slice is None else interval(run.slices, of_slice, share)
            if key == "logging":
                low, high = (of_cause(HOST) / loop_ns * end for end in _logging_ends(accounts))
            if high is not None:
                high = highest(share, high)
            found.append(WhatIf(key, what, share, low, high, loop_ns / parts / NS, _bound(key, run, whole)))
    return sorted(found, key=lambda one: -one.saved)


def highest(share: float, high: float) -> float:
    """Return the upper end of a saving's interval: without long waits, the rest of a step takes less time, too."""
    return 1 - (1 - high) * WARM if share >= MOSTLY_SAVED else high


def interval(slices: list[Slice], saved_in: Callable[[Slice], float], share: float) -> tuple[float | None, float | None]:
    """Return the 95 % interval around a share of the loop's time, from how it differs between the slices."""
    blocks = [(saved_in(one), float(_loop_of(one))) for one in slices if _loop_of(one) > 0]
    whole = sum(time for _, time in blocks)
    if len(blocks) < FEWEST_SLICES or not whole:
        return None, None
    ratio = sum(saved for saved, _ in blocks) / whole
    squares = sum((saved - ratio * time) ** 2 for saved, time in blocks)
    count = len(blocks)
    error = student(count - 1) * math.sqrt(squares * count / (count - 1)) / whole
    return max(share - error, 0.0), min(share + error, 1.0)


def _loop_of(one: Slice) -> int:
    return sum(stage.duration_ns for stage in one.stages.values()) + sum(one.phases.values())


def _waited_in(one: Slice) -> float:
    return float(sum(stage.phases.get(DATA_WAIT, 0) for stage in one.stages.values()))


def _costs_in(cause: str) -> Callable[[Slice], float]:
    return lambda one: float(sum(ns for (found, _), ns in one.costs.items() if found == cause))


def _own_code_in(accounts: Accounts) -> Callable[[Slice], float]:
    places = {(one.stage, one.phase) for one in accounts.of(HOST)}

    def spent(one: Slice) -> float:
        found = 0
        for name, stage in one.stages.items():
            found += sum(ns for phase, ns in stage.phases.items() if (name, phase) in places)
            found += max(stage.duration_ns - sum(stage.phases.values()), 0) if (name, OTHER) in places else 0
        return float(found + sum(ns for phase, ns in one.phases.items() if ("", phase) in places))

    return spent


def _saved_in(one: Slice) -> float:
    return float(one.phases.get(CHECKPOINT, 0) + sum(stage.phases.get(CHECKPOINT, 0) for stage in one.stages.values()))


def _tail_in(tails: dict[str, Tail]) -> Callable[[Slice], float]:
    def excess(one: Slice) -> float:
        steps = [(stage, tails[name].usual_ns) for name, stage in one.stages.items() if name in tails]
        return float(sum(max(stage.step_ns - stage.steps * usual, 0) for stage, usual in steps))

    return excess


def _logging_share(accounts: Accounts) -> float:
    """Return the share of the host's own time in which its lines were printing or writing, by their samples."""
    writing, whole = _logging_samples(accounts)
    return writing / whole if whole else 0.0


def _logging_ends(accounts: Accounts) -> tuple[float, float]:
    """Return the ends of that share's 95 % interval, after E. B. Wilson (1927)."""
    writing, whole = _logging_samples(accounts)
    share, weight = writing / whole, Z * Z / whole
    middle = (share + weight / 2) / (1 + weight)
    error = Z / (1 + weight) * math.sqrt(share * (1 - share) / whole + weight / (4 * whole))
    return max(middle - error, 0.0), min(middle + error, 1.0)


def _logging_samples(accounts: Accounts) -> tuple[int, int]:
    """Return how many samples of the host's own time found it printing or writing, and how many there are."""
    places = {(one.stage, "" if one.phase in ("other", "between passes") else one.phase) for one in accounts.of(HOST)}
    inside = {line: samples for line, samples in accounts.lines.items() if (line.stage, line.phase) in places}
    whole = sum(inside.values())
    writing = sum(samples for line, samples in inside.items() if line.called.rpartition(".")[2] in LOGGING_CALLS)
    return writing, whole


def _bound(key: str, run: Run, whole: EpochRecord) -> str:
    """Say why a saving is a bound, if other work goes on beside it."""
    if key in ("data_wait", "checkpoint") and any(stage.device_share is not None for stage in whole.stages.values()):
        return "at most: the GPU's own work may then be the limit"
    if key == "data_wait" and any(facts.workers for facts in run.loaders.values()):
        return "at most: the workers share the CPUs with the loop"
    if key == "checkpoint":
        return "at most: a copy to memory stays, and the writing takes CPU time"
    if key == "logging":
        return "by samples of the loop's lines"
    return ""
