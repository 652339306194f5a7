"""The verdict, its findings and the ledger, in words for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from profiler.report.layout import duration

SHOWN_FINDINGS = 4
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


def verdict_lines(verdict: dict[str, Any]) -> Iterator[Text]:
    """Return the verdict, where it comes from, the next step, and the other findings, which a reader looks for first."""
    yield Text.assemble("verdict    ", (verdict["kind"], "bold"), ": ", "; ".join(verdict["evidence"]))
    findings = verdict["findings"]
    if findings and "line" in findings[0]:
        yield Text(f"line       {findings[0]['line']}")
    if findings and "at" in findings[0]["where"]:
        yield Text(f"when       {_when(findings[0]['where'])}")
    if "next" in verdict:
        yield Text.assemble("next       ", (verdict["next"], "bold"))
    for finding in findings[1:SHOWN_FINDINGS]:
        line = f", at {finding['line']}" if "line" in finding else ""
        yield Text(f"also       {finding['evidence'][0]}{line}. Next: {finding['next']}")


def _when(where: dict[str, Any]) -> str:
    epoch = f" of epoch {where['epoch']}" if "epoch" in where else ""
    return f"the slowest at step {where['step']}{epoch}, {where['at'][11:23]} UTC"


def ledger_lines(ledger: dict[str, Any]) -> Iterator[Text]:
    """Return the run's time by cause, the most first, and its energy."""
    times = {name: ledger[name] for name in LEDGER_WORDS if name in ledger}
    whole = sum(times.values())
    ordered = sorted(times, key=lambda name: -times[name])
    shown = [name for name in ordered if times[name] >= 0.001 * whole]
    if whole:
        words = [f"{LEDGER_WORDS[name]} {duration(times[name])} ({times[name] / whole:.1%})" for name in shown]
        yield Text(f"ledger     {', '.join(words)}")
    energy = ledger.get("energy")
    if energy:
        wasted = sum(value for name, value in energy.items() if name.endswith("_j") and name != "useful_j")
        share = wasted / (energy["kwh"] * 3_600_000)
        price = f", {energy['price']:.2f} {energy.get('currency', '')}".rstrip() if "price" in energy else ""
        yield Text(f"energy     {energy['kwh']:.4g} kWh{price}; {share:.0%} of it while no useful work was done")
