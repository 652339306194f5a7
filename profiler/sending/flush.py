"""Deliver everything in the outbox now, because the user asked for it."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from profiler.config.address import known_by, shown
from profiler.config.resolve import resolve
from profiler.config.switch_off import empty_outbox
from profiler.errors import SettingsError
from profiler.sending.consent import Consent, state_of
from profiler.sending.destination import destination, logs_address
from profiler.sending.dispatch import Dispatch, entries_for, forget_old, key_of, lock_named, outbox_of, package_of, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.config import Config
    from exporters.entry import DestinationKey, Entry
    from exporters.outbox import Outbox
    from exporters.rules import Declared
    from profiler.config.resolve import Resolved


@dataclass
class Flushed:
    """The result of a flush, in entries.

    Attributes:
        delivered: accepted by a destination.
        aside: refused for good, and set aside.
        left: still in the outbox.
        refused_before: set aside earlier, and not tried again.
        reasons: why entries are left.
    """

    delivered: int = 0
    aside: int = 0
    left: int = 0
    refused_before: int = 0
    reasons: tuple[str, ...] = ()


def flush(*, adopt: bool = False, again: bool = False, declared: Collection[Declared] = ()) -> Flushed:
    """Deliver the entries of the outbox now.

    Args:
        adopt: also send entries made for another destination, or under an earlier choice, to the present one. The same holds
            for entries of packages with other declarations than those in force.
        declared: the declarations of packages that are in force now.
        again: also try entries that were set aside.

    Raises:
        SettingsError, ExporterError: nothing can be sent to the chosen destination.
    """
    import exporters

    resolved = resolve()
    outbox = outbox_of(resolved)
    if resolved.off_in_file:
        empty_outbox()
    if not resolved.may_hand_over:
        waiting = len(outbox.waiting())
        return Flushed(left=waiting, reasons=(f"nothing leaves this machine: {resolved.why_off}",) if waiting else ())
    forget_old(resolved)
    _drop_unwanted(resolved)
    if again:
        outbox.take_up_again()
    done, reasons = Flushed(refused_before=len(outbox.aside())), []
    consent = Consent(resolve, lambda now: now.may_hand_over, state_of(resolved))
    keys = _keys(outbox)
    for key in keys:
        _settle(outbox, key)
    for key in keys:
        config, reason = config_for(key, resolved, adopt)
        if config is None:
            reasons.append(reason)
            continue
        dispatch = Dispatch(resolved, outbox, config, exporters.gate_for(config, consent))
        if key == dispatch.key:
            dispatch.recover(consent)
        known = None if adopt else {None, *declared}
        courier = dispatch.courier(consent, record, entries_for(key, known))
        try:
            round_ = courier.deliver(lambda: math.inf, patience_s=5.0)
        finally:
            courier.close()
        done.delivered += round_.delivered
        done.aside += round_.aside
        reasons += [round_.reason] if round_.reason else []
        reasons += _undeclared(outbox, key, known)
    reasons += [why for what in _kinds(outbox) if (why := resolved.unwanted(what))]
    reasons += [f"something is being sent to {key.shown} by another process" for key in _keys_of(outbox, outbox.under_way())]
    done.left = len(outbox.waiting()) + len(outbox.under_way())
    done.reasons = tuple(dict.fromkeys(reasons))
    return done


def _settle(outbox: Outbox, key: DestinationKey) -> None:
    """Let the entries wait again that a process which is gone was sending to this destination."""
    held = lock_named(key.digest)
    with contextlib.suppress(OSError, NotImplementedError, RuntimeError, ImportError):  # a process is sending: it is not gone
        held.acquire(timeout=0)
        try:
            outbox.recover(key.digest, locked=True)
        finally:
            held.release()


def _drop_unwanted(resolved: Resolved) -> None:
    """Remove entries of kinds that the settings file switches off, also if that was written by hand."""
    for what, setting in (("usage", "usage"), ("crash", "crash_reports")):
        if resolved.unwanted(what) and resolved.values[setting].source in ("file", "default"):
            empty_outbox(what)


def _kinds(outbox: Outbox) -> set[str]:
    """Return the kinds of waiting entries: "run", "usage" and "crash"."""
    from exporters.entry import UnreadableError

    found = set()
    for entry in outbox.waiting():
        with contextlib.suppress(OSError, UnreadableError):
            found.add(outbox.head(entry).what)
    return found


def _undeclared(outbox: Outbox, key: DestinationKey, known: Collection[Declared | None] | None) -> list[str]:
    """Return in words that entries wait whose declarations are not in force here."""
    from exporters.entry import UnreadableError

    found: Counter[str] = Counter()
    if known is None:
        return []
    for entry in outbox.waiting():
        with contextlib.suppress(OSError, UnreadableError):
            head = outbox.head(entry)
            of_package = package_of(head.declared)
            if head.key == key and of_package is not None and of_package not in known:
                found[of_package.app] += 1
    cure = "its own next run sends them, or 'epochmeter telemetry flush --adopt'"
    return [f"{count} of {app} wait, made by another version of it than is known here; {cure}" for app, count in found.items()]


def _keys(outbox: Outbox) -> list[DestinationKey]:
    """Return the destinations of all entries and of killed runs."""
    found = dict.fromkeys(_keys_of(outbox, [*outbox.waiting(), *outbox.under_way()]))
    for _, about, _ in outbox.open_runs():
        key = key_of(about)
        if key is not None:
            found[key] = None
    return list(found)


def _keys_of(outbox: Outbox, entries: Iterable[Entry]) -> list[DestinationKey]:
    """Return the destinations of these entries, each once."""
    from exporters.entry import UnreadableError

    found: dict[DestinationKey, None] = {}
    for entry in entries:
        with contextlib.suppress(OSError, UnreadableError):
            found[outbox.head(entry).key] = None
    return list(found)


def config_for(key: DestinationKey, resolved: Resolved, adopt: bool = False) -> tuple[Config | None, str]:
    """Return the destination that may have the entries of this key, or None and the reason why there is none.

    An entry cannot vouch for its own address: it goes only to the destination that is chosen now.

    Args:
        adopt: let the destination that is chosen now have entries of another one. A crash report for Sentry, whose address
            only its package knows, then goes to the address that the entry names.
    """
    import exporters

    if key.target == "sentry":
        if adopt and key.shown == key.address:
            return exporters.Config(key.target, key.protocol, key.address, where=key.shown), ""
        cure = "the package's next report sends it, or 'epochmeter telemetry flush --adopt'"
        return None, f"a crash report waits for {key.shown}, which a package has chosen; {cure}"
    chosen = _chosen(key.target, resolved)
    same = chosen is not None and (chosen.protocol, known_by(chosen.address)) == (key.protocol, key.address)
    if chosen is not None and (adopt or (same and key.decided == resolved.decided)):
        return chosen, ""
    what = "was chosen anew since then" if same else "is not the one that is chosen here now"
    cure = "" if chosen is None else "; 'epochmeter telemetry flush --adopt' sends it to the present one"
    return None, f"something waits for {key.shown}, a destination that {what}{cure}"


def _chosen(target: str, resolved: Resolved) -> Config | None:
    """Return the destination that is chosen now for entries of this kind, or None."""
    import exporters

    with contextlib.suppress(SettingsError):
        if resolved.may_send:
            found = exporters.Config(**destination(resolved))
            logs = logs_address(found.address, found.protocol)
            if target == "otlp-logs" and found.target == "otlp" and logs is not None:
                return replace(found, target=target, address=logs, where=shown(logs))
            return found if found.target == target else None
    return None
