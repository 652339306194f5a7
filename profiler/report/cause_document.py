"""The measured causes of a run as they stand in its document: costs inside phases, busy lines, loaders, growing memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from profiler.records.histogram import NS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.causes import Line
    from profiler.records.run import EpochRecord, Run


SHOWN_LINES = 40


def causes(run: Run, whole: EpochRecord) -> dict[str, Any]:
    """Return ``causes``, ``lines``, ``loaders`` and ``memory_growth``, each empty if nothing of it was measured."""
    ordered = sorted(whole.lines.items(), key=lambda item: -item[1])
    growth = run.growth
    return {
        "causes": [
            {**_place(place.stage, place.phase), "cause": place.cause, "total_s": cost.ns / NS, "count": cost.times}
            for place, cost in sorted(whole.costs.items(), key=lambda item: -item[1].ns)
        ],
        "lines": [{**_line(line), "samples": samples} for line, samples in ordered[:SHOWN_LINES]],
        "loaders": {
            stage: {key: value for key, value in asdict(facts).items() if value is not None}
            for stage, facts in run.loaders.items()
        },
        "memory_growth": None if growth is None else {"by": growth.by, "over_s": growth.over_ns / NS, "fit": growth.fit},
    }


def _line(line: Line) -> dict[str, Any]:
    known: dict[str, Any] = {"file": line.file, "line": line.line, "function": line.function, "called": line.called}
    return {**_place(line.stage, line.phase), **{key: value for key, value in known.items() if value}}


def _place(stage: str, phase: str) -> dict[str, str]:
    return {key: value for key, value in (("stage", stage), ("phase", phase)) if value}
