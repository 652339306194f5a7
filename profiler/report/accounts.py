"""Where the time of a run went, by cause: each moment is in one account, and the accounts add up to the run.

A phase's time is split by the costs that were measured inside it (`records.causes`). The rest goes to the cause that the
phase itself stands for: waiting for data, a checkpoint, useful work, or the host's own time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass

from profiler.records.causes import (
    COLLECTION,
    COMPILATION,
    IMPORTS,
    LOADER_START,
    ON_CPU,
    START_UP,
    STARVED,
    CausePlace,
    Line,
    add_cost,
    merge_lines,
)
from profiler.records.histogram import NS
from profiler.records.timing import GAPS, StageRecord, Timing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.causes import Costs, Lines
    from profiler.records.run import EpochRecord, Run
    from profiler.records.timing import Path


USEFUL, DATA_WAIT, TRANSFER, HOST, CHECKPOINT, OUTSIDE = "useful", "data_wait", "transfer", "host", "checkpoint", "outside"
UNNAMED = "unnamed"  # in no phase of a loop that names none, and without samples that show what it is
OTHER = "other"  # the time of a stage in no phase
BETWEEN = "between passes"  # the time of an epoch in no stage and no phase
PARTS = ("forward", "backward", "optimizer")  # of the computing; a loop that names some of them has the others in no phase
COMPUTE_PHASES = ("forward", "loss", "backward", "optimizer")
CAUSE_OF_PHASE = {
    "data_wait": DATA_WAIT,
    "transfer": TRANSFER,
    "checkpoint": CHECKPOINT,
    **dict.fromkeys(COMPUTE_PHASES, USEFUL),
}
INSIDE = (COMPILATION, COLLECTION, STARVED)  # costs that take time of a phase, in the order in which they are taken
LOSS_GAP = "after forward"  # in a loop that names nothing, the loss is computed there
COMPUTING = ("torch.nn.modules.", "torch.nn.functional.", "torch.optim.", "torch._tensor.", "torch.autograd.", "torch._dynamo.")
SAVING = ("torch.serialization.",)
LOADING = ("torch.utils.data.",)  # a loader that was not handed over
FEWEST_SAMPLES = 8  # below this, samples say nothing about how a phase is used
SHORTEST_NS = NS  # of a phase in all: the scheduler's counts are shared out by samples, and those are few before
MOSTLY = 0.6  # of the samples: then a phase without a known meaning is torch's computing


@dataclass(frozen=True)
class Account:
    """The time (ns) that one cause took in one phase of a stage; the stage is "" outside stages."""

    cause: str
    stage: str
    phase: str
    ns: int


class Accounts:
    """The accounts of a run.

    Args:
        run: the run.
        whole: its sums.

    Attributes:
        all: every account, those of no time left out.
        loop_ns: the time of the loop: without the start-up and the time outside epochs, stages and phases.
    """

    def __init__(self, run: Run, whole: EpochRecord) -> None:
        self._run = run
        self._whole = whole
        self.costs = _placed(whole.costs, whole)
        self.lines = _placed_lines(whole.lines, whole)
        self._samples: Counter[tuple[str, str]] = Counter()  # by stage and phase
        for line, samples in self.lines.items():
            self._samples[line.stage, line.phase] += samples
        self._found_shares: dict[tuple[str, str, tuple[str, ...]], float] = {}
        self.all: list[Account] = []
        self._add_part(whole)
        self._add("", BETWEEN, _between(run, whole), HOST)
        self.loop_ns = sum(account.ns for account in self.all)
        start_up = _start_up(run)
        rest = run.duration_ns - self.loop_ns - start_up
        self.all += [Account(START_UP, "", "", start_up)] if start_up > 0 else []
        self.all += [Account(OUTSIDE, "", "", rest)] if rest > 0 else []

    def of_part(self, part: EpochRecord, costs: Costs) -> list[Account]:
        """Return the accounts of an epoch's stages and phases. All samples of the run decide the cause of a phase.

        Args:
            part: the epoch.
            costs: those that are its own.
        """
        own = copy(self)
        own.all, own.costs = [], _placed(costs, self._whole)
        own._add_part(part)
        return own.all

    def of(self, *causes: str) -> list[Account]:
        """Return the accounts of these causes, the longest first."""
        return sorted((one for one in self.all if one.cause in causes), key=lambda one: -one.ns)

    def total(self, *causes: str) -> int:
        """Return the time (ns) of these causes."""
        return sum(account.ns for account in self.all if account.cause in causes)

    def steady(self, is_gone: Callable[[Account], bool]) -> float:
        """Return the time (ns) of some accounts, without the run's first step of each stage.

        Of a phase, a cause has the same share in that step as in the others; but compilation comes first.
        """
        found = 0.0
        for account in filter(is_gone, self.all):
            stage = self._whole.stages.get(account.stage)
            timing = None if stage is None else stage.phases.get((account.phase,))
            if timing is None or not timing.total_ns:
                found += account.ns
            elif account.cause == COMPILATION:
                found += max(account.ns - timing.cold.sum_ns, 0)
            else:
                found += account.ns * timing.steady.sum_ns / timing.total_ns
        return found

    def by_cause(self) -> dict[str, int]:
        """Return the time (ns) of each cause; together, that of the run."""
        found: dict[str, int] = {}
        for account in self.all:
            found[account.cause] = found.get(account.cause, 0) + account.ns
        return found

    def busiest_line(self, places: Iterable[tuple[str, str]]) -> tuple[Line, float] | None:
        """Return the line that most samples in these stages and phases found, and its share of them."""
        wanted = {_place(stage, phase) for stage, phase in places}
        by_line: Counter[tuple[str, int, str]] = Counter()
        calls: dict[tuple[str, int, str], Counter[str]] = {}
        for line, samples in self.lines.items():
            if (line.stage, line.phase) in wanted:
                by_line[line[2:5]] += samples
                calls.setdefault(line[2:5], Counter())[line.called] += samples
        whole = by_line.total()
        del by_line["", 0, ""]  # the samples of all other lines
        if not by_line:
            return None
        ((best, samples),) = by_line.most_common(1)
        called = max((name for name in calls[best] if name), key=lambda name: calls[best][name], default="")
        return Line("", "", *best, called), samples / whole

    def time_at(self, line: Line) -> int:
        """Return the time (ns) of a line in all phases of the loop: by its samples."""
        inside: Counter[tuple[str, str]] = Counter()
        for other, samples in self.lines.items():
            if other[2:5] == line[2:5]:
                inside[other.stage, other.phase] += samples
        return sum(round(self._spent_in({place}) * samples / self._samples[place]) for place, samples in inside.items())

    def on_cpu_share(self, places: Iterable[tuple[str, str]]) -> float | None:
        """Return the share of these phases' time in which the loop's thread was on a CPU.

        None if nobody counted, or if other phases have much of the loop: the scheduler's times are shared out by samples, so
        each phase gets some of those of its neighbours.
        """
        wanted = {_place(stage, phase) for stage, phase in places}
        on_cpu, starved = (
            sum(cost.ns for place, cost in self.costs.items() if place.cause == cause and place[1:] in wanted)
            for cause in (ON_CPU, STARVED)
        )
        whole = self._spent_in(wanted)
        if not on_cpu or whole < max(SHORTEST_NS, MOSTLY * self.loop_ns):
            return None
        return min(on_cpu / max(whole - starved, on_cpu), 1.0)

    def cost(self, cause: str) -> tuple[int, int]:
        """Return the time (ns) and the number of a cost in the loop."""
        found = [cost for place, cost in self.costs.items() if place.cause == cause and place.phase not in (START_UP, IMPORTS)]
        return sum(cost.ns for cost in found), sum(cost.times for cost in found)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _spent_in(self, places: set[tuple[str, str]]) -> int:
        """Return the time (ns) of the loop in these places."""
        of_loop = (one for one in self.all if one.cause not in (START_UP, OUTSIDE))
        return sum(one.ns for one in of_loop if _place(one.stage, one.phase) in places)

    def _add_part(self, part: EpochRecord) -> None:
        for stage in part.stages.values():
            self._add_stage(stage)
        for phase, timing in _top_level(part.phases):
            self._add_phase("", phase, timing.total_ns, self._cause("", phase))

    def _add_stage(self, stage: StageRecord) -> None:
        # Calls that overlap have more phase time than time passes: the accounts are of the time that passes.
        share = stage.elapsed_ns / stage.duration_ns if stage.duration_ns else 0.0
        for phase, timing in [*_top_level(stage.phases), (OTHER, None)]:
            total = stage.other_ns if timing is None else timing.total_ns
            if total > 0:
                self._add_phase(stage.stage, phase, round(total * share), self._cause(stage.stage, phase))

    def _add_phase(self, stage: str, phase: str, left: int, cause: str) -> None:
        """Share out the time (ns) of a phase: first to the costs inside it, then as samples show, and the rest to its cause."""

        def give(ns: int, to: str) -> None:
            nonlocal left
            given = min(ns, left)
            self._add(stage, phase, given, to)
            left -= given

        for inside in INSIDE if self.costs else ():
            cost = self.costs.get(CausePlace(inside, *_place(stage, phase)))
            give(0 if cost is None else cost.ns, inside)
        if cause == DATA_WAIT:
            give(self._loader_start(stage), LOADER_START)
        if cause == HOST:
            give(round(left * self._share_in(stage, phase, SAVING)), CHECKPOINT)
            give(round(left * self._share_in(stage, phase, LOADING)), DATA_WAIT)
            if self._is_unnamed(stage, phase):
                give(round(left * self._computing_share(stage, phase)), USEFUL)
                cause = HOST if self._samples_in(stage, phase) else UNNAMED
        give(left, cause)

    def _loader_start(self, stage: str) -> int:
        """Return how long a stage's loaders took to start, without the making of their first batches."""
        cost = self.costs.get(CausePlace(LOADER_START, stage, DATA_WAIT))
        record, facts = self._whole.stages.get(stage), self._run.loaders.get(stage)
        if cost is None or record is None or facts is None or not record.step.steady.count:
            return 0
        # While the loop waits for workers that work beside each other, one of them takes as many steps for a batch.
        batch_ns = facts.workers * record.step.steady.sum_ns // record.step.steady.count
        return max(cost.ns - cost.times * batch_ns, 0)

    def _add(self, stage: str, phase: str, ns: int, cause: str) -> None:
        if ns > 0:
            self.all.append(Account(cause, stage, phase, ns))

    def _cause(self, stage: str, phase: str) -> str:
        """Return the cause that a phase stands for. Samples decide where its name does not."""
        if phase in CAUSE_OF_PHASE:
            return CAUSE_OF_PHASE[phase]
        if phase == LOSS_GAP or phase not in (OTHER, *_GAPS_AND_HOST):
            share = self._computing_share(stage, phase)
            if share >= MOSTLY or (phase == LOSS_GAP and not self._samples_in(stage, phase)):
                return USEFUL
        return HOST

    def _is_unnamed(self, stage: str, phase: str) -> bool:
        """Return True for the time in no phase of a stage that does not name all computing: samples decide its cause."""
        record = self._whole.stages.get(stage)
        names = {path[0] for path in record.phases} if record is not None else set()
        return phase == OTHER and not (names & GAPS or names.issuperset(PARTS))

    def _samples_in(self, stage: str, phase: str) -> int:
        """Return the number of a phase's samples, 0 if they are too few to say anything."""
        found = self._samples[_place(stage, phase)]
        return found if found >= FEWEST_SAMPLES else 0

    def _computing_share(self, stage: str, phase: str) -> float:
        """Return the share of a phase's samples that were in torch's computing, 0 with too few of them."""
        return self._share_in(stage, phase, COMPUTING, "forward")

    def _share_in(self, stage: str, phase: str, called: tuple[str, ...], function: str | None = None) -> float:
        """Return the share of a phase's samples that were in calls of these modules, or in a function of that name."""
        found = self._found_shares.get((stage, phase, called))
        if found is None:
            whole, place = self._samples_in(stage, phase), _place(stage, phase)
            inside = sum(
                samples
                for line, samples in self.lines.items()
                if (line.stage, line.phase) == place and (line.called.startswith(called) or line.function == function)
            )
            found = self._found_shares[stage, phase, called] = inside / whole if whole else 0.0
        return found


