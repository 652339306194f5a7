"""The ranks of a distributed run side by side: which was slow, and which waited for which.

The rule it keeps: ranks are compared over the epochs that all of them reported (`measure.ranks`). A rank that died is named
as missing, and its times are not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from profiler.records.histogram import NS
from profiler.records.run import MEDIANS, RankStage
from profiler.report.accounts import OTHER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run


BEHIND_SHARE = 0.05  # of a stage's time: less than that is no one's fault
MEETINGS = ("backward", "after backward", "optimizer", "forward", "after forward")  # phases in which ranks wait for each other
Stages = Mapping[int, RankStage]


def rank_table(run: Run) -> dict[str, Any]:
    """Return, for each stage and phase, the slowest, the median and the fastest rank; empty if no rank reported."""
    told = run.outside
    if not told.rank_epochs or run.world_size is None:
        return {}
    result: dict[str, Any] = {"world_size": run.world_size, "epochs": told.rank_epochs, "stages": {}, "waits": []}
    if told.rank_missing:
        result["missing"] = told.rank_missing
    for name in dict.fromkeys(name for stages in told.ranks.values() for name in stages):
        ranks = {rank: _with_rest(stages[name]) for rank, stages in sorted(told.ranks.items()) if name in stages}
        medians = ranks.pop(MEDIANS, None)
        if len(ranks) < 2:
            continue
        phases = dict.fromkeys(phase for stage in ranks.values() for phase in stage.phases)
        result["stages"][name] = {
            "duration": _spread(
                {rank: stage.duration_ns for rank, stage in ranks.items()}, None if medians is None else medians.duration_ns
            ),
            "phases": {
                phase: _spread(_of(phase, ranks), None if medians is None else medians.phases.get(phase))
                for phase in phases
                if len(_of(phase, ranks)) > 1
            },
        }
        result["waits"] += _waits(name, ranks, medians)
    return result


def _with_rest(stage: RankStage) -> RankStage:
    """Return a rank's stage with the time outside its phases as one of them: the loop's own code may be slow."""
    rest = stage.duration_ns - sum(stage.phases.values())
    return replace(stage, phases={**stage.phases, OTHER: rest}) if rest > 0 else stage


def phase_in_words(phase: str) -> str:
    """Return a phase of a rank as it stands in a sentence."""
    return "its own code (in no phase)" if phase == OTHER else phase


def _of(phase: str, ranks: Stages) -> dict[int, int]:
    return {rank: stage.phases[phase] for rank, stage in ranks.items() if phase in stage.phases}


def _spread(times: Mapping[int, int], middle: int | None) -> dict[str, Any]:
    slowest, fastest = max(times, key=lambda rank: times[rank]), min(times, key=lambda rank: times[rank])
    return {
        "slowest": {"rank": slowest, "total_s": times[slowest] / NS},
        "median_s": (median(times.values()) if middle is None else middle) / NS,
        "fastest": {"rank": fastest, "total_s": times[fastest] / NS},
    }


def _waits(name: str, ranks: Stages, medians: RankStage | None) -> list[dict[str, Any]]:
    """Return the rank that was behind, its phase, and the phase in which the others waited for it.

    Ranks that exchange gradients go in step: the extra time of one rank is waiting time of the others at the point where they
    meet. So the slow rank has less time than the others in one phase (the backward, with DistributedDataParallel), and about
    as much more in another.
    """
    usual = median(stage.duration_ns for stage in ranks.values()) if medians is None else medians.duration_ns
    limit = BEHIND_SHARE * usual
    found: list[dict[str, Any]] = []
    phases = dict.fromkeys(phase for stage in ranks.values() for phase in stage.phases)
    for rank, stage in ranks.items():
        others = {other: theirs for other, theirs in ranks.items() if other != rank}
        excess = {phase: stage.phases.get(phase, 0) - _usual(phase, others, medians) for phase in phases}
        behind, met = max(excess, key=lambda phase: excess[phase]), min(excess, key=lambda phase: excess[phase])
        if excess[behind] >= limit and -excess[met] >= limit and met in MEETINGS:
            entry = {"stage": name, "rank": rank, "phase": behind, "behind_s": excess[behind] / NS}
            found.append({**entry, "waited_in": met, "waited_s": -excess[met] / NS})
    found.sort(key=lambda entry: (MEETINGS.index(entry["waited_in"]), -entry["behind_s"]))
    meeting = (
        found[0]["waited_in"] if found else ""
    )  # with two ranks, each mirrors the other: one has less time where they meet
    return [entry for entry in found if entry["phase"] != meeting]


def _usual(phase: str, ranks: Stages, medians: RankStage | None) -> float:
    if medians is not None:
        return float(medians.phases.get(phase, 0))
    return float(median(stage.phases.get(phase, 0) for stage in ranks.values()))
