"""A package's crash reports on their way out: through the gate into the outbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from profiler.config.address import check_address, shown
from profiler.config.environment import not_for_hosts, proxies_for
from profiler.config.paths import crashes_path
from profiler.embedding import crash
from profiler.embedding.delivery import Delivery, declared_from
from profiler.errors import SettingsError
from profiler.sending.destination import destination, logs_address
from profiler.sending.dispatch import LAST, Dispatch, forget_old, outbox_of
from profiler.sending.notices import may_send_for
from profiler.storage import crash_notes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import Resolved
    from profiler.embedding.package_info import PackageInfo


STOP_CRASHES = "To stop it: epochmeter settings crash_reports=false"


# ---- crashes -------------------------------------------------------------------------------------------------------


def crash_target(info: PackageInfo, resolved: Resolved) -> tuple[str, str] | None:
    """Return the target and address of crash reports, or None if they stay on this machine.

    Only if the user has switched them on. With a DSN and Sentry's library they go to Sentry, else to a collector, if one is
    chosen. A DSN is the package's choice, so it is ignored in CI and tests.

    Raises:
        SettingsError: a setting or variable of the collector cannot be used.
    """
    if resolved.values["crash_reports"].value is not True or not resolved.may_hand_over:
        return None
    if info.dsn is not None and crash.has_sentry():
        return None if not_for_hosts() else ("sentry", crash.address_of(info.dsn))
    if not resolved.may_send or resolved.settings.exporter != "otlp":
        return None
    if not may_send_for(info.app, resolved, shows_notice=False):
        return None
    found = destination(resolved)
    address = logs_address(str(found["address"]), str(found["protocol"]))
    return None if address is None else ("otlp-logs", address)


def keep_crash(info: PackageInfo, error: BaseException, resolved: Resolved, target: tuple[str, str] | None) -> dict[str, Any]:
    """Note a crash, also on disk if the settings keep anything on this machine. The note is scrubbed from the start.

    Args:
        info: the package.
        error: the error.
        resolved: the settings in force.
        target: the result of `crash_target`.

    Raises:
        OSError: it cannot be kept.
    """
    noted = {
        **crash.scrubbed(error, tuple(info.declared["modules"]), info.name),
        "facts": info.sent_facts(),
        "declared": dict(info.declared),
        **({} if info.dsn is None else {"dsn": crash.public(info.dsn)}),
        **({} if target is None else {"target": list(target)}),
    }
    if resolved.settings.local:
        crash_notes.note_crash(crashes_path(), noted)
        crash_notes.forget_crashes(crashes_path(), resolved.settings.retention_days)
    return noted


def crash_body(noted: Mapping[str, Any], target: str, *, previewed: bool = False) -> bytes:
    """Return a noted crash as the body of a request.

    Args:
        noted: the note.
        target: a name in `TARGETS`.
        previewed: make it without Sentry's library, which opens a socket when it is loaded. The bytes are the same.
    """
    from exporters import crash_log, crash_payload

    report = crash_payload.rebuilt(noted, declared_from(noted["declared"]))
    if target != "sentry":
        return crash_log.encode(report)
    if previewed:
        return crash_payload.envelope(report, noted["dsn"])
    return crash.envelope(crash_payload.event(report), noted["dsn"])


def export_crash(
    info: PackageInfo, noted: Mapping[str, Any], resolved: Resolved, consent: Callable[[], bool]
) -> tuple[Delivery | None, str]:
    """Put a noted crash into the outbox. Return its delivery, if any, and the fault in words, or "".

    Raises:
        OSError, ValueError: it cannot be put there; the text says why.
    """
    import exporters

    chosen = crash_target(info, resolved)
    if chosen is None:
        return None, ""
    target, address = chosen
    if target == "sentry":
        proxies = proxies_for(check_address("crash_dsn", address))
        config = exporters.Config(target, "envelope", address, where=shown(address), proxies=proxies)
    else:
        config = replace(exporters.Config(**destination(resolved)), target=target, address=address, where=shown(address))
    if lacking := exporters.why_not(config.target, config.protocol):
        raise SettingsError(lacking)
    gate = exporters.gate_for(config, consent)
    body, declared = crash_body(noted, target), declared_from(noted["declared"])
    if not gate.passes(body, declared=declared):
        return None, gate.reason
    forget_old(resolved)
    dispatch = Dispatch(resolved, outbox_of(resolved), config, gate)
    dispatch.put_body(noted["id"][:12], noted["time_unix_ns"], LAST, body, declared, "crash")
    kind = "where in its code an error came from, and of which class it is"
    return Delivery(info, dispatch, consent, f"crashes of {info.name}", kind, STOP_CRASHES, announced=False), ""
