"""Deliver everything in the outbox now, because the user asked for it."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from profiler.config.resolve import resolve
from profiler.config.switch_off import empty_outbox
from profiler.errors import SettingsError
from profiler.sending.consent import Consent, state_of
from profiler.sending.destination import destination, without_credentials
from profiler.sending.dispatch import Dispatch, entries_for, forget_old, key_of, outbox_of, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.config import Config
    from exporters.entry import DestinationKey
    from exporters.outbox import Outbox
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


def flush(*, adopt: bool = False, again: bool = False) -> Flushed:
    """Deliver the entries of the outbox now.

    Args:
        adopt: also send entries made for another destination, or under an earlier choice, to the present one.
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
    for key, is_outside_file in _keys(outbox).items():
        config, reason = config_for(key, is_outside_file, resolved, adopt)
        if config is None:
            reasons.append(reason)
            continue
        dispatch = Dispatch(resolved, outbox, config, exporters.gate_for(config, consent))
        if key == dispatch.key:
            dispatch.recover(consent)
        courier = dispatch.courier(consent, record, entries_for(key))
        try:
            round_ = courier.deliver(lambda: math.inf, patience_s=5.0)
        finally:
            courier.close()
        done.delivered += round_.delivered
        done.aside += round_.aside
        reasons += [round_.reason] if round_.reason else []
    reasons += [why for what in _kinds(outbox) if (why := resolved.unwanted(what))]
    done.left = len(outbox.waiting()) + len(outbox.under_way())
    done.reasons = tuple(dict.fromkeys(reasons))
    return done


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


def _keys(outbox: Outbox) -> dict[DestinationKey, bool]:
    """Return the destinations of all entries and of killed runs, each with True if it was chosen outside the file."""
    from exporters.entry import UnreadableError

    found: dict[DestinationKey, bool] = {}
    for entry in [*outbox.waiting(), *outbox.under_way()]:
        with contextlib.suppress(OSError, UnreadableError):
            head = outbox.head(entry)
            found[head.key] = found.get(head.key, False) or head.chosen_there
    for _, about, _ in outbox.open_runs():
        key = key_of(about)
        if key is not None:
            found[key] = found.get(key, False) or bool(about.get("chosen_there"))
    return found


def config_for(
    key: DestinationKey, is_outside_file: bool, resolved: Resolved, adopt: bool = False
) -> tuple[Config | None, str]:
    """Return the destination that may have the entries of this key, or None and the reason why there is none.

    Args:
        is_outside_file: True if the destination was chosen in code or in the environment.
        adopt: let the destination that is chosen now have them.
    """
    import exporters

    chosen: Config | None = None
    with contextlib.suppress(SettingsError):
        if resolved.may_send:
            chosen = exporters.Config(**destination(resolved))
    here = chosen is not None and chosen.target == key.target
    same = here and chosen is not None and (chosen.protocol, without_credentials(chosen.address)) == (key.protocol, key.address)
    if here and (adopt or (same and key.decided == resolved.decided)):
        return chosen, ""
    if is_outside_file and key.decided == resolved.decided and key.target in ("otlp", "otlp-logs", "sentry"):
        return exporters.Config(key.target, key.protocol, key.address), ""  # no headers: they belong to the chosen one
    what = "was chosen anew since then" if same else "is not the one that is chosen here now"
    cure = "; 'epochmeter telemetry flush --adopt' sends it to the present one" if here else ""
    return None, f"something waits for {key.address}, a destination that {what}{cure}"
