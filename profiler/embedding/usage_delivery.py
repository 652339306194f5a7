"""A package's counts on their way out: summed up, and through the gate into the outbox."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from profiler.config.environment import not_for_hosts
from profiler.config.paths import usage_path
from profiler.config.resolve import EmbeddingApp
from profiler.embedding.delivery import Delivery, declared_from, name_alone
from profiler.embedding.package_info import PackageInfo
from profiler.sending.consent import Consent, state_of
from profiler.sending.destination import destination, in_words
from profiler.sending.dispatch import LAST, Dispatch, outbox_of, record
from profiler.sending.notices import OWN_EXPORTER, STOP, may_send_for
from profiler.storage.usage_ledger import ledgers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.rules import Declared
    from profiler.config.resolve import Resolved
    from profiler.storage.usage_ledger import Counted, UsageLedger


USAGE_TARGETS = ("otlp", "ga")  # a program that has ended cannot be scraped
PATIENCE_S = 1.0  # with another process that sums up the same package's counts


def usage_goes_to(info: PackageInfo, resolved: Resolved) -> str | None:
    """Return the destination of counts in words, or None if they go nowhere.

    Raises:
        SettingsError: a setting or variable of the destination cannot be used.
    """
    if resolved.values["usage"].value is not True:
        return None
    if info.exporter is not None:
        return OWN_EXPORTER if resolved.may_hand_over and not not_for_hosts() else None
    if not resolved.may_send or resolved.settings.exporter not in USAGE_TARGETS:
        return None
    return in_words(resolved)


def may_leave(info: PackageInfo, resolved: Resolved, began_ns: int) -> bool:
    """Return True if counts since that moment may be sent. A user who has seen no notice is shown one now.

    Raises:
        SettingsError: as in `usage_goes_to`.
    """
    if usage_goes_to(info, resolved) is None or not may_send_for(info.app, resolved, info.exporter):
        return False
    return resolved.decided is None or _time_of(resolved.decided) * 1e9 <= began_ns


def _time_of(date: str) -> float:
    try:
        return datetime.fromisoformat(date).timestamp()
    except ValueError:
        return float("inf")  # a date that cannot be read lets nothing through


# ---- usage ---------------------------------------------------------------------------------------------------------


def export_usage(
    info: PackageInfo, resolved: Resolved, consent: Callable[[], bool], note: Callable[[str], None]
) -> Delivery | None:
    """Sum up the counts that may leave, and put them into the outbox. Return their delivery, or None.

    Args:
        info: the package.
        resolved: the settings in force.
        consent: asked before anything is handed over.
        note: receives the faults, in words.

    Raises:
        OSError, ValueError: nothing can be put there; the text says why.
    """
    import exporters

    ledger = info.ledger
    choice = state_of(resolved).as_list()
    with ledger.alone(PATIENCE_S) as alone:
        if not alone:
            return None
        ledger.note_export()
        if info.exporter is not None:
            _hand_over(info, ledger, choice, consent, note)
            return None
        config = exporters.Config(**destination(resolved))
        dispatch = Dispatch(resolved, outbox_of(resolved), config, exporters.gate_for(config, consent))
        for summary, counted in ledger.summaries(choice):
            try:
                declared = declared_from(counted.declared)
            except (ValueError, KeyError, TypeError):
                note("counts could not be read")
                ledger.sent(summary, keep=True)
                continue
            data = usage_of(summary, counted)
            put = dispatch.put_data(summary, counted.began, data, LAST, declared, what="usage", apart=counted.apart)
            if dispatch.gate.reason:
                note(dispatch.gate.reason)
            if put or dispatch.gate.reason:  # without consent it stays, and a new choice will keep it here
                ledger.sent(summary, keep=resolved.settings.local)
        ledger.tidy(resolved.settings.retention_days)
    kind = "which features, commands and options are used and how its runs end, in counts"
    return Delivery(info, dispatch, consent, f"usage of {info.name}", kind, STOP, announced=resolved.host_chose)


def export_waiting() -> list[str]:
    """Put the waiting counts of every package into the outbox, if the user has chosen their destination.

    If a package has chosen it, its own next run does this.

    Returns:
        the faults, in words.

    Raises:
        OSError, ValueError: nothing can be put there.
    """
    notes: list[str] = []
    for ledger in ledgers(usage_path()):
        info = PackageInfo(dict, EmbeddingApp(ledger.name), {})
        resolved = info.resolve()
        if ledger.pending() and usage_goes_to(info, resolved) is not None:
            consent = Consent(info.resolve, partial(_goes_somewhere, info))
            try:
                export_usage(info, resolved, consent, notes.append)
            except OSError as error:  # the others go on
                notes.append(f"the counts of {ledger.name} cannot be sent: {error.strerror}")
    return notes


def declarations_known() -> set[Declared]:
    """Return the declarations in force: those that each package made when it last counted here, and its name alone."""
    found = set()
    for ledger in ledgers(usage_path()):
        parts = [*ledger.kept(), *(counted for _, counted in ledger.pending())]
        found.add(name_alone(ledger.name))
        with contextlib.suppress(ValueError, KeyError, TypeError):  # max of none; a spoilt file
            found.add(declared_from(max(parts, key=lambda counted: counted.ended).declared))
    return found


def _goes_somewhere(info: PackageInfo, resolved: Resolved) -> bool:
    return usage_goes_to(info, resolved) is not None


def usage_of(summary: str, counted: Counted) -> Any:
    """Return counts as the gate takes them."""
    from profiler.sending.snapshot import usage_snapshot

    return usage_snapshot(summary, counted.facts, counted.counts, counted.began, counted.ended)


def parts_of(data: Any, apart: bool) -> list[Any]:
    """Return counts as they are handed over: with all facts, or with each fact apart from the others."""
    if not apart:
        return [data]
    from profiler.sending.apart import facts_apart

    counts, single = facts_apart(data)
    return [counts, *single]


def _hand_over(
    info: PackageInfo, ledger: UsageLedger, choice: list[Any], consent: Callable[[], bool], note: Callable[[str], None]
) -> None:
    import exporters

    for summary, counted in ledger.summaries(choice):
        declared = declared_from(counted.declared)
        gated = exporters.behind_gate(info.exporter, consent, record, declared)
        ledger.sent(summary, keep=True)  # first, because a package's exporter may count a second call twice
        for data in parts_of(usage_of(summary, counted), counted.apart):
            gated.export(data)
            if gated.reason:
                note(gated.reason)
