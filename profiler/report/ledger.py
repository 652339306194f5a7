"""The ledger of a run: its time by cause, which adds up to the run, and the energy of its GPUs by the same shares."""

from __future__ import annotations

from typing import Any

from profiler.config.word_grammar import tariff_in
from profiler.records.energy import energy_by_gpu, sum_of
from profiler.records.histogram import NS
from profiler.report.stragglers import rank_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run
    from profiler.report.accounts import Accounts


WORDS = {  # cause: its name in the ledger
    "useful": "useful",
    "data_wait": "data_wait",
    "loader_start": "loader_start",
    "ranks": "ranks",
    "collection": "collections",
    "compilation": "compilation",
    "starved": "starved",
    "throttled": "throttled",
    "checkpoint": "checkpoint",
    "transfer": "transfer",
    "host": "host",
    "unnamed": "unnamed",
    "start-up": "start_up",
    "outside": "outside",
}
J_PER_KWH = 3_600_000


def ledger_of(run: Run, whole: EpochRecord, accounts: Accounts, tariff: str | None = None) -> dict[str, Any]:
    """Return the time (s) of a run by cause, as ``<cause>_s``; together they are the run's duration.

    ``energy`` has kWh of all GPUs, joules by cause (each stage's energy, shared out by the stage's time), and its price.

    Args:
        run: the run.
        whole: its sums.
        accounts: those of the run.
        tariff: the price of a kWh, as in the setting; None for no price.
    """
    if not whole.stages:
        return {}
    found = accounts.by_cause()
    _move(found, "ranks", round(sum(wait["waited_s"] for wait in rank_table(run).get("waits", ())) * NS), ("useful", "host"))
    stopped = sum(r.last for r in whole.readings.values() if r.spec.name == "epochmeter.container.cpu.throttled_time")
    _move(found, "throttled", round(stopped * NS), ("starved", "useful", "host", "data_wait"))
    result: dict[str, Any] = {f"{WORDS[cause]}_s": found[cause] / NS for cause in WORDS if found.get(cause)}
    energy = _energy(run, accounts)
    if energy and tariff is not None:
        price, currency = tariff_in(tariff)
        energy["price"] = energy["kwh"] * price
        energy.update({"currency": currency} if currency else {})
    return {**result, "energy": energy} if energy else result


def _move(found: dict[str, int], cause: str, ns: int, sources: tuple[str, ...]) -> None:
    """Give a cause its time, taken from the causes it was counted as so far."""
    for source in sources:
        moved = min(ns, found.get(source, 0))
        if moved > 0:
            found[source] -= moved
            found[cause] = found.get(cause, 0) + moved
            ns -= moved


def _energy(run: Run, accounts: Accounts) -> dict[str, Any]:
    energies = run.energy()
    total = sum_of(energy_by_gpu(energies).values())
    if not energies or not total.is_resolved:
        return {}
    by_cause: dict[str, float] = {}
    for stage, gpus in energies.items():
        joules = sum_of(gpus.values()).joules
        inside = [one for one in accounts.all if one.stage == stage]
        whole = sum(one.ns for one in inside)
        for one in inside:
            name = f"{WORDS[one.cause]}_j"
            by_cause[name] = by_cause.get(name, 0.0) + joules * one.ns / whole
    return {"kwh": total.joules / J_PER_KWH, **by_cause}
