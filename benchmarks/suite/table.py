"""The results as one table: what is measured, the floor, ours with its interval, the goal, and the peers beside it."""

from __future__ import annotations

from typing import Any

from case import FLOOR, OURS, PEER, Case, Figure

HEAD = """| what | floor | Epochmeter | peers |
|---|---|---|---|
"""
SHORT = (  # the rows of the README: case, figure, the way of ours, what it is
    ("phase", "ns", "Epochmeter", "`with prof.phase(name)`"),
    ("step", "ns", "Epochmeter", "a step of `for batch in prof.train(loader)`"),
    ("mlp", "step_us", "Epochmeter: attach", "`prof.attach(model)`: a training step of 0.5 ms"),
    ("transformer", "loop_s", "Epochmeter: epochmeter run", "`epochmeter run`: a whole loop, steps of 40 ms"),
    ("share_0", "share", "Epochmeter, all probes", "watching CPU and memory once a second"),
)


def number(value: float) -> str:
    """Return a number with three digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def ratio(value: float) -> str:
    """Return a ratio; near 1 with three places."""
    return f"{value:.3f}" if abs(value - 1) < 0.3 else number(value)


def told(figure: Figure, row: dict[str, Any], with_interval: bool) -> str:
    """Return a way's number: beside the floor where it has one, else by itself."""
    shown = row[figure.against] if figure.against else row
    form = ratio if figure.against == "ratio" else number
    low, high = (form(value) for value in shown["interval"])
    unit = "" if figure.against == "ratio" else f" {figure.unit}".rstrip()
    sign = {"ratio": "x ", "difference": "+ ", "": ""}[figure.against]
    return f"{sign}{form(shown['median'])}{unit}" + (f" ({low} to {high})" if with_interval else "")


def _cells(case: Case, figure: Figure, rows: dict[str, Any], whose: str) -> str:
    found = []
    for way in case.ways:
        if way.whose == whose and way.name in rows:
            said = told(figure, rows[way.name], with_interval=whose == OURS)
            name = way.name.removeprefix("Epochmeter: ").removeprefix("Epochmeter, ").removeprefix("Epochmeter")
            goal = case.goals.get((way.name, figure.key))
            found.append(f"{said} {name}".rstrip() + ("" if goal is None else f" (goal {goal:g})"))
    return "<br>".join(found)


def lines_of(case: Case, result: dict[str, Any]) -> list[str]:
    """Return the table's rows of one case, one for each of its figures."""
    found = []
    for figure in case.figures:
        rows = result["figures"][figure.key]
        floor = next((rows[way.name] for way in case.ways if way.whose == FLOOR and way.name in rows), None)
        base = f"{number(floor['median'])} {figure.unit}" if floor and figure.against else ""
        what = f"{case.title}{': ' if figure.title else ''}{figure.title}"
        cells = (what, base, _cells(case, figure, rows, OURS), _cells(case, figure, rows, PEER))
        found.append(f"| {' | '.join(cells)} |")
    return found


def markdown(cases: tuple[Case, ...], results: dict[str, Any]) -> str:
    """Return the table of all cases that were measured."""
    rows = [line for case in cases if case.key in results["cases"] for line in lines_of(case, results["cases"][case.key])]
    return HEAD + "\n".join(rows) + "\n"


def machine(results: dict[str, Any]) -> str:
    """Return the sentence on where, when and with what it was measured."""
    where, peers = results["machine"], results["peers"]
    versions = ", ".join(f"{name} {version}" for name, version in peers.items())
    machine = f"{where['processor']}, {where['cores']} cores, {where['memory_gib']} GiB, {where['system']}"
    software = f"Python {where['python']}, torch {where['torch']}, hot path {where['hot_path']}"
    return f"Measured on {results['date']}: {machine}; {software}. Peers: {versions}.\n"


def short(cases: tuple[Case, ...], results: dict[str, Any]) -> str:
    """Return the README's five rows: ours, and the cheapest and the dearest peer."""
    lines = ["| | measured beside | Epochmeter | peers |", "|---|---|---|---|"]
    for key, of, ours, what in SHORT:
        case = next(case for case in cases if case.key == key)
        figure = next(figure for figure in case.figures if figure.key == of)
        floor = next(way.name for way in case.ways if way.whose == FLOOR)
        rows = results["cases"][key]["figures"][of]
        peers = [way.name for way in case.ways if way.whose == PEER and way.name in rows]
        peers.sort(key=lambda name: rows[name][figure.against]["median"])
        beside = "; ".join(f"{told(figure, rows[name], False)} {name}" for name in dict.fromkeys((*peers[:1], *peers[-1:])))
        lines.append(f"| {what} | {floor} | {told(figure, rows[ours], True)} | {beside} |")
    return "\n".join(lines) + "\n"


def between(text: str, name: str, content: str) -> str:
    """Return a page with the content between its two comments of this name."""
    head, begin, rest = text.partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(f"<!-- end of {name} -->")
    if not begin or not end:
        raise SystemExit(f"there is no '<!-- {name} -->' ... '<!-- end of {name} -->' to put the table between")
    return head + begin + "\n" + content + "\n" + end + tail
