"""A benchmark's cases as tables, CSV and Markdown, alone or beside another benchmark.

Everything here reads the ``bench`` of a run's document, so a file of today can be shown and compared next year.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rich.console import RenderableType
from rich.text import Text

from profiler.report.layout import ALWAYS, Column, Fitted, duration, times, words

Case = Mapping[str, Any]
RATES = {"operations_per_s": "FLOP/s", "bytes_per_s": "B/s"}
LEFT_OUT = ("p99", "memory", "J/sample", "p50", "batch", "compile", "first", "first batch", "on")  # of a table; the last first
USABLE = 0.5  # of the median: an interval that reaches further to both sides tells nothing
MANY = 3  # cases with the same remark are told together
NUMBER = re.compile(r"\d+(?:\.\d+)?%?")
# Shares of the hardware's arithmetic in published training runs: GPT-3 21 %, MT-NLG 30 %, PaLM 46 % (Chowdhery et al., 2022,
# arXiv:2204.02311, table 3), Llama 3 38 to 43 % (2024, arXiv:2407.21783, table 4). Of the memory's speed: our own choice.
USUAL, HIGH, OF_MEMORY = 0.2, 0.45, 0.6
KEY = ("suite", "name", "device", "stage", "dtype", "batch", "workers", "shape", "compiled")
FLAT = (  # the columns of a CSV file, and the place of each
    *((key, (key,)) for key in (*KEY[:-1], "status")),
    *((f"time_{part}_s", ("time_s", part)) for part in ("median", "low", "high")),
    *((part, ("time_s", part)) for part in ("blocks", "launches")),
    *((key, (key,)) for key in ("samples_per_s", "operations_per_s", "bytes_per_s")),
    *((f"share_of_{limit}_limit", ("share_of_limit", limit)) for limit in ("operations", "memory")),
    *((f"latency_{part}_s", ("latency_s", part)) for part in ("p50", "p90", "p99", "max")),
    *((key, (key,)) for key in ("device_time_s", "cold_s", "compile_s", "memory_peak_bytes", "joules_per_sample")),
    *((key, (key,)) for key in ("compiled", "error", "remarks")),
)


def tables(cases: Sequence[Case]) -> Iterator[RenderableType]:
    """Yield a table for each suite, then remarks and failures."""
    for first, *others in _sheets(cases):
        yield Fitted(first, *(replace(column, rank=_rank(column.head)) for column in others))
    for line in sentences(cases):
        yield Text(line)


def markdown(cases: Sequence[Case]) -> str:
    """Return the same as Markdown."""
    parts = []
    for columns in _sheets(cases):
        cells = zip(*(map(str.strip, column.cells) for column in columns), strict=True)
        rules = ["---" if column.is_words else "---:" for column in columns]
        lines = [[column.head for column in columns], rules, *map(list, cells)]
        parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines))
    said = "\n".join(f"- {line}" for line in sentences(cases))
    return "\n\n".join([*parts, said] if said else parts) + "\n"


def as_csv(cases: Sequence[Case]) -> str:
    """Return one row a case, every number unrounded, in the units of the document. Unknown values are empty."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([column for column, _ in FLAT])
    for case in cases:
        values = [_at(case, path) for _, path in FLAT]
        rows.writerow(["; ".join(value) if isinstance(value, list) else value for value in values])
    return text.getvalue()


def title(case: Case) -> str:
    """Return a case in words."""
    words = [case["name"], case.get("stage"), case.get("dtype"), _workers(case), "compiled" if case.get("compiled") else None]
    if case["suite"] == "limits" and case["name"] == "memory":
        words.append(f"on {case['device']}")
    return " ".join(str(word) for word in words if word)


