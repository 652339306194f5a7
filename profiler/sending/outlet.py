"""What joins the two halves: a run's data goes through the gate into the outbox, and a courier takes it from there.

The rules it keeps: this is the only module, beside the commands, that knows ``exporters``, and it loads them once there is
consent. The loop is never waited for and never waits: what is to be sent is made and kept by the sampling thread, and
taken to its destination by a thread of its own, because a collector that does not answer must not hold up readings. The
last word of a run is on disk before the run ends; for its delivery the end of a run waits as long as ``exit_timeout``
says, whatever the destination does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.config.locks import lock
from profiler.config.resolve import (
    data_path,
    empty_outbox,
    not_for_hosts,
    outbox_path,
    resolve,
    runs_path,
    sent_path,
    told_path,
)
from profiler.errors import SettingsError
from profiler.sending.destination import destination, in_words, without_credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.config import Config
    from exporters.courier import Courier
    from exporters.outbox import Head, Key, Outbox
    from exporters.rules import Declared
    from profiler.config.resolve import Host, Resolved
    from profiler.records.run import Run


SHARE_S = 0.0005  # between two pieces of work beside the loop, so that it does not wait for the interpreter's lock
GA_HOURS = 70.0  # Google takes what is at most 72 hours old, and our times are up to an hour early
LOOK_AGAIN_S = 5.0  # where another process is delivering, or something failed
STOP = "To stop it: epochmeter settings sync=false"
OWN_EXPORTER = "an exporter of its own"
LAST = "final"  # the order of a run's last entry: sorts behind all numbers
CHOSEN_THERE = ("argument", "environment", "host")


def share() -> None:
    """Lets the loop's thread have its turn."""
    time.sleep(SHARE_S)


def nothing() -> None:
    pass


class Sending:
    """One run's way out.

    Args:
        run: the run.
        find: gives the settings in force.
        exporter: an OpenTelemetry ``MetricExporter`` of the program's own, or None.
        snapshot: gives the run so far as ``MetricsData``; may be called from any thread. It is handed a function to call
            between two pieces of work.
        note: counts what goes wrong.
    """

    def __init__(
        self,
        run: Run,
        find: Callable[[], Resolved],
        exporter: Any,
        snapshot: Callable[[Callable[[], None]], Any],
        note: Callable[[str], None],
    ) -> None:
        self._run = run
        self._find = find
        self._host: Host | None = None
        self._exporter = exporter
        self._snapshot = snapshot
        self._note = note
        self._choice: Any = None  # what was decided about sending when the run began
        self._withdrawn = False  # once there was no consent, or another one, nothing of this run leaves any more
        self._way: _Way | None = None
        self._lock = threading.Lock()

    def belongs_to(self, host: Host) -> None:
        """The run is of a package that embeds us: where it goes, the package may have chosen."""
        self._host = host

    def prepare(self, resolved: Resolved) -> None:
        """Before the run's clock starts: loads what is needed, if anything is. Nothing is loaded without consent.

        Raises:
            SettingsError, ExporterError: nothing can be sent; the text says why.
        """
        self._choice = decision(resolved)
        if not self.consent():
            return
        if self._host is not None and not has_been_told(self._host, resolved, self._exporter):
            self._withdrawn = True
            return
        import exporters

        forget_old(resolved)
        if self._exporter is not None:
            gated = exporters.behind_gate(self._exporter, self.consent, self._record, declared_of(self._run))
            self._way = _HandOver(gated, self._snapshot, self._note)
            return
        config = exporters.Config(**destination(resolved))
        gate = exporters.gate_for(config, self.consent)
        importlib.import_module(exporters.TARGETS[config.target].modules[config.protocol])
        if config.target == "prometheus":
            self._way = _Shown(self, config, gate, resolved.settings.export_interval)
            return
        for module in ("exporters.courier", "exporters.outbox", "exporters.sentlog"):
            importlib.import_module(module)
        self._way = _Posted(self, config, gate, resolved)

    def begin(self, log: Path | None) -> bool:
        """Whether this run is sent at all. From now on it is, if so.

        Args:
            log: the run's log, from which its last word can be made if the process is killed; None where there is none.
        """
        if self._way is None:
            return False
        self._way.begin(log)
        return True

    def consent(self) -> bool:
        """Whether this run may be sent: asked at every export, more than once, and between them.

        A run is sent under the choice it began with. Where that was "off", or is meanwhile, or was made anew, a part of
        the run was measured without consent; as its sums cannot be taken apart, the whole run stays here.
        """
        resolved = self._find()
        allowed = resolved.may_hand_over if self._exporter is not None else resolved.may_send
        if not allowed or decision(resolved) != self._choice:
            self._withdraw(resolved)
        return not self._withdrawn

    def export(self) -> None:
        """Sends what is known by now on its way; called beside the loop.

        Raises:
            OSError: it cannot be kept.
        """
        if self._way is not None and self.consent():
            self._way.put(last=False)

    def finish(self) -> None:
        """Sends the last word on its way, and waits for its delivery as long as ``exit_timeout`` says.

        Raises:
            OSError: it cannot be kept.
        """
        way = self._way
        if way is None:
            return
        try:
            if self.consent():  # where there is none any more, `withdraw` has been told
                way.put(last=True)
        finally:
            way.finish(self._find().settings.exit_timeout)
            self._way = None

    def forget(self) -> None:
        """In a forked child: the run is the parent's."""
        self._way = None
        self._withdrawn = True
        self._lock = threading.Lock()

    def _withdraw(self, resolved: Resolved) -> None:
        with self._lock:
            first, self._withdrawn = not self._withdrawn, True
        if first and self._way is not None:
            self._way.withdraw()
        if resolved.off_in_file:
            empty_outbox()

    def _record(self, where: str, body: bytes) -> Callable[[str], None]:
        """Asked before the first byte leaves: a copy is kept, and the user told the first time."""
        answered = record(where, body)
        if self._exporter is None and not self._find().host_chose:  # of a host's choice the user has been told before
            announce(where, _of_runs(where, "can be fetched from" if isinstance(self._way, _Shown) else "go to"))
        return answered


