"""Find what held a run back: one finding for each cause that cost enough, with evidence, place and one next step.

The rule it keeps: a sentence states a measurement of this run. A claim beyond the numbers is not made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from profiler.records.causes import COLLECTION, COMPILATION, LOADER_START, START_UP, STARVED
from profiler.records.histogram import NS
from profiler.report import rules
from profiler.report.accounts import BETWEEN, CHECKPOINT, DATA_WAIT, HOST, OTHER, TRANSFER, USEFUL, Accounts
from profiler.report.cause_words import disk_words, growth_words, others_on_cpu
from profiler.report.layout import duration
from profiler.report.loader_advice import BLOCKED, loader_advice
from profiler.report.stragglers import phase_in_words, rank_table
from profiler.report.tails import tail_of
from profiler.report.when import moment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.causes import Line
    from profiler.records.run import EpochRecord, Run
    from profiler.records.timing import StageRecord
    from profiler.report.accounts import Account
    from profiler.report.tails import Tail


GAP_WORDS = {
    "after loader_start": "between iter(loader) and the first batch",
    "after data_wait": "between the batch and forward",
    "after forward": "between forward and backward",
    "after backward": "between backward and the optimizer",
    "after optimizer": "between the optimizer and the next batch",
    OTHER: "in no phase",
    BETWEEN: "between passes",
}
NO_RHYTHM = "at no fixed distance"
RUNNING = 0.6  # of a phase's time on a CPU: above, its thread mostly computed
SHOWN_SHARE = 0.05  # of a place's samples: a line with fewer is not named


@dataclass
class Finding:
    """One cause, its cost, and the next step.

    Attributes:
        cause: a word of `rules.RULES`.
        kind: the verdict's kind if it stands first.
        cost_ns: the time it took.
        share: that, of the loop's time (of the run's for the start-up).
        evidence: the measurements, in words.
        where: stage, phase, epoch, step, time: as far as they are known.
        line: the line of the run's own code, such as "train.py:19 log_step -> fsync", or None.
        next: the next step, and the most that it would bring.
        gain_at_most: the share of the loop's time that would be saved at most.
        weight: the share that it is ranked by: its own, less if it is made of small parts.
    """

    cause: str
    cost_ns: int
    share: float
    evidence: list[str]
    next: str
    where: dict[str, Any] = field(default_factory=dict)
    line: str | None = None
    gain_at_most: float | None = None
    weight: float = 0.0  # the share that it is ranked by

    def __post_init__(self) -> None:
        self.weight = self.weight or self.share

    @property
    def kind(self) -> str:
        return rules.BY_CAUSE[self.cause].kind

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as it stands in a document."""
        told: dict[str, Any] = {"cause": self.cause, "cost_s": self.cost_ns / NS, "share": self.share}
        told.update(evidence=list(self.evidence), where=dict(self.where))
        if self.line is not None:
            told["line"] = self.line
        told["next"] = self.next
        if self.gain_at_most is not None:
            told["gain_at_most"] = self.gain_at_most
        return told