def _of_limit(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def sentences(cases: Sequence[Case]) -> Iterator[str]:
    """Yield the share of the machine's limits that training reaches, then unusable cases, remarks and failures."""
    spreads = {case.get("dtype"): _spread(case) for case in cases if case["name"] == "matmul" and "time_s" in case}
    for case in cases:
        share = case.get("share_of_limit", {}).get("operations")
        if share is not None and case.get("stage") == "train" and is_usable(case):
            rate, limit = case["operations_per_s"], case["limits"]["operations_per_s"]
            made = f" ({case['shape']})" if "shape" in case else ""
            spread = f" {spreads[case['dtype']]}" if case["dtype"] in spreads else ""
            yield (
                f"{title(case)}{made}: {_of_limit(share)} of this machine's limit"
                f" ({_si(rate, 'FLOP/s')} of {_si(limit, 'FLOP/s')}{spread} in {case['dtype']}): {judgement(case)}"
            )
    unusable = [title(case) for case in cases if not is_usable(case)]
    if unusable:
        yield f"not usable, as their times differ by more than half: {', '.join(unusable)}; run them again on a quiet machine"
    yield from _remarks(cases)
    yield from _failures(cases)


def is_usable(case: Case) -> bool:
    """Return False if the interval of a case's time is wider than half of the median to either side, on a busy machine."""
    time = case.get("time_s")
    return time is None or (time["high"] - time["low"]) / 2 <= USABLE * time["median"]


def judgement(case: Case) -> str:
    """Return in words whether a share of the limit is a good one. The sources are in docs/bench.md."""
    shares = case["share_of_limit"]
    if shares["operations"] >= HIGH:
        return f"as the best published training runs, or better ({HIGH:.0%})"
    if shares["operations"] >= USUAL:
        return f"as published training runs of large models ({USUAL:.0%} to {HIGH:.0%})"
    if shares.get("memory", 0.0) >= OF_MEMORY:
        return f"its limit is the memory, of whose speed it reaches {_of_limit(shares['memory'])}"
    return f"low (large models are trained at {USUAL:.0%} to {HIGH:.0%}): its operations are small; a larger batch may help"


def _remarks(cases: Sequence[Case]) -> Iterator[str]:
    """Yield one line for each case with remarks, and one for a kind of remark that many cases have."""
    kinds: dict[str, list[str]] = {}
    for case in cases:
        for remark in case.get("remarks", ()):
            kinds.setdefault(NUMBER.sub("#", remark), []).append(remark)
    common = {kind: found for kind, found in kinds.items() if len(found) >= MANY}
    for kind, found in common.items():
        yield f"{_range(kind, found)} ({len(found)} of {len(cases)} cases)"
    for case in cases:
        own = [remark for remark in case.get("remarks", ()) if NUMBER.sub("#", remark) not in common]
        if own:
            yield f"{title(case)}: {'; '.join(own)}"


def _range(kind: str, remarks: Sequence[str]) -> str:
    """Return remarks that differ in their numbers as one, with the lowest and the highest of each."""
    columns = list(zip(*(NUMBER.findall(remark) for remark in remarks), strict=True))
    ends = [(min(column, key=_value), max(column, key=_value)) for column in columns]
    told = iter(low if low == high else f"{low} to {high}" for low, high in ends)
    return re.sub("#", lambda _: next(told), kind)


def _value(text: str) -> float:
    return float(text.rstrip("%"))


def _failures(cases: Sequence[Case]) -> Iterator[str]:
    failures: dict[tuple[str, ...], list[str]] = {}
    for case in cases:
        if case["status"] != "ok":
            what = (case["name"], case.get("dtype", ""), case["status"], case.get("error", ""))
            failures.setdefault(what, []).append(case.get("stage") or "")
    for (name, dtype, status, error), stages in failures.items():
        words = [name, ", ".join(filter(None, stages)), dtype, f"{status}: {error}"]
        yield " ".join(word for word in words if word)


# ---- sheets --------------------------------------------------------------------------------------------------------

Sheet = tuple[tuple[str, Callable[[Case], Any]], ...]  # the columns of one table: a heading, and what makes a cell


def _sheets(cases: Sequence[Case]) -> Iterator[list[Column]]:
    """Yield, for each suite, its columns, without those that no case fills."""
    for suite, heading, columns in SHEETS:
        rows = [case for case in cases if case["suite"] == suite and case["status"] == "ok"]
        if rows:
            seconds = [cell(case) for _, cell in columns if isinstance(cell, _Seconds) for case in rows]
            made = [_column(head, cell, rows, seconds) for head, cell in columns]
            yield [words(heading, map(_first, rows)), *(column for column in made if any(column.cells))]


def _column(head: str, cell: Callable[[Case], Any], rows: Sequence[Case], seconds: Sequence[float | None]) -> Column:
    """Return a column of texts, or of times in the unit of all of them (``seconds``)."""
    values = [cell(case) for case in rows]
    return times(head, values, beside=seconds) if isinstance(cell, _Seconds) else Column(head, values)


def _first(case: Case) -> str:
    words = [case["name"], case.get("stage"), _workers(case)] if case["suite"] != "loader" else [_workers(case)]
    return " ".join(str(word) for word in words if word)


def _workers(case: Case) -> str | None:
    if "workers" not in case:
        return None
    return f"{case['workers']} worker{'' if case['workers'] == 1 else 's'}"


def _result(case: Case) -> str:
    if not is_usable(case):
        return ""
    for key, unit in RATES.items():
        if key in case:
            return _si(case[key], unit)
    return duration(case["time_s"]["median"])


def _spread(case: Case) -> str:
    if not is_usable(case):
        return "not usable"
    time = case.get("time_s")
    if time is None:  # a log changed by hand
        return ""
    return f"±{(time['high'] - time['low']) / 2 / time['median']:.1%}"


class _Seconds:
    """A time of a case, by its place in the document."""

    def __init__(self, *path: str) -> None:
        self._path = path

    def __call__(self, case: Case) -> float | None:
        return _at(case, self._path) if is_usable(case) else None


def _plain(key: str) -> Callable[[Case], str]:
    return lambda case: str(case.get(key, ""))


def _percent(limit: str) -> Callable[[Case], str]:
    return lambda case: _of_limit(_at(case, ("share_of_limit", limit))) if is_usable(case) else ""


def _per_second(key: str) -> Callable[[Case], str]:
    return lambda case: _si(case[key], "") if key in case and is_usable(case) else ""


def _rate(case: Case) -> str:
    value = case.get("samples_per_s") if is_usable(case) else None
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


SPEED: Sheet = (
    ("dtype", _plain("dtype")),
    ("batch", _plain("batch")),
    ("samples/s", _rate),
    ("", _spread),
    ("call", _Seconds("time_s", "median")),
    ("p50", _Seconds("latency_s", "p50")),
    ("p99", _Seconds("latency_s", "p99")),
    ("first", _Seconds("cold_s")),
    ("compile", _Seconds("compile_s")),
)
USE: Sheet = (
    ("dtype", _plain("dtype")),
    ("FLOP/s", _per_second("operations_per_s")),
    ("of limit", _percent("operations")),
    ("B/s", _per_second("bytes_per_s")),
    ("of limit ", _percent("memory")),
    ("memory", lambda case: "" if "memory_peak_bytes" not in case else f"{case['memory_peak_bytes'] / 2**20:,.0f} MiB"),
    ("J/sample", lambda case: "" if "joules_per_sample" not in case else f"{case['joules_per_sample']:.3g}"),
)
LIMIT: Sheet = (
    ("on", _plain("device")),
    ("dtype", _plain("dtype")),
    ("of", _plain("shape")),
    ("reached", _result),
    ("", _spread),
    ("first", _Seconds("cold_s")),
)
LOADER: Sheet = (
    ("batch", _plain("batch")),
    ("samples/s", _rate),
    ("", _spread),
    ("batch every", _Seconds("time_s", "median")),
    ("first batch", _Seconds("cold_s")),
)
SHEETS: tuple[tuple[str, str, Sheet], ...] = (  # a suite, the table's heading, its columns
    ("limits", "limits", LIMIT),
    ("models", "models", SPEED),
    ("models", "speed and limits", USE),
    ("yours", "yours", SPEED),
    ("yours", "speed and limits", USE),
    ("loader", "loader", LOADER),
)


def _si(value: float, unit: str) -> str:
    """Return a number with three digits and a decimal prefix."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def _at(case: Case, path: Sequence[str]) -> Any:
    found: Any = case
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


# ---- beside another one --------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """A case then and now. ``change`` is that of its time: 0.05 is 5 % slower; None if it cannot be compared."""

    case: Case
    change: Any
    verdict: str  # slower, faster, noise; or why they cannot be compared


def compared(before: Sequence[Case], after: Sequence[Case], difference: Callable[[Case, Case], Any]) -> list[Compared]:
    """Return every case of both benchmarks.

    Args:
        before: the cases of the earlier benchmark.
        after: the cases of the later one.
        difference: compares two cases' times, with an interval (`profiler.bench.estimate.difference`).
    """
    then: dict[Any, Case] = {_key(case): case for case in before}
    found = []
    for case in after:
        other = then.pop(_key(case), None)
        if other is None:
            unlike = next((known for known in then.values() if _name(known) == _name(case)), None)
            found.append(Compared(case, None, "not measured before" if unlike is None else _unlike(case, unlike)))
            then.pop(None if unlike is None else _key(unlike), None)
        elif "time_s" not in case or "time_s" not in other:
            found.append(Compared(case, None, f"{case['status']} now, {other['status']} before"))
        else:
            change = difference(other, case)
            verdict = "noise" if change.is_noise else "slower" if change.change > 0 else "faster"
            found.append(Compared(case, change, verdict))
    return [*found, *(Compared(case, None, "not measured now") for case in then.values())]


def comparison(rows: Sequence[Compared]) -> Fitted:
    """Return both benchmarks side by side, as a table."""
    changes = [row.change for row in rows]
    return Fitted(
        words("compared", [title(row.case) for row in rows]),
        Column("batch", [str(row.case.get("batch", "")) for row in rows], rank=1),
        Column("time", ["" if change is None else f"{change.change:+.1%}" for change in changes]),
        Column("interval", ["" if change is None else f"{change.low:+.1%} to {change.high:+.1%}" for change in changes]),
        words("", [row.verdict for row in rows]),
    )


def _rank(head: str) -> int:
    name = next((name for name in LEFT_OUT if head.removesuffix(" ").startswith(name)), None)
    return ALWAYS if name is None else LEFT_OUT.index(name) + 1


def _key(case: Case) -> tuple[Any, ...]:
    return tuple(None if case.get(key) is False else case.get(key) for key in KEY)


def _name(case: Case) -> tuple[Any, ...]:
    return tuple(case.get(key) for key in KEY if key not in ("batch", "shape"))


def _unlike(case: Case, other: Case) -> str:
    """Return why two cases of one name cannot be compared, or ""."""
    parts = [
        f"{key} {case.get(key)} now, {other.get(key)} before" for key in ("batch", "shape") if case.get(key) != other.get(key)
    ]
    return "; ".join(parts) + ": not comparable"