def decision(resolved: Resolved) -> tuple[Any, ...]:
    settings = resolved.settings
    return (resolved.decided, settings.exporter, settings.otlp_endpoint, settings.ga_measurement_id, settings.ga_endpoint)


# ---- ways out ------------------------------------------------------------------------------------------------------


class _Way:
    """How measurements get out. All but `put` with ``last`` may be called from the sampling thread."""

    def begin(self, log: Path | None) -> None:
        raise NotImplementedError

    def put(self, *, last: bool) -> None:
        raise NotImplementedError

    def withdraw(self) -> None:
        """There is no consent any more."""

    def finish(self, timeout: float) -> None:
        raise NotImplementedError


def _started(thread: threading.Thread, note: Callable[[str], None]) -> None:
    try:
        thread.start()
    except RuntimeError:
        note("the courier's thread could not be started")


def _ended(thread: threading.Thread, timeout: float) -> bool:
    """Whether the thread ends within so many seconds, or never ran."""
    if thread.ident is not None:
        thread.join(timeout)
    return not thread.is_alive()


class _Posted(_Way):
    """Through the outbox, and a courier in a thread of its own."""

    def __init__(self, sending: Sending, config: Config, gate: Any, resolved: Resolved) -> None:
        self._sending = sending
        self._run = sending._run
        self._outbox = outbox_of(resolved)
        self._post = Post(resolved, self._outbox, config, gate)
        self._courier = self._post.courier(sending.consent, sending._record, rest=self._rest)
        self._thread = threading.Thread(target=self._main, name="epochmeter-courier", daemon=True)
        self._wake, self._ending = threading.Event(), threading.Event()
        self._deadline = math.inf
        self._count = 0
        self._look_again_s: float | None = None

    def begin(self, log: Path | None) -> None:
        if log is not None:
            try:
                self._post.open_run(self._run, log.name)
            except OSError as error:
                self._sending._note(f"the outbox cannot be written: {error.strerror}")
        _started(self._thread, self._sending._note)

    def put(self, *, last: bool) -> None:
        if self._post.config.target == "ga" and not last:
            return  # its events are counted, and cannot be told twice
        self._count += 1
        order, rest = (LAST, nothing) if last else (f"{self._count:08d}", share)
        rest()
        data = self._sending._snapshot(rest)
        rest()
        kept = self._post.put(self._run, data, order, rest)
        if self._post.gate.reason:
            self._sending._note(self._post.gate.reason)
        if kept and last:
            self._outbox.close_run(self._run.id)
        if not last:  # then `finish` comes next
            self._wake.set()

    def withdraw(self) -> None:
        self._outbox.close_run(self._run.id)

    def finish(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._ending.set()
        self._wake.set()
        _ended(self._thread, timeout)

    def _main(self) -> None:
        try:
            self._guarded(self._recover)
            while not self._guarded(self._deliver):
                rests_s = self._courier.rests_for
                if rests_s > 0:
                    self._ending.wait(rests_s)  # what is put meanwhile waits with the rest
                else:
                    self._wake.wait(self._look_again_s)
        finally:
            self._courier.close()

    def _guarded(self, work: Callable[[], bool]) -> bool:
        """Does it, and says whether it was the last time. A failure is counted; what waits is delivered another time."""
        try:
            return work()
        except Exception as error:
            self._sending._note(f"a delivery failed: {getattr(error, 'strerror', None) or type(error).__name__}")
            self._look_again_s = LOOK_AGAIN_S
            return self._ending.is_set()

    def _recover(self) -> bool:
        self._post.recover(self._sending.consent, self._run.id, rest=self._rest)
        return False

    def _rest(self) -> None:
        """While the loop runs, it goes first; at its end, there is nobody to wait for."""
        if not self._ending.is_set():
            share()

    def _deliver(self) -> bool:
        """Delivers what waits; whether that was the last time."""
        self._wake.clear()
        ending = self._ending.is_set()
        patience_s = max(self._deadline - time.monotonic(), 0.0) if ending else 0.0
        done = self._courier.deliver(lambda: self._deadline, patience_s)
        for what in done.notes:
            self._sending._note(what)
        self._look_again_s = LOOK_AGAIN_S if done.left else None
        return ending or (self._ending.is_set() and bool(done.reason) and bool(done.notes))  # it has just failed


class _HandOver(_Way):
    """To an exporter of the program's own: nothing is kept for it, and nothing tried again."""

    def __init__(self, gated: Any, snapshot: Callable[[Callable[[], None]], Any], note: Callable[[str], None]) -> None:
        self._gated = gated
        self._snapshot = snapshot
        self._note = note
        self._thread = threading.Thread(target=self._main, name="epochmeter-courier", daemon=True)
        self._wake = threading.Event()
        self._data: Any = None
        self._ending = False

    def begin(self, log: Path | None) -> None:
        _started(self._thread, self._note)

    def put(self, *, last: bool) -> None:
        self._data = self._snapshot(nothing if last else share)
        self._wake.set()

    def finish(self, timeout: float) -> None:
        self._ending = True
        self._wake.set()
        if not _ended(self._thread, timeout):
            self._note(f"the program's own exporter took longer than {timeout:g} s, and was not waited for")

    def _main(self) -> None:
        ending = False
        while not ending:
            self._wake.wait()
            self._wake.clear()
            ending = self._ending
            data, self._data = self._data, None
            if data is not None:
                self._export(data)

    def _export(self, data: Any) -> None:
        try:
            self._gated.export(data)
        except Exception as error:
            self._note(f"an export failed: {type(error).__name__}")
        if self._gated.reason:
            self._note(self._gated.reason)


class _Shown(_Way):
    """On a page that a Prometheus server scrapes."""

    def __init__(self, sending: Sending, config: Config, gate: Any, every: float) -> None:
        self._sending = sending
        self._config = config
        self._gate = gate
        self._every = every
        self._page: Any = None

    def begin(self, log: Path | None) -> None:
        from exporters.config import ExporterError
        from exporters.prometheus import Page

        try:
            self._page = Page(self._config, self._fresh, self._every, self._sending.consent, self._sending._record)
        except ExporterError as error:
            self._sending._note(str(error))

    def _fresh(self) -> Any:
        from exporters.payload import encode

        declared = declared_of(self._sending._run)
        outgoing = self._gate.outgoing(self._sending._snapshot(share), share, declared)
        if outgoing is None:
            return None
        body = encode(outgoing)
        if not self._gate.passes(body, share, declared):
            self._sending._note(self._gate.reason)
            return None
        return outgoing, body

    def put(self, *, last: bool) -> None:
        """Nothing: it is fetched."""

    def withdraw(self) -> None:
        page, self._page = self._page, None
        if page is not None:
            page.close()

    def finish(self, timeout: float) -> None:
        self.withdraw()


# ---- the post, for runs and for the command line -------------------------------------------------------------------


class Post:
    """One destination and the outbox."""

    def __init__(self, resolved: Resolved, outbox: Outbox, config: Config, gate: Any) -> None:
        from exporters.outbox import Key

        self.config = config
        self.gate = gate
        self._outbox = outbox
        self._chosen_there = config.target == "sentry" or any(
            resolved.values[key].source in CHOSEN_THERE for key in ("exporter", "otlp_endpoint")
        )
        address = without_credentials(config.address)
        self.key = Key(config.target, config.protocol, address, resolved.decided)

    def courier(
        self,
        consent: Callable[[], bool],
        note: Any,
        takes: Callable[[Head], bool] | None = None,
        rest: Callable[[], None] = nothing,
    ) -> Courier:
        import exporters
        from exporters.courier import Courier

        def make() -> Any:
            return exporters.transport_to(self.config)

        return Courier(self._outbox, self.key, self.gate, make, consent, note, _lock_of, takes or _made_for(self.key), rest)

    def open_run(self, run: Run, log: str) -> None:
        """Notes that the run's last word is to come.

        Raises:
            OSError: it cannot be noted.
        """
        there = {"chosen_there": self._chosen_there}
        self._outbox.open_run(run.id, {**vars(self.key), **there, "started_ns": run.started_unix_ns, "log": log})

    def put(self, run: Run, data: Any, order: str, rest: Callable[[], None] = nothing) -> bool:
        """Puts a run's data into the outbox; whether there was anything to put.

        Raises:
            OSError: it cannot be kept.
        """
        return self.put_data(run.id, run.started_unix_ns, data, order, declared_of(run), rest)

    def put_data(
        self,
        name: str,
        began_ns: int,
        data: Any,
        order: str,
        declared: Declared | None,
        rest: Callable[[], None] = nothing,
        what: str = "run",
    ) -> bool:
        """The same of anything that has a name of its own, twelve hexadecimal digits, and a time.

        Raises:
            OSError: as `put`.
        """
        bodies = self.gate.bodies(data, rest, declared)
        for number, body in enumerate(bodies):
            self.put_body(name, began_ns, order if self.config.target != "ga" else f"ga{number:03d}", body, declared, what)
        return bool(bodies)

    def put_body(self, name: str, began_ns: int, order: str, body: bytes, declared: Declared | None, what: str) -> None:
        """One body that has passed the gate.

        Raises:
            OSError: as `put`.
        """
        from exporters.outbox import Head

        now, until = self._outbox.now(), None
        if self.config.target == "ga":
            until = now + GA_HOURS * 3600
            if self._outbox.knows(began_ns, name, order):
                return  # it is there, or was; to send it again would count it twice
        head = Head(self.key, name, now, until, self._chosen_there, declared, what)
        self._outbox.put(head, began_ns, order, body)

    def recover(self, consent: Callable[[], bool], own: str = "", rest: Callable[[], None] = nothing) -> None:
        """Puts the last word of runs that were killed into the outbox, from their logs."""
        from exporters.outbox import OPEN_GRACE_S

        for run, about, age_s in list(self._outbox.open_runs()):
            if run != own and age_s > OPEN_GRACE_S and _key_of(about) == self.key and consent():
                self._recover(run, about, age_s, rest)

    def _recover(self, run: str, about: Mapping[str, Any], age_s: float, rest: Callable[[], None]) -> None:
        from exporters.outbox import LEFT_ALONE_S, name_of
        from profiler.errors import RunLogError
        from profiler.sending.otel_data import run_data
        from profiler.storage.run_log import is_being_written, load

        path = runs_path() / Path(str(about["log"])).name
        if path.exists() and is_being_written(path):
            return
        try:
            recorded = load(path, rest)
            self.put(recorded, run_data(recorded, recorded.started_unix_ns + recorded.duration_ns), LAST, rest)
        except RunLogError:
            if age_s < LEFT_ALONE_S:
                return  # it may just begin
            self._outbox.count(name_of(about["started_ns"], run, LAST), "nolog")
        self._outbox.close_run(run)


def _key_of(about: Mapping[str, Any]) -> Key | None:
    from exporters.outbox import Key

    with contextlib.suppress(KeyError):
        return Key(about["target"], about["protocol"], about["address"], about["decided"])
    return None


def outbox_of(resolved: Resolved) -> Outbox:
    """This machine's outbox, with the bounds that are set."""
    from exporters.outbox import Outbox

    settings = resolved.settings
    return Outbox(outbox_path(), settings.outbox_mb * 1e6, settings.outbox_days * 86_400)


def _lock_of(name: str) -> Any:
    folder = outbox_path() / "lock"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return lock(folder / f"{name}.lock")


def record(where: str, body: bytes) -> Callable[[str], None]:
    """Keeps a copy of what is about to be sent.

    Raises:
        OSError: none can be kept; then nothing may be sent.
    """
    from exporters.sentlog import note

    return note(sent_path(), where, body)


def forget_old(resolved: Resolved) -> None:
    """Removes copies of what was sent, and counts of what was given up, that are older than the settings say."""
    from exporters.sentlog import prune

    prune(sent_path(), resolved.settings.retention_days)
    outbox_of(resolved).forget_marks(resolved.settings.retention_days)


def announce(what: str, text: str) -> None:
    """The one uninvited line: the first time that something is about to be sent to a destination."""
    known = data_path() / "announced.txt"
    if known.exists() and what in known.read_text("utf-8").splitlines():
        return
    sys.stderr.write(text)
    with contextlib.suppress(OSError):  # where it cannot be noted, it is said again next time
        known.parent.mkdir(parents=True, exist_ok=True)
        with known.open("a", encoding="utf-8") as file:
            file.write(f"{what}\n")


def _of_runs(where: str, way: str) -> str:
    return (
        f"epochmeter: this run's timings, counts and hardware readings (no names or words of yours) {way} {where}, "
        f"as chosen in the settings. {STOP}\n"
    )


# ---- a destination that a package has chosen, and not the user -----------------------------------------------------


def told() -> list[dict[str, Any]]:
    """What users of this machine were told: ``app``, ``where`` and ``time``."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(told_path().iterdir()):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_bytes()))
    return found


def told_at(app: str, where: str) -> float | None:
    """When the user was told, in seconds since 1970, that this package would send there; None where they were not."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(_told_in(app, where).read_bytes())["time"])
    return None


def tell(app: str, where: str) -> None:
    """Tells the user, once, what this package would send where. Where that cannot be noted, nothing is ever sent."""
    path = _told_in(app, where)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"app": app, "where": where, "time": time.time()}, file)
        sys.stderr.write(
            f"{app} wishes to send counts of which of its features, commands and options are used, timings, and classes of "
            f"hardware and versions (no names, words or values of yours), to {where}. It does from the next time on; this "
            f"time, nothing of that is sent. What, exactly: epochmeter telemetry preview. {STOP}\n"
        )


