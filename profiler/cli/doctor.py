"""``epochmeter doctor``: each part that works or does not work here, and the cure."""

from __future__ import annotations

import secrets
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from profiler.cli.options import AsJson
from profiler.cli.output import say_json
from profiler.errors import ProfilerError
from profiler.records.plain_text import printable_in

RUNS_LOOKED_AT = 5
NOT_OBEYED = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE")
PROVIDED = ("epochmeter", "profiler", "exporters")


@dataclass
class Check:
    """One finding. ``state`` is ok, missing (something optional is not installed) or problem."""

    name: str
    state: str
    detail: str
    cure: str = ""


def doctor(
    full: Annotated[bool, typer.Option("--full", help="Also ask py-cpuinfo about the CPU, which takes a second.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check each part of the profiler on this machine, and say how to mend its faults.

    Example: epochmeter doctor --full
    """
    checks = [check for look in LOOKS for check in _alone(look)]
    if full:
        checks += list(_cpu())
    if as_json:
        say_json({"checks": [asdict(check) for check in checks]})
        return
    console = Console()
    marks = {"ok": "[green]ok[/]     ", "missing": "[yellow]missing[/]", "problem": "[red]problem[/]"}
    for check in checks:
        check = Check(*printable_in(astuple(check)))
        console.print(f"{marks[check.state]} {escape(check.name)}: ", end="")
        console.print(check.detail, markup=False, highlight=False, soft_wrap=True)
        if check.cure:
            console.print(f"        -> {check.cure}", markup=False, highlight=False, soft_wrap=True)


def _alone(look: Callable[[], Iterator[Check]]) -> list[Check]:
    """Return the findings of one check. A check that fails is a finding, too, and the others go on."""
    found: list[Check] = []
    try:
        found.extend(look())
    except (ProfilerError, OSError) as error:
        found.append(Check(look.__name__.strip("_").replace("_", " "), "problem", f"cannot be looked at: {error}"))
    return found


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= (3, 10)
    yield Check("python", "ok" if fits else "problem", version, "" if fits else "use Python 3.10 or newer")


def _hot_path() -> Iterator[Check]:
    """Say whether phases and steps are timed in C or in Python, and why."""
    from profiler.measure import hot_path

    if not hot_path.WHY_PURE:
        yield Check("hot path", "ok", "compiled")
        return
    yield Check("hot path", "ok", f"in Python ({hot_path.WHY_PURE}): a phase costs two to three times as much")


def _packages() -> Iterator[Check]:
    """Look for other distributions, or a file in the working folder, that hide our packages."""
    providers = metadata.packages_distributions()
    for package in PROVIDED:
        others = sorted({name for name in providers.get(package, []) if name.lower() != "epochmeter"})
        if others:
            cure = f"pip uninstall {' '.join(others)}, then install epochmeter again"
            yield Check(f"package {package}", "problem", f"also installed by {', '.join(others)}", cure)
        hiding = [name for name in (f"{package}.py", package) if (Path.cwd() / name).exists()]
        ours = Path(__file__).parents[2].resolve() == Path.cwd().resolve()
        if hiding and not ours:
            instead = ", or import from epochmeter instead" if package == "profiler" else ""
            cure = f"rename {hiding[0]} here, or run scripts from another folder{instead}"
            yield Check(f"package {package}", "problem", f"{hiding[0]} in this folder hides it from scripts here", cure)


def _home() -> Iterator[Check]:
    """Say which folder an EPOCHMETER_HOME means that is relative, or begins with ``~``."""
    from profiler.config.paths import home, is_expanded

    try:
        named = is_expanded()
    except RuntimeError as error:
        yield Check("EPOCHMETER_HOME", "problem", f"{error}; nothing is kept or sent", "name a folder by its whole path")
        return
    if named:
        cure = "name it by its whole path: from another folder, the same name means another one"
        yield Check("EPOCHMETER_HOME", "ok", f"{named} is taken as {home()}", cure if not named.startswith("~") else "")


def _folders() -> Iterator[Check]:
    from profiler.config.folder import Folder
    from profiler.config.paths import runs_path, settings_path
    from profiler.config.place import UntrustedError

    for name, find in (("settings folder", settings_path), ("data folder", runs_path)):
        try:
            folder = Folder(find().parent if find is settings_path else find())
            probe = f"{secrets.token_hex(8)}.part"
            folder.create(probe, b"x" * 4096)
            folder.remove(probe)
        except UntrustedError as error:
            yield Check(name, "problem", f"{error.filename} {error.strerror}: it is as if it were not there", error.cure)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            cure = "free some space or make it writable, or set EPOCHMETER_HOME to another folder; runs go on, unrecorded"
            yield Check(name, "problem", f"cannot be written: {reason}", cure)
        else:
            yield Check(name, "ok", str(folder))


def _settings() -> Iterator[Check]:
    from profiler.config.resolve import resolve

    resolved = resolve()
    for problem in resolved.problems:
        yield Check("settings", "problem", problem, "epochmeter settings --explain shows where each value comes from")
    if not resolved.may_send:
        yield Check("export", "ok", f"nothing leaves this machine: {resolved.why_off}")
        return
    from exporters import why_not
    from profiler.config.environment import names_set
    from profiler.errors import SettingsError
    from profiler.sending.destination import destination, in_clear, in_words

    exporter = resolved.values["exporter"]
    try:
        chosen = destination(resolved)
        lacking, where = why_not(chosen["target"], chosen["protocol"]), in_words(resolved)
    except SettingsError as error:
        yield Check("export", "problem", f"nothing is sent: {error}", "see 'epochmeter settings --explain'")
        return
    if lacking:
        yield Check("export", "problem", f"nothing is sent: {lacking}", "or: epochmeter settings exporter=none")
    else:
        yield Check("export", "ok", f"measurements go to {exporter.value} ({exporter.source}): {where}", "")
    if warning := in_clear(chosen):
        yield Check("export", "problem", warning, "an address that begins with https://")
    if proxies := chosen["proxies"]:
        yield Check("export", "ok", f"goes through the proxy that the environment names for {' and '.join(sorted(proxies))}")
    for name in names_set(NOT_OBEYED):
        yield Check("export", "ok", f"{name} is set, and not obeyed here; otlp_certificate names certificates to trust")
    for name in ("certificate", "client_certificate", "client_key"):
        path = chosen.get(name)
        if path is not None and not Path(path).is_file():
            yield Check("export", "problem", f"there is no file {path} ({name})", "name the file by its whole path")


def _outbox() -> Iterator[Check]:
    """Show the waiting and the refused entries, and the number of dropped ones."""
    from profiler.config.folder import Folder
    from profiler.config.paths import outbox_path
    from profiler.config.resolve import resolve

    try:
        if not Folder(outbox_path()).check():
            return
    except (OSError, RuntimeError) as error:
        yield Check(
            "outbox", "problem", f"cannot be used: {getattr(error, 'strerror', None) or error}", getattr(error, "cure", "")
        )
        return
    from exporters.entry import UnreadableError
    from exporters.outbox import REASONS
    from profiler.sending.dispatch import outbox_of
    from profiler.sending.flush import config_for

    resolved = resolve()
    outbox = outbox_of(resolved)
    waiting: dict[Any, int] = {}
    for entry in [*outbox.waiting(), *outbox.under_way()]:
        try:
            head = outbox.head(entry)
        except (OSError, UnreadableError):
            continue
        waiting[head.key] = waiting.get(head.key, 0) + 1
    for key, count in waiting.items():
        why, wait_s = outbox.troubles.of(key.digest)
        detail = f"{count} for {key.shown}" + (f"; the last time: {why}" if why else "")
        cure = "epochmeter telemetry flush" if why else ""
        if wait_s > 0:
            detail, cure = f"{detail}; it asks to be left alone for another {wait_s:.0f} s", ""
        else:
            cure = config_for(key, resolved)[1] or cure
        yield Check("outbox: waiting", "problem" if why else "ok", detail, cure)
    refused: dict[str, int] = {}
    for _, why in outbox.aside():
        refused[why] = refused.get(why, 0) + 1
    for why, count in refused.items():
        cure = "repair the fault it names, then: epochmeter telemetry flush --again"
        yield Check("outbox: refused by the destination", "problem", f"{count}: {why}", cure)
    for reason, count in outbox.dropped().items():
        yield Check("outbox: given up", "problem" if reason != "withdrawn" else "ok", f"{count}: {REASONS[reason]}")


def _embedded() -> Iterator[Check]:
    """Show the counts and crashes of packages that embed us, and the faults of both."""
    from profiler.config.environment import not_for_hosts
    from profiler.config.paths import crashes_path, usage_path
    from profiler.config.resolve import resolve
    from profiler.embedding.crash import has_sentry
    from profiler.sending.notices import notices_shown
    from profiler.storage.crash_notes import crashes_in
    from profiler.storage.usage_ledger import ledgers

    for ledger in ledgers(usage_path()):
        waiting = ledger.pending()
        parts = [*ledger.kept(), *(counted for _, counted in waiting)]
        uses = sum(counted.counts.total for counted in parts)
        yield Check(f"usage of {ledger.name}", "ok", f"{uses} uses counted; {len(waiting)} summaries wait to be made")
        if unreadable := ledger.unreadable():
            yield Check(f"usage of {ledger.name}", "problem", f"{unreadable} files of counts cannot be read")
        notes: Counter[str] = Counter()
        for counted in parts:
            notes.update(counted.notes)
        for what, times in notes.items():
            state = "ok" if _has_been_seen_to(what) else "problem"
            yield Check(f"usage of {ledger.name}", state, f"{what} ({times}x)")
    resolved = resolve()
    for entry in notices_shown():
        where = f"{entry['app']} sends to {entry['where']}, which its author chose; a notice was shown"
        off = not_for_hosts() or ("" if resolved.may_hand_over else resolved.why_off)
        if resolved.may_send:
            off = "goes where you have chosen"
        yield Check(f"export of {entry['app']}", "ok", f"{where}; but not now: {off}" if off else where)
    (noted, unreadable), reports = crashes_in(crashes_path()), resolved.values["crash_reports"]
    if unreadable:
        yield Check("crash reports", "problem", f"{unreadable} notes cannot be read")
    if noted or reports.value:
        state = f"{len(noted)} noted here; crash_reports is {'on' if reports.value else 'off'} ({reports.source})"
        yield Check("crash reports", "ok", f"{state}; sentry-sdk is {'' if has_sentry() else 'not '}installed")


def _probes() -> Iterator[Check]:
    from profiler.hardware import PROBES
    from profiler.hardware.sampler import OPEN_DEADLINE_S, Sampler

    for name in PROBES:
        sampler = Sampler(1.0, probes=(name,))
        opened: list[tuple[int, int]] = []
        thread = threading.Thread(
            target=lambda sampler=sampler, name=name, opened=opened: opened.append(sampler.open(name)), daemon=True
        )
        thread.start()
        thread.join(OPEN_DEADLINE_S)
        if not opened:
            cure = "runs go on without its readings; if nvidia-smi hangs, too, the driver or the card needs a reset"
            yield Check(f"probe {name}", "problem", f"the driver does not answer within {OPEN_DEADLINE_S:g} s", cure)
            continue
        facts, readings = opened[0]
        if name in sampler.missing:
            yield Check(f"probe {name}", "missing", sampler.missing[name])
        elif sampler.notes:
            yield Check(f"probe {name}", "problem", ", ".join(sampler.notes), "please report this")
        else:
            yield Check(f"probe {name}", "ok", f"{facts} facts, {readings} readings")


def _optional() -> Iterator[Check]:
    for package, purpose, extra in (
        ("torch", "training itself, CUDA timing", "torch"),
        ("scikit-learn", "the data of 'epochmeter demo'", "demo"),
        ("pyarrow", "'epochmeter fleet', many runs as one table", "fleet"),
    ):
        try:
            yield Check(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Check(package, "missing", f"not installed; it is for {purpose}", f"pip install 'epochmeter[{extra}]'")


def _recent_runs() -> Iterator[Check]:
    from profiler.config.paths import runs_path
    from profiler.errors import RunLogError
    from profiler.storage.run_log import run_paths
    from profiler.storage.run_reader import load

    paths = run_paths(runs_path())
    yield Check("recorded runs", "ok", str(len(paths)))
    for path in paths[:RUNS_LOOKED_AT]:
        try:
            run = load(path)
        except RunLogError as error:
            yield Check("run log", "problem", str(error))
            continue
        for what, times in run.notes.items():
            yield Check(f"run {run.id}", "ok" if _has_been_seen_to(what) else "problem", f"{what} ({times}x)")


def _has_been_seen_to(note: str) -> bool:
    """Return True for a failed delivery that has since succeeded or waits: the outbox shows it."""
    from exporters.courier import NOT_AT_ONCE

    return note.startswith(NOT_AT_ONCE)


def _cpu() -> Iterator[Check]:
    """Ask py-cpuinfo, in this command alone: it starts child processes, which a user's run never does."""
    try:
        import cpuinfo
    except ImportError:
        yield Check("py-cpuinfo", "missing", "not installed", "pip install py-cpuinfo")
        return
    from profiler.hardware.host import cpu_family

    info = cpuinfo.get_cpu_info()
    features = [flag for flag in ("avx2", "avx512f", "amx_tile", "asimd", "sve") if flag in info.get("flags", ())]
    family = cpu_family(info.get("brand_raw")) or "not known"
    yield Check("cpu", "ok", f"{family}; vector instructions: {', '.join(features) or 'none known'}")


LOOKS = (_python, _hot_path, _packages, _home, _folders, _settings, _outbox, _embedded, _probes, _optional, _recent_runs)
