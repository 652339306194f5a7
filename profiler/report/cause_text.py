"""The verdict, its findings and the ledger, in words for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from profiler.report.baseline import in_words
from profiler.report.layout import duration
from profiler.report.ledger import J_PER_KWH

SHOWN_FINDINGS = 4
LEAST_SHOWN = 0.001  # of the run
LEDGER_WORDS = {
    "useful_s": "useful",
    "data_wait_s": "waiting for data",
    "loader_start_s": "starting workers",
    "ranks_s": "waiting for ranks",
    "collections_s": "garbage collections",
    "compilation_s": "compilation",
    "starved_s": "no CPU free",
    "throttled_s": "throttled",
    "checkpoint_s": "checkpoints",
    "transfer_s": "transfer",
    "host_s": "the loop's own code",
    "unnamed_s": "in no phase",
    "start_up_s": "start-up",
    "outside_s": "outside the loop",
}


def cause_rows(data: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    """Yield the verdict, where it comes from, the next step, the other findings and the ledger, a label and a text each."""
    yield from _verdict(data["verdict"])
    yield from _ledger(data.get("ledger", {}))
    if "beside" in data:
        told = [in_words(entry) for entry in data["beside"]] or ["the baseline has no class that this run is of"]
        yield from (("beside", Text(text)) for text in told)


def _verdict(verdict: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    yield "verdict", Text.assemble((verdict["kind"], "bold"), ": ", "; ".join(verdict["evidence"]))
    findings = verdict["findings"]
    if findings and "line" in findings[0]:
        yield "line", Text(findings[0]["line"])
    if findings and "at" in findings[0]["where"]:
        yield "when", Text(_when(findings[0]["where"]))
    if "next" in verdict:
        yield "next", Text(verdict["next"], "bold")
    for finding in findings[1:SHOWN_FINDINGS]:
        line = f", at {finding['line']}" if "line" in finding else ""
        yield "also", Text(f"{finding['evidence'][0]}{line}. Next: {finding['next']}")


def _when(where: dict[str, Any]) -> str:
    epoch = f" of epoch {where['epoch']}" if "epoch" in where else ""
    return f"the slowest at step {where['step']}{epoch}, {where['at'][11:23]} UTC"


def _ledger(ledger: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    parts = ledger_parts(ledger)
    whole = sum(spent for _, spent in parts)
    if whole:
        shown = [f"{words} {duration(spent)} ({spent / whole:.1%})" for words, spent in parts if spent >= LEAST_SHOWN * whole]
        yield "ledger", Text(", ".join(shown))
    if ledger.get("energy"):
        yield "energy", Text(energy_words(ledger["energy"]))


def ledger_parts(ledger: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the causes of a ledger in words, each with its time (s), the longest first."""
    parts = [(words, ledger[name]) for name, words in LEDGER_WORDS.items() if name in ledger]
    return sorted(parts, key=lambda part: -part[1])


def energy_words(energy: dict[str, Any]) -> str:
    """Return the energy of a ledger in words, with its price and how much of it was wasted."""
    wasted = sum(value for name, value in energy.items() if name.endswith("_j") and name != "useful_j")
    share = wasted / (energy["kwh"] * J_PER_KWH)
    price = f", {energy['price']:.2f} {energy.get('currency', '')}".rstrip() if "price" in energy else ""
    return f"{energy['kwh']:.4g} kWh{price}; {share:.0%} of it while no useful work was done"