class Finder:
    """Find the causes that cost a run its time.

    Args:
        run: the run.
        whole: its sums.
        stage: the stage that is judged.
        accounts: those of the run.
    """

    def __init__(self, run: Run, whole: EpochRecord, stage: StageRecord, accounts: Accounts) -> None:
        self.run = run
        self.whole = whole
        self.stage = stage
        self.accounts = accounts
        self.loop_ns = max(self.accounts.loop_ns, 1)
        self._tails: dict[str, Tail | None] = {}

    def losses(self) -> list[Finding]:
        """Return a finding for each cause that cost at least `rules.NOTABLE` of the loop, the dearest first."""
        found = [
            *(self._starved(), self._collection(), self._compilation(), self._data_wait(), self._loader_start()),
            *(self._ranks(), self._transfer(), self._checkpoint(), self._host(), self._validation()),
        ]
        notable = [finding for finding in found if finding is not None]
        return sorted(notable, key=lambda finding: -finding.weight)

    def _ranks(self) -> Finding | None:
        """Return the rank that the others wait for, if that costs much."""
        for wait in rank_table(self.run).get("waits", ()):
            cost = round(wait["waited_s"] * NS)
            share = cost / self.loop_ns
            if wait["stage"] == self.stage.stage and share >= rules.WAITED_FOR:
                place = phase_in_words(wait["phase"])
                behind = f"rank {wait['rank']} was {wait['behind_s']:.2g} s behind in {place}"
                waited = f"the others waited for it {wait['waited_s']:.2g} s in {wait['waited_in']}"
                step = f"look at rank {wait['rank']} in {place} (epochmeter report of its own run): at most {share:.0%}"
                where = {"stage": self.stage.stage, "phase": wait["phase"], "rank": wait["rank"]}
                return Finding("ranks", cost, share, [behind, waited], step, where, gain_at_most=share)
        return None

    def start_up(self) -> Finding | None:
        """Return the time before the first epoch, if it was long. Imports are not counted: every run has them."""
        whole = self.accounts.total(START_UP)
        lines = [(line.phase, samples) for line, samples in self.accounts.lines.items() if line.phase in (START_UP, "imports")]
        samples = sum(number for _, number in lines)
        own = sum(number for phase, number in lines if phase == START_UP)
        cost = whole if not samples else round(whole * own / samples)
        share = cost / max(self.run.duration_ns, 1)
        if cost < rules.START_UP_NS or share < rules.START_UP_SHARE:
            return None
        evidence = [f"{duration(cost / NS)} went by before the first epoch, imports left out: {share:.0%} of the run"]
        step = "keep what is prepared there for the next run: at most that much of each start"
        return Finding("start-up", cost, share, evidence, step, {"phase": START_UP}, self._line([("", START_UP)]))

    # ---- one cause each --------------------------------------------------------------------------------------------

    def _starved(self) -> Finding | None:
        cost = self.accounts.total(STARVED)
        if not self._is_notable(cost):
            return None
        waited = f"the loop's thread was ready to run for {duration(cost / NS)}, and no CPU was free for it"
        evidence = [f"{waited}: {self._share(cost):.0%} of the loop", *others_on_cpu(self.whole)]
        workers = max((facts.workers for facts in self.run.loaders.values()), default=0)
        cores = self.run.hardware.cpu.get("available_cores")
        if isinstance(cores, (int, float)) and workers >= cores:
            step = f"{workers} loader workers share {cores:g} CPUs with the loop: use fewer"
        else:
            step = "free CPUs for it: end or move other programs, or use fewer threads"
        finding = self._finding("starved", cost, evidence, f"{step}: {self._gain(cost)}", self.accounts.of(STARVED))
        finding.line = None  # no line is to blame for other programs
        return finding

    def _collection(self) -> Finding | None:
        cost = self.accounts.total(COLLECTION)
        if not self._is_notable(cost):
            return None
        spent, times = self.accounts.cost(COLLECTION)
        evidence = [f"garbage collections stopped the loop for {duration(cost / NS)}, {self._share(cost):.0%} of it"]
        if times:
            evidence.append(f"{times} collections, {duration(spent / NS / times)} each")
        places = self.accounts.of(COLLECTION)
        finding = self._finding("collection", cost, evidence, "", places[:1])
        if finding.line is not None and finding.line.endswith("-> collect"):
            step = f"call gc.collect less often than at {finding.line.partition(' ->')[0]}"
        else:
            step = "gc.freeze() after the set-up and a higher gc.set_threshold, or gc.disable() and gc.collect() every N steps"
        finding.next = f"{step}: {self._gain(cost)}"
        return finding

    def _compilation(self) -> Finding | None:
        cost = self.accounts.total(COMPILATION)
        if not self._is_notable(cost):
            return None
        _, times = self.accounts.cost(COMPILATION)
        often = "once" if times == 1 else f"{times} times"
        evidence = [f"torch.compile compiled {often}, for {duration(cost / NS)}: {self._share(cost):.0%} of the loop"]
        again = times > 3
        step = (
            "find what changes from step to step (TORCH_LOGS=recompiles), and give it one shape, or dynamic=True"
            if again
            else "a longer run pays for it; to pay once, keep the cache of compiled code (TORCHINDUCTOR_CACHE_DIR)"
        )
        return self._finding("compilation", cost, evidence, f"{step}: {self._gain(cost)}", self.accounts.of(COMPILATION))

    def _data_wait(self) -> Finding | None:
        start = self.accounts.total(LOADER_START)
        causes = (DATA_WAIT,) if self._is_notable(start) else (DATA_WAIT, LOADER_START)
        cost = self.accounts.total(*causes)
        if not self._is_notable(cost):
            return None
        places = self.accounts.of(*causes)
        name = places[0].stage
        record = self.whole.stages.get(name)
        whole_ns = self.loop_ns if record is None else max(record.elapsed_ns, 1)
        share = sum(one.ns for one in places if one.stage == name) / whole_ns
        evidence = [f"{share:.0%} of {f'{name} time' if name else 'the loop'} was spent waiting for data"]
        finding = self._finding("data_wait", cost, evidence, "", places)
        facts = self.run.loaders.get(places[0].stage)
        if facts is not None and facts.workers:  # they deliver in bursts, and their lines are not seen
            finding.line = None
        else:
            evidence += self._tail_words(cost, places)
        place = [(one.stage, one.phase) for one in places]
        on_cpu = self.accounts.on_cpu_share(place)
        advice = loader_advice(self.run, self.whole, facts, self._line(place), on_cpu, self._share(cost))
        finding.evidence += [*advice.evidence, *(disk_words(self.whole) if advice.is_blocked else ())]
        saved = cost
        if advice.most_workers is not None:  # the work stays, and so many of them share it
            left = max(self.loop_ns - cost, round(advice.work * self.loop_ns / advice.most_workers))
            saved = max(self.loop_ns - left, 0)
        finding.next, finding.gain_at_most = f"{advice.step}: {self._gain(saved)}", saved / self.loop_ns
        return finding

    def _loader_start(self) -> Finding | None:
        cost = self.accounts.total(LOADER_START)
        if not self._is_notable(cost):
            return None
        _, times = self.accounts.cost(LOADER_START)
        evidence = [
            f"starting the loader's workers took {duration(cost / NS)} in {times} passes: {self._share(cost):.0%} of the loop"
        ]
        persistent = any(facts.persistent_workers for facts in self.run.loaders.values())
        if times > 1 and not persistent:
            cost_saved = cost * (times - 1) // times
            step = f"DataLoader(persistent_workers=True) starts them once: {self._gain(cost_saved)}"
        else:
            cost_saved, step = cost, "fewer workers, or a data set that is cheaper to hand to them"
        finding = self._finding("loader_start", cost, evidence, step, self.accounts.of(LOADER_START))
        finding.gain_at_most = cost_saved / self.loop_ns
        return finding

    def _transfer(self) -> Finding | None:
        cost = self.accounts.total(TRANSFER)
        if not self._is_notable(cost):
            return None
        pinned = any(facts.pin_memory for facts in self.run.loaders.values())
        evidence = [f"{self._share(cost):.0%} of the loop was spent in transfer"]
        how = "non_blocking=True" if pinned else "DataLoader(pin_memory=True) and non_blocking=True"
        return self._finding(
            "transfer", cost, evidence, f"copy beside the work, {how}: {self._gain(cost)}", self.accounts.of(TRANSFER)
        )

    def _checkpoint(self) -> Finding | None:
        cost = self.accounts.total(CHECKPOINT)
        if not self._is_notable(cost):
            return None
        parts = [self.whole.phases, *(stage.phases for stage in self.whole.stages.values())]
        times = sum(phases[CHECKPOINT,].count for phases in parts if (CHECKPOINT,) in phases)
        each = f", {times} of {duration(cost / NS / times)}" if times else ""
        evidence = [f"checkpoints took {duration(cost / NS)}{each}: {self._share(cost):.0%} of the loop"]
        step = f"save less often, or copy to memory and write beside the loop: {self._gain(cost)}"
        return self._finding("checkpoint", cost, evidence, step, self.accounts.of(CHECKPOINT))

    def _host(self) -> Finding | None:
        places = self.accounts.of(HOST)
        cost = sum(one.ns for one in places)
        if not self._is_notable(cost):
            return None
        largest = places[0]
        words = self._where_words(largest)
        if cost > largest.ns * 1.1:
            words = f"{words}; with the other gaps, the host's own time is {self._share(cost):.0%} of the loop"
        evidence = [words]
        tail = self._tail_words(cost, places)
        growth = growth_words(self.run, self.stage.steps)
        if growth and (not tail or tail[0].endswith(NO_RHYTHM)):  # new memory is dear now and then
            cause, more = "growth", growth
        else:
            cause, more = ("tail", tail) if tail else ("host", [])
        evidence += more
        on_cpu = self.accounts.on_cpu_share([(largest.stage, largest.phase)])
        if on_cpu is not None and on_cpu < BLOCKED:
            evidence.append("the loop's thread mostly slept there, or waited for a disk, a network or a device")
            evidence += disk_words(self.whole)
        elif on_cpu is not None and on_cpu > RUNNING:
            evidence.append(f"the loop's thread computed there, {on_cpu:.0%} of the time on a CPU")
        finding = self._finding(cause, cost, evidence, "", [largest])
        at = finding.line.partition(" ->")[0] if finding.line else f"the code {_place_words(largest.phase)}"
        steps = {
            "tail": f"look at what {at} does in the slow steps, and do it less often or beside the loop",
            "growth": f"see what {at} keeps: what a step makes should be free when it ends (.detach(), .item())",
            "host": f"do what {at} does less often, or beside the loop",
        }
        busiest = self._busiest([(largest.stage, largest.phase)])
        gain = max(largest.ns, 0 if busiest is None else self.accounts.time_at(busiest))
        finding.next, finding.gain_at_most = f"{steps[cause]}: {self._gain(gain)}", gain / self.loop_ns
        # Several small gaps are less of one cause than a single large one: each loop has some.
        finding.weight = max(largest.ns / self.loop_ns, rules.SMALL_GAPS * finding.share)
        return finding

    def _where_words(self, largest: Account) -> str:
        """Return the share of its stage's time that an account of the host's time took, and where it lies."""
        stage = self.whole.stages.get(largest.stage)
        if stage is None:
            return f"{self._share(largest.ns):.0%} of the loop was spent {_place_words(largest.phase)}"
        outside = "outside every phase" if largest.phase == OTHER else _place_words(largest.phase)
        return f"{largest.ns / max(stage.elapsed_ns, 1):.0%} of {largest.stage} time was spent {outside}"

    def _validation(self) -> Finding | None:
        cost = sum(one.ns for one in self.accounts.all if one.stage == "val")
        if "train" not in self.whole.stages or cost < rules.VALIDATION_SHARE * self.loop_ns:
            return None
        stage = self.whole.stages["val"]
        evidence = [f"validation took {self._share(cost):.0%} of the loop, in {stage.passes} passes and {stage.steps} steps"]
        half = cost // 2
        finding = self._finding("validation", cost, evidence, f"validate half as often: {self._gain(half)}", [])
        finding.where, finding.gain_at_most = {"stage": "val"}, half / self.loop_ns
        return finding

    # ---- words -----------------------------------------------------------------------------------------------------

    def _finding(self, cause: str, cost: int, evidence: list[str], step: str, places: list[Account]) -> Finding:
        where: dict[str, Any] = {}
        if places:
            where = {key: value for key, value in (("stage", places[0].stage), ("phase", places[0].phase)) if value}
        tail = self._tail(places[0].stage) if places else None
        if tail is not None and self._is_tail(cost, places):
            epoch = tail.slowest.epoch if tail.epoch is None else tail.epoch
            where.update({} if epoch is None else {"epoch": epoch})
            where.update(step=tail.slowest.step, at=moment(self.run, tail.slowest.at_ns))
        line = self._line([(one.stage, one.phase) for one in places])
        return Finding(cause, cost, self._share(cost), evidence, step, where, line, cost / self.loop_ns)

    def _tail(self, name: str) -> Tail | None:
        if name not in self._tails:
            stage = self.whole.stages.get(name)
            self._tails[name] = None if stage is None else tail_of(self.run, stage)
        return self._tails[name]

    def _is_tail(self, cost: int, places: list[Account]) -> bool:
        """Return True if most of a loss lies in steps that are much slower than usual."""
        tail = self._tail(places[0].stage) if places else None
        return tail is not None and tail.excess_ns * tail.phases.get(places[0].phase, 0.0) >= rules.TAIL_PART * cost

    def _tail_words(self, cost: int, places: list[Account]) -> list[str]:
        """Return how often the slow steps come, if most of a loss lies in them."""
        tail = self._tail(places[0].stage)
        if tail is None or not self._is_tail(cost, places):
            return []
        took = f"{duration(tail.mean_ns / NS)} instead of {duration(tail.usual_ns / NS)}"
        if tail.rhythm is not None:
            return [f"every {ordinal(tail.rhythm)} step took {took}"]
        if tail.epoch is not None:
            return [f"in epoch {tail.epoch}, {tail.steps} steps took {took}"]
        many = f"{tail.steps} of {self.whole.stages[places[0].stage].steps} steps took {took}"
        if tail.at_steps:
            return [f"{many}, at step {' and '.join(map(str, tail.at_steps))} of the epochs"]
        return [f"{many}, {NO_RHYTHM}"]

    def _gain(self, cost: int) -> str:
        """Return the most that saving a cost would bring, from this run's own times."""
        left = self.loop_ns - cost
        epochs = len(self.run.epochs)
        if epochs > 1:
            before, after, what = self.loop_ns / epochs, left / epochs, "an epoch"
        else:
            before, after, what = self.loop_ns, left, "the loop"
        return f"at most {cost / self.loop_ns:.0%}; {what} would take {duration(after / NS)} instead of {duration(before / NS)}"

    def _busiest(self, places: list[tuple[str, str]]) -> Line | None:
        """Return the busiest line of these phases, if it has some of their samples."""
        found = self.accounts.busiest_line(places)
        return found[0] if found is not None and found[1] >= SHOWN_SHARE else None

    def _line(self, places: list[tuple[str, str]]) -> str | None:
        line = self._busiest(places)
        if line is None:
            return None
        called = f" -> {line.called.rpartition('.')[2]}" if line.called else ""
        return f"{line.file}:{line.line} {line.function}{called}"

    def _share(self, ns: int) -> float:
        return ns / self.loop_ns

    def _is_notable(self, cost: int) -> bool:
        is_working = self.accounts.total(USEFUL) >= rules.COMPUTE_SHARE * self.loop_ns
        return cost >= rules.NOTABLE * self.loop_ns and (cost >= rules.NOTABLE_NS or not is_working)


def _place_words(phase: str) -> str:
    if phase in (OTHER, BETWEEN):
        return GAP_WORDS[phase]
    return f"{phase} ({GAP_WORDS[phase]})" if phase in GAP_WORDS else f"in {phase!r}"


def ordinal(number: int) -> str:
    """Return a number as in "every 50th"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