def _told_in(app: str, where: str) -> Path:
    return told_path() / f"{hashlib.sha256(f'{app} {where}'.encode()).hexdigest()[:24]}.json"


def has_been_told(host: Host, resolved: Resolved, exporter: Any = None, *, now: bool = True) -> bool:
    """Whether something of a package may be sent, as far as the user has to know of it: where the user has chosen, it may;
    where the package has, not in CI and tests, and not in a run in which the user was told, nor in one before.

    Args:
        exporter: one of the package's own, or None.
        now: whether a user who was never told is told now.

    Raises:
        SettingsError: a setting or variable of the destination cannot be used.
    """
    if exporter is None and not resolved.host_chose:
        return True
    if exporter is not None and not_for_hosts():
        return False
    where = OWN_EXPORTER if exporter is not None else in_words(resolved)
    told = told_at(host.app, where)
    if told is None and now:
        tell(host.app, where)
    return told is not None and told * 1e9 <= host.began_ns


def declared_of(run: Run) -> Declared | None:
    """A run's part of the list: the name of the package that it is of, if it is of one."""
    if "name" not in run.app:
        return None
    from exporters.rules import Declared

    return Declared(run.app["name"])


# ---- by the user's own word ----------------------------------------------------------------------------------------


@dataclass
class Flushed:
    """What a flush did.

    Attributes:
        aside: refused for good now.
        refused_before: set aside before, and not tried again.
        reasons: why something remains.
    """

    delivered: int = 0
    aside: int = 0
    left: int = 0
    refused_before: int = 0
    reasons: tuple[str, ...] = ()


