"""The ranks of a distributed run side by side: which was slow, and which waited for which.

The rule it keeps: ranks are compared over the epochs that every one of them reported. A rank that died is named as missing,
and its times are not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from profiler.records.histogram import NS
from profiler.records.run import RankStage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


BEHIND_SHARE = 0.05  # of a stage's time: less than that is no one's fault
MEETINGS = ("backward", "after backward", "optimizer", "forward", "after forward")  # phases in which ranks wait for each other
Stages = Mapping[int, RankStage]


def rank_table(run: Run) -> dict[str, Any]:
    """Return, for each stage and phase, the slowest, the median and the fastest rank; empty if no rank reported."""
    reported = [epoch for epoch in run.epochs if epoch.ranks]
    if not reported or run.world_size is None:
        return {}
    whole = [epoch for epoch in reported if len(epoch.ranks) == run.world_size]
    missing = sorted(set(range(run.world_size)) - set(reported[-1].ranks))
    result: dict[str, Any] = {"world_size": run.world_size, "epochs": len(whole or reported), "stages": {}, "waits": []}
    if missing:
        result["missing"] = missing
    for name in dict.fromkeys(name for epoch in reported for stages in epoch.ranks.values() for name in stages):
        ranks = _added(name, whole or reported)
        if len(ranks) < 2:
            continue
        phases = dict.fromkeys(phase for stage in ranks.values() for phase in stage.phases)
        result["stages"][name] = {
            "duration": _spread({rank: stage.duration_ns for rank, stage in ranks.items()}),
            "phases": {phase: _spread(_of(phase, ranks)) for phase in phases if len(_of(phase, ranks)) > 1},
        }
        result["waits"] += _waits(name, ranks)
    return result


def _added(name: str, epochs: list[EpochRecord]) -> dict[int, RankStage]:
    """Return a stage's sums for each rank that reported it in all these epochs."""
    ranks: dict[int, RankStage] = {}
    for rank in set.intersection(*(set(epoch.ranks) for epoch in epochs)):
        stages = [epoch.ranks[rank][name] for epoch in epochs if name in epoch.ranks[rank]]
        if not stages:
            continue
        total = ranks[rank] = RankStage(sum(stage.duration_ns for stage in stages))
        for stage in stages:
            for phase, spent in stage.phases.items():
                total.phases[phase] = total.phases.get(phase, 0) + spent
    return dict(sorted(ranks.items()))


def _of(phase: str, ranks: Stages) -> dict[int, int]:
    return {rank: stage.phases[phase] for rank, stage in ranks.items() if phase in stage.phases}


def _spread(times: Mapping[int, int]) -> dict[str, Any]:
    slowest, fastest = max(times, key=lambda rank: times[rank]), min(times, key=lambda rank: times[rank])
    return {
        "slowest": {"rank": slowest, "total_s": times[slowest] / NS},
        "median_s": median(times.values()) / NS,
        "fastest": {"rank": fastest, "total_s": times[fastest] / NS},
    }


def _waits(name: str, ranks: Stages) -> list[dict[str, Any]]:
    """Return the rank that was behind, its phase, and the phase in which the others waited for it.

    Ranks that exchange gradients go in step: the extra time of one rank is waiting time of the others at the point where they
    meet. So the slow rank has less time than the others in one phase (the backward, with DistributedDataParallel), and about
    as much more in another.
    """
    limit = BEHIND_SHARE * median(stage.duration_ns for stage in ranks.values())
    found: list[dict[str, Any]] = []
    phases = dict.fromkeys(phase for stage in ranks.values() for phase in stage.phases)
    for rank, stage in ranks.items():
        others = {other: theirs for other, theirs in ranks.items() if other != rank}
        excess = {phase: stage.phases.get(phase, 0) - _usual(phase, others) for phase in phases}
        behind, met = max(excess, key=lambda phase: excess[phase]), min(excess, key=lambda phase: excess[phase])
        if excess[behind] >= limit and -excess[met] >= limit and met in MEETINGS:
            entry = {"stage": name, "rank": rank, "phase": behind, "behind_s": excess[behind] / NS}
            found.append({**entry, "waited_in": met, "waited_s": -excess[met] / NS})
    found.sort(key=lambda entry: (MEETINGS.index(entry["waited_in"]), -entry["behind_s"]))
    meeting = (
        found[0]["waited_in"] if found else ""
    )  # with two ranks, each mirrors the other: one has less time where they meet
    return [entry for entry in found if entry["phase"] != meeting]


def _usual(phase: str, ranks: Stages) -> float:
    return float(median(stage.phases.get(phase, 0) for stage in ranks.values()))