_GAPS_AND_HOST = ("after loader_start", "after data_wait", "after backward", "after optimizer", "metrics", "logging")


def _place(stage: str, phase: str) -> tuple[str, str]:
    """Return the stage and the phase that samples and costs have there: "" for the time in no phase."""
    return stage, "" if phase in (OTHER, BETWEEN) else phase


def _top_level(phases: Mapping[Path, Timing]) -> list[tuple[str, Timing]]:
    return [(path[0], timing) for path, timing in phases.items() if len(path) == 1]


def _between(run: Run, whole: EpochRecord) -> int:
    """Return the time (ns) of the epochs in which no pass and no phase was open."""
    spent = 0
    for epoch in run.epochs:
        inside = sum(stage.elapsed_ns for stage in epoch.stages.values())
        inside += sum(timing.total_ns for _, timing in _top_level(epoch.phases))
        spent += max(epoch.duration_ns - inside, 0)
    return spent


def _start_up(run: Run) -> int:
    """Return the time (ns) before the first epoch, 0 if the run has none: then nobody knows when its loop began."""
    return min((epoch.started_ns for epoch in run.epochs), default=0)


def _placed(costs: Costs, whole: EpochRecord) -> Costs:
    """Return the costs, those of a pass whose stage was not known yet in the stage that it turned out to be."""
    found: Costs = {}
    for place, cost in costs.items():
        add_cost(found, place._replace(stage=_true_stage(place.stage, place.phase, whole)), cost.ns, cost.times)
    return found


def _placed_lines(lines: Lines, whole: EpochRecord) -> Lines:
    found: Lines = {}
    for line, samples in lines.items():
        merge_lines(found, {line._replace(stage=_true_stage(line.stage, line.phase, whole)): samples})
    return found


def _true_stage(stage: str, phase: str, whole: EpochRecord) -> str:
    """Return the stage of a phase that was seen in none: that of the main stage, if the phase occurs only there."""
    main = whole.stages.get("train") or next(iter(whole.stages.values()), None)
    if stage or not phase or main is None or (phase,) in whole.phases or (phase,) not in main.phases:
        return stage
    return main.stage
