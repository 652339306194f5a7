"""The causes of a run in its log: how costs, lines, loaders and growing memory are written, and how they are read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from profiler.records.causes import CausePlace, Line, add_cost, merge_lines
from profiler.records.histogram import NS
from profiler.records.loader import LoaderFacts
from profiler.records.run import EpochRecord, MemoryGrowth, Run
from profiler.storage.checked_values import of_type

Attributes = Mapping[str, Any]
Values = Iterable[tuple[Any, Attributes]]
LOADER_SETTINGS = tuple(one.name for one in fields(LoaderFacts) if one.name != "workers")
LINE_TEXTS = ("stage", "phase", "file", "function", "called")


def read_cost(part: EpochRecord, at: Attributes, value: float) -> None:
    """Add a cost to a part of a run."""
    place = CausePlace(*(of_type(str, at[f"epochmeter.{key}"]) for key in ("cause", "stage", "phase")))
    add_cost(part.costs, place, round(value * NS), int(at["epochmeter.cause.times"]))


def write_costs(part: EpochRecord) -> Values:
    """Yield the costs of a part."""
    for place, cost in part.costs.items():
        at = {f"epochmeter.{key}": text for key, text in place._asdict().items()}
        yield cost.ns / NS, {**at, "epochmeter.cause.times": cost.times}


def read_lines(part: EpochRecord, at: Attributes, value: float) -> None:
    """Add the samples of lines to a part of a run."""
    texts = [[of_type(str, text) for text in at.get(f"epochmeter.line.{key}", ())] for key in LINE_TEXTS]
    numbers = [int(number) for number in at.get("epochmeter.line.number", ())]
    samples = [int(number) for number in at.get("epochmeter.line.counts", ())]
    for stage, phase, file, function, called, number, count in zip(*texts, numbers, samples, strict=True):
        merge_lines(part.lines, {Line(stage, phase, file, number, function, called): count})


def write_lines(part: EpochRecord) -> Values:
    """Yield the lines of a part: one value, with a list for each field, which takes a third of the space."""
    if part.lines:
        lists: dict[str, Any] = {f"epochmeter.line.{key}": [getattr(line, key) for line in part.lines] for key in LINE_TEXTS}
        lists["epochmeter.line.number"] = [line.line for line in part.lines]
        yield sum(part.lines.values()), {**lists, "epochmeter.line.counts": list(part.lines.values())}


def read_loader(run: Run, at: Attributes, value: float) -> None:
    """Set the settings of a stage's loader."""
    told = {name: at[f"epochmeter.loader.{name}"] for name in LOADER_SETTINGS if f"epochmeter.loader.{name}" in at}
    run.loaders[of_type(str, at["epochmeter.stage"])] = LoaderFacts(int(value), **told)


def write_loaders(run: Run) -> Values:
    """Yield the loaders of a run, with their settings."""
    for stage, facts in run.loaders.items():
        known = {key: value for key, value in asdict(facts).items() if key != "workers" and value is not None}
        yield facts.workers, {"epochmeter.stage": stage, **{f"epochmeter.loader.{key}": value for key, value in known.items()}}


def read_growth(run: Run, at: Attributes, value: float) -> None:
    """Set how the memory has grown."""
    seconds, fit = (float(at[f"epochmeter.growth.{key}"]) for key in ("time", "fit"))
    run.growth = MemoryGrowth(int(value), round(seconds * NS), fit)


def write_growth(run: Run) -> Values:
    """Yield how the memory has grown."""
    if run.growth is not None:
        growth = run.growth
        yield growth.by, {"epochmeter.growth.time": growth.over_ns / NS, "epochmeter.growth.fit": growth.fit}