def flush(*, adopt: bool = False, again: bool = False) -> Flushed:
    """Delivers what waits, now.

    Args:
        adopt: also what was made for another destination, or before the destination was chosen anew, to the present one.
        again: also what was set aside.

    Raises:
        SettingsError, ExporterError: nothing can be sent to the destination that is chosen.
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
    consent = _same_choice(resolved)
    for key, chosen_there in _keys(outbox).items():
        config, reason = config_for(key, chosen_there, resolved, adopt)
        if config is None:
            reasons.append(reason)
            continue
        post = Post(resolved, outbox, config, exporters.gate_for(config, consent))
        if key == post.key:
            post.recover(consent)
        courier = post.courier(consent, record, _made_for(key))
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


def _made_for(key: Key) -> Callable[[Head], bool]:
    """What is for this destination, but for what of it the user does not want to be sent."""

    def takes(head: Head) -> bool:
        return head.key == key and (head.what == "run" or not resolve().unwanted(head.what))

    return takes


def _drop_unwanted(resolved: Resolved) -> None:
    """What the settings file itself rules out goes, also where that was written into it by hand."""
    for what, setting in (("usage", "usage"), ("crash", "crash_reports")):
        if resolved.unwanted(what) and resolved.values[setting].source in ("file", "default"):
            empty_outbox(what)


def _same_choice(before: Resolved) -> Callable[[], bool]:
    def consent() -> bool:
        now = resolve()
        return now.may_hand_over and decision(now) == decision(before)

    return consent


def _kinds(outbox: Outbox) -> set[str]:
    """What waits: runs, and of packages counts and crashes."""
    from exporters.outbox import UnreadableError

    found = set()
    for entry in outbox.waiting():
        with contextlib.suppress(OSError, UnreadableError):
            found.add(outbox.head(entry).what)
    return found


def _keys(outbox: Outbox) -> dict[Key, bool]:
    """The destinations of all that waits, and of runs that were killed; whether they were chosen outside the settings."""
    from exporters.outbox import UnreadableError

    found: dict[Key, bool] = {}
    for entry in [*outbox.waiting(), *outbox.under_way()]:
        with contextlib.suppress(OSError, UnreadableError):
            head = outbox.head(entry)
            found[head.key] = found.get(head.key, False) or head.chosen_there
    for _, about, _ in outbox.open_runs():
        key = _key_of(about)
        if key is not None:
            found[key] = found.get(key, False) or bool(about.get("chosen_there"))
    return found


def config_for(key: Key, chosen_there: bool, resolved: Resolved, adopt: bool = False) -> tuple[Config | None, str]:
    """How to reach the destination that may have what was made for this one, or why nobody may have it.

    Args:
        chosen_there: whether it was chosen outside the settings file: in code, or in the environment.
        adopt: whether the destination that is chosen now may have it.
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
    if chosen_there and key.decided == resolved.decided and key.target in ("otlp", "otlp-logs", "sentry"):
        return exporters.Config(key.target, key.protocol, key.address), ""  # no headers: they are for what is chosen now
    what = "was chosen anew since then" if same else "is not the one that is chosen here now"
    cure = "; 'epochmeter telemetry flush --adopt' sends it to the present one" if here else ""
    return None, f"something waits for {key.address}, a destination that {what}{cure}"
