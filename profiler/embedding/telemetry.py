"""`Telemetry`: what a library's author learns, with its users' consent, of how the package is used and where it fails.

The rules it keeps: the host's program goes first. Making one loads nothing and starts nothing; counting is a step of an
iterator; nothing here raises into the program but what its author has to see at once: arguments that cannot be used. Its
users' settings, and any "off", win.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from profiler.embedding.counters import Counters
from profiler.errors import ArgumentTypeError, ArgumentValueError, SettingsError, did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import Host, Resolved
    from profiler.embedding.commands import Watched
    from profiler.embedding.delivery import App
    from profiler.session.profiler import Profiler
    from profiler.storage.usage_ledger import Ledger


NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
MODULE = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)
DSN = re.compile(r"https?://[^/@\s]+@[^/@\s]+(/\S+)?/\d+")
EXPORTERS = ("otlp", "ga", "none")
HOST_KEYS = (  # what a package may have a wish about; the rest is the machine's
    *("sync", "usage", "local", "crash_reports", "exporter", "otlp_endpoint", "otlp_protocol", "otlp_certificate"),
    # not `ga_endpoint`: the secret that goes there is the user's
    *("otlp_client_certificate", "otlp_client_key", "ga_measurement_id", "export_interval", "exit_timeout"),
)
NOTED = "__epochmeter_noted__"  # on an error: the packages that have noted it
MAX_NAMES = 1_000
MAX_CRASHES = 10  # of a process
LOOK_EVERY_S = 60.0
now = time.monotonic
_live: weakref.WeakSet[Telemetry] = weakref.WeakSet()


class Telemetry:
    """Counts of features and commands, crash reports and measured runs of a package that embeds this one.

    Args:
        app: the package's name on its index, such as "mypackage": letters, digits, ``-``, ``_``, ``.``.
        version: its version. Of one that is not released, only that is told.
        features: names of features that `feature` can count.
        commands: names of commands that `command` can count, or a mapping from each to the names of its options.
        exporter: where all of it goes unless the user has chosen something else: "otlp" or "ga", with its address in
            ``settings``, or an OpenTelemetry ``MetricExporter``. The user is told once, and nothing is sent that time;
            in CI, in tests, and where an offline switch is set, never.
        crash_dsn: where crash reports go, by Sentry's protocol, of users who have switched them on: ``https://key@host/42``.
        settings: settings that the package would like, of `HOST_KEYS`; it can lower consent (``{"usage": False}``) and not
            raise it, and shorten ``exit_timeout`` and not lengthen it.
        modules: the import packages whose places in the code a crash report tells; by default the one named like the app.

    Raises:
        ArgumentTypeError, ArgumentValueError, SettingsError: an argument that cannot be used.
    """

    def __init__(
        self,
        app: str,
        version: str,
        *,
        features: Iterable[str] = (),
        commands: Iterable[str] | Mapping[str, Iterable[str]] = (),
        exporter: Any = None,
        crash_dsn: str | None = None,
        settings: Mapping[str, Any] | None = None,
        modules: Iterable[str] = (),
    ) -> None:
        self._name = _named("app", app)
        if not isinstance(version, str) or not 1 <= len(version) <= 60:
            raise ArgumentValueError(f"version is a text such as '1.2.3', not {version!r}")
        self._version = version
        self._modules = _modules(modules) or (re.sub(r"\W", "_", app, flags=re.ASCII),)
        declared = _declared_commands(commands)
        self._counters = Counters(_names("a feature", features), declared)
        self._learns_options = set() if isinstance(commands, Mapping) else set(declared)
        self._learns_commands = not declared
        self._check_size()
        self._settings = _host_settings(exporter, settings)
        self._exporter = None if isinstance(exporter, str) else exporter
        self._dsn = _checked_dsn(crash_dsn)
        self._features = {name: tally.add for name, tally in self._counters.features.items()}
        self._watched: Watched | None = None
        self._facts: dict[str, str] = {}
        self._notes: dict[str, int] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._deadline = math.inf
        self._has_warned = False
        self._is_over = False  # the program is ending, and has waited for what was to be sent
        self._hears = False  # of processes of multiprocessing
        self._crashes = 0
        self._began_ns = self._since_ns = time.time_ns()  # the program with it, and what was counted since the last look
        self._look_at = now() + LOOK_EVERY_S
        if sys.version_info < (3, 11):  # at the end, when it is needed, this Python cannot load it any more
            import concurrent.futures.thread  # noqa: F401
        _live.add(self)
        atexit.register(self._at_exit)
        self._hear_of_workers()

    # ---- what the host uses ----------------------------------------------------------------------------------------

    def feature(self, name: str) -> None:
        """Counts one use of a declared feature. A name that is not declared is counted as that, and has no way out."""
        try:
            self._features[name]()
        except Exception:  # whatever the name is
            self._attempt("a feature could not be counted", lambda: self._miss("feature", name))
        if now() > self._look_at:
            self._look()

    def command(self, called: Any, options: Iterable[str] = ()) -> None:
        """Counts one call of a command, and the options that were given with it: their names, never their values.

        Args:
            called: a context of click or Typer; what ``parse_args`` gave, of a parser that is watched (see `watch`;
                otherwise the command alone is counted); or a declared name.
            options: with a name, the names of the options that were given.
        """
        try:
            self._counters.count(called, options := tuple(options))
        except Exception:  # a context, or a Namespace; and whatever else it is
            self._attempt("a command could not be counted", lambda: self._count_command(called, options))
        if now() > self._look_at:
            self._look()

    def watch(self, cli: Any) -> Any:
        """Counts every command of a program, without a line in each.

        Args:
            cli: a click command or a Typer app, all of whose commands are counted, and guarded (see `guard`); or an
                ``ArgumentParser``, which is to be complete: then hand what it parses to `command`.

        Returns:
            what to call instead of ``cli``: ``telemetry.watch(app)()``.

        Raises:
            ArgumentTypeError: it is none of these.
        """
        from profiler.embedding import commands as command_lines

        command = command_lines.click_command(cli)
        if command is None:
            self._watched = command_lines.Watched(cli)
            for name, options in self._watched.commands.items():
                self._learn(name, options)
            return cli
        for name, options in command_lines.walked(command):
            self._learn(name, options)
        command_lines.around(command, self.command, self.guard)
        return command

    def capture_exception(self, error: BaseException | None = None) -> None:
        """Notes a crash, and reports it where the user has switched crash reports on.

        What is told is the error's class and the places in the package's own code, never its text.

        Args:
            error: the error; by default the one that is being handled.
        """
        found = sys.exc_info()[1] if error is None else error
        if isinstance(found, Exception):
            self._attempt("a crash could not be noted", lambda: self._capture(found))

    def guard(self) -> Guard:
        """Notes what is raised inside, and lets it pass: ``with telemetry.guard():``, or as a decorator."""
        return Guard(self)

    def profiler(self, name: str, **more: Any) -> Profiler:
        """A `Profiler` of the package's: sent where its telemetry is sent, under the same consent, with its version.

        Args:
            more: ``epochs``, ``interval``, ``device``, ``distributed`` and ``live`` of `Profiler`.

        Raises:
            ArgumentTypeError, ArgumentValueError: an argument that cannot be used.
        """
        from profiler.session.profiler import Profiler

        if taken := {"settings", "exporter"} & set(more):
            raise ArgumentValueError(f"{' and '.join(sorted(taken))} of a run are those of its Telemetry")
        made = Profiler(name, exporter=self._exporter, **more)
        made._belongs_to(self._host(), self.facts())
        return made

    def close(self) -> None:
        """Sends what was counted so far, if it may be sent, and waits for it as long as ``exit_timeout`` says.

        Without it, that happens at the end of the program, unless there was a summary in the last ``export_interval``.
        What is counted afterwards is sent by the next `close`, or at the end.
        """
        self._attempt("counts could not be kept", lambda: self._send_last(closing=True))

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def facts(self) -> dict[str, str]:
        """Of the package: ``name``, ``version``, ``install`` (index, direct or source) and ``installer``, if it is known."""
        if not self._facts:
            self._facts = {"name": self._name, "version": self._version, **_installed(self._name)}
        return self._facts

    def declared(self) -> dict[str, Any]:
        """The package's part of the list: ``app``, ``modules``, ``features`` and ``commands`` (pairs of name and options)."""
        options: dict[str, list[str]] = {name: [] for name in self._counters.commands}
        for command, option in self._counters.options:
            options[command].append(option)
        return {
            "app": self._name,
            "modules": list(self._modules),
            "features": list(self._counters.features),
            "commands": [[name, given] for name, given in options.items()],
        }

    def __repr__(self) -> str:
        return f"<Telemetry {self._name!r} {self._version}>"

    # ---- counting --------------------------------------------------------------------------------------------------

    def _count_command(self, called: Any, options: Iterable[str]) -> None:
        from profiler.embedding import commands as command_lines

        found: tuple[str, tuple[str, ...]] | None
        if isinstance(called, str):
            found = called, tuple(options)
        elif command_lines.is_context(called):
            found = command_lines.of_context(called)
        elif self._watched is not None:
            found = self._watched.called()
        else:
            found = command_lines.of_namespace(called, self._counters.commands)
        if found is None:
            return
        name, given = found
        new = True
        if command_lines.is_context(called):
            new = command_lines.is_new(called, self._name, name)
            if given and name in self._learns_options:
                self._learn(name, command_lines.options_of(called.command))
        if not self._counters.count_known(name, given, again=not new):
            self._warn(f"a command or option of {' '.join((name, *given))!r} is not declared, and not counted")

    def _learn(self, command: str, options: Iterable[str]) -> None:
        """What a program says itself of its commands, where its author has not said it."""
        new = command not in self._counters.commands
        if (new and not self._learns_commands) or not NAME.fullmatch(command):
            return
        learns = new or command in self._learns_options
        self._counters.learn(command, [option for option in options if learns and NAME.fullmatch(option)])
        self._check_size()

    def _check_size(self) -> None:
        if self._counters.size > MAX_NAMES:
            what = "features, commands and options"
            raise ArgumentValueError(f"at most {MAX_NAMES} {what} can be declared, not {self._counters.size}")

    def _miss(self, what: str, name: Any) -> None:
        self._counters.undeclared.add()
        self._warn(f"a {what} {name!r} is not declared, and not counted" if isinstance(name, str) else f"a {what} has no name")

    # ---- keeping and sending ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """For the tests of a package: whether its settings can be used. Making a `Telemetry` only looks at their form,
        because to know more takes longer than a program's start should; where they cannot be used, nothing is sent.

        Raises:
            SettingsError: they cannot; the text says which and why.
        """
        self._wishes()

    def _host(self) -> Host:
        """The package with its wishes; where they cannot be used, with the one that nothing leaves."""
        from profiler.config.resolve import Host

        try:
            return self._wishes()
        except SettingsError as error:
            if not self._has_warned:
                self._note(f"nothing is sent: {error}")
            self._warn(f"nothing is sent: {error}")
            return Host(self._name, {"exporter": "none"}, self._began_ns)

    def _wishes(self) -> Host:
        from profiler.config.resolve import CONSENT, Host, check_settings

        # a package can lower consent, and not raise it
        allowed = {key: value for key, value in check_settings(self._settings).items() if key not in CONSENT or value is False}
        return Host(self._name, allowed, self._began_ns)

    def _ledger(self) -> Ledger:
        from profiler.config.resolve import usage_path
        from profiler.storage.usage_ledger import Ledger

        return Ledger(usage_path() / self._name)

    def _app(self) -> App:
        from profiler.embedding.delivery import App

        return App(self.facts, self._host(), self.declared(), self._dsn, self._exporter)

    def _look(self) -> None:
        """Now and then, beside the counting: what was counted is sent, if it may be. No thread is started otherwise."""
        self._look_at = now() + LOOK_EVERY_S
        self._attempt("counts could not be sent", self._send_some)

    def _send_some(self) -> None:
        from profiler.config.resolve import resolve

        resolved = resolve(host=self._host())
        self._look_at = now() + resolved.settings.export_interval
        if resolved.may_send or self._exporter is not None:
            self._start(lambda: self._save_and_export(resolved))

    def _save_and_export(self, resolved: Resolved) -> None:
        if self._save(resolved):
            self._export(self._app(), resolved)

    def _save(self, resolved: Resolved) -> bool:
        """Puts down what was counted since the last time; whether there was anything that may leave."""
        from profiler.storage.usage_ledger import Counted, Counts

        with self._lock:
            began, self._since_ns = self._since_ns, time.time_ns()
            features, commands, options, undeclared = self._counters.take()
            notes, self._notes = self._notes, {}
        counts = Counts(features, commands, options)
        if undeclared:
            notes["names that are not declared"] = undeclared
        if resolved.values["usage"].value is not True or (counts.is_empty and not notes):
            return False
        leaves = not counts.is_empty and self._may_leave(resolved, began)
        if leaves or resolved.settings.local:
            counted = Counted(began, self._since_ns, self._version, self.declared(), counts, notes=notes)
            if leaves:
                from profiler.sending.outlet import decision

                counted.facts, counted.choice = self._app().told_facts(), list(decision(resolved))
            ledger, days = self._ledger(), resolved.settings.retention_days
            try:
                ledger.add(counted)
                if ledger.is_untidy(days):
                    with ledger.alone(0.0) as alone:
                        if alone:
                            ledger.tidy(days)
            except OSError:
                self._notes = {**notes, **self._notes}  # told where it can be
                raise
        return leaves

    def _may_leave(self, resolved: Resolved, began_ns: int) -> bool:
        """Whether what was counted since then may be sent. Where nothing may, nothing that sends is loaded."""
        if self._exporter is None and not resolved.may_send:
            return False
        from profiler.embedding.delivery import may_leave

        return may_leave(self._app(), resolved, began_ns)

    def _export(self, app: App, resolved: Resolved) -> None:
        from profiler.embedding.delivery import export_usage, usage_goes_to
        from profiler.sending.outlet import decision

        choice = decision(resolved)

        def consent() -> bool:
            found = app.resolve()
            return usage_goes_to(app, found) is not None and decision(found) == choice

        delivery = export_usage(app, resolved, consent, self._note)
        if delivery is not None:
            for note in delivery.run(lambda: self._deadline):
                self._note(note)

    def _capture(self, error: BaseException) -> None:
        from profiler.embedding.crash import is_crash
        from profiler.embedding.delivery import crash_target, keep_crash

        if not is_crash(error):
            return
        noted_by = getattr(error, NOTED, ())
        if self._name in noted_by:
            return  # on its way out through guards within guards
        with suppress(AttributeError, TypeError):
            setattr(error, NOTED, (*noted_by, self._name))
        self._crashes += 1
        if self._crashes > MAX_CRASHES:
            self._note("more crashes than are noted")
            return
        app = self._app()
        resolved = app.resolve()
        target = crash_target(app, resolved)
        if target is None and not resolved.settings.local:
            return
        noted = keep_crash(app, error, resolved, target)
        if target is not None and (self._is_over or not self._start(lambda: self._export_crash(app, noted, resolved, target))):
            self._export_crash(app, noted, resolved, target, deliver=False)  # the program is ending: it is delivered later

    def _export_crash(
        self, app: App, noted: Mapping[str, Any], resolved: Resolved, target: tuple[str, str], *, deliver: bool = True
    ) -> None:
        from profiler.embedding.delivery import crash_target, export_crash

        def consent() -> bool:
            return crash_target(app, app.resolve()) == target

        delivery, fault = export_crash(app, noted, resolved, consent)
        notes = [fault] if fault else []
        if delivery is not None and deliver:
            notes = delivery.run(lambda: self._deadline)
        for note in notes:
            self._note(note)

    def _send_last(self, closing: bool) -> None:
        from profiler.config.resolve import crashes_path, resolve
        from profiler.embedding.crash import forget_crashes

        resolved, ledger = resolve(host=self._host()), self._ledger()
        saved = self._save(resolved)
        forget_crashes(crashes_path(), resolved.settings.retention_days)
        since_s = time.time() - ledger.exported_at()  # below 0 where the clock was set back
        due = saved and not 0 <= since_s < resolved.settings.export_interval
        if due or (closing and ledger.pending() and self._may_leave(resolved, self._since_ns)):
            app = self._app()
            self._start(lambda: self._export(app, resolved))
        self._deadline = now() + resolved.settings.exit_timeout
        for thread in self._threads:
            thread.join(max(self._deadline - now(), 0.0))
        self._deadline = math.inf
        if self._notes:  # what went wrong in the last moment
            self._save(resolved)

    def _at_exit(self) -> None:
        self._look_at, self._is_over = math.inf, True
        if self._counters.any or self._notes or self._threads:
            with suppress(KeyboardInterrupt):  # who does not want to wait for it does not have to
                self._attempt("counts could not be kept", lambda: self._send_last(closing=False))

    def _start(self, work: Callable[[], None]) -> bool:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        guarded = partial(self._attempt, "something could not be sent", work)
        thread = threading.Thread(target=guarded, name="epochmeter-telemetry", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # an interpreter that is ending starts none; what waits is sent the next time
            self._note("a thread could not be started")
            return False
        self._threads.append(thread)
        return True

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        """Does it; where it fails the program goes on, and it is counted."""
        try:
            action()
        except Exception as error:
            ours = str(type(error).__module__).startswith(("profiler.", "exporters."))  # its text was written for the user
            told = f"{what}: {getattr(error, 'strerror', None) or (str(error) if ours else type(error).__name__)}"
            self._note(told)
            if isinstance(error, SettingsError):
                self._warn(f"{told} 'epochmeter doctor' tells more.")

    def _warn(self, what: str) -> None:
        """For the package's author, once in a process: pytest and ``python -X dev`` show it, and no user sees it."""
        if not self._has_warned:
            self._has_warned = True
            import warnings

            level = 1
            while sys._getframe(level).f_globals is globals():  # up to the line that calls us
                level += 1
            warnings.warn(f"epochmeter, for {self._name}: {what}", ResourceWarning, stacklevel=level + 1)

    def _note(self, what: str) -> None:
        self._notes[what] = self._notes.get(what, 0) + 1

    def _hear_of_workers(self) -> None:
        """Processes of multiprocessing end without what `atexit` knows; but they call finalizers of their own."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None and not self._hears:
            self._hears = True
            util.register_after_fork(self, Telemetry._in_worker)

    def _in_worker(self) -> None:
        sys.modules["multiprocessing.util"].Finalize(None, self._at_exit, exitpriority=100)

    def _forget(self) -> None:
        """In a forked process: what its parent counted is the parent's."""
        self._lock = threading.Lock()
        self._counters.forget()
        self._threads, self._notes, self._deadline = [], {}, math.inf
        self._since_ns = time.time_ns()


class Guard:
    """Notes what is raised inside."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def __enter__(self) -> Telemetry:
        return self._telemetry

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._telemetry.capture_exception(error)

    def __call__(self, function: Any) -> Any:
        """Guards each call of a function, coroutine function or generator function.

        Raises:
            ArgumentTypeError: it is an asynchronous generator function, or no function.
        """
        import functools
        import inspect

        if inspect.isasyncgenfunction(function) or not callable(function):
            raise ArgumentTypeError(f"a guard decorates a function, coroutine function or generator function, not {function!r}")
        within = _around
        if inspect.iscoroutinefunction(function):
            within = _around_coroutine
        elif inspect.isgeneratorfunction(function):
            within = _around_generator
        return functools.wraps(function)(within(self, function))


def _around(guard: Guard, function: Any) -> Any:
    def guarded(*arguments: Any, **more: Any) -> Any:
        with guard:
            return function(*arguments, **more)

    return guarded


def _around_coroutine(guard: Guard, function: Any) -> Any:
    async def guarded(*arguments: Any, **more: Any) -> Any:
        with guard:
            return await function(*arguments, **more)

    return guarded


def _around_generator(guard: Guard, function: Any) -> Any:
    def guarded(*arguments: Any, **more: Any) -> Any:
        with guard:
            return (yield from function(*arguments, **more))

    return guarded


def _before_fork() -> None:
    for telemetry in list(_live):
        telemetry._hear_of_workers()


def _after_fork() -> None:
    for telemetry in list(_live):
        telemetry._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _installed(app: str) -> dict[str, str]:
    """How a package was installed. Of where it was installed from only whether it is noted is asked: it may be a path."""
    from importlib import metadata

    try:
        found = metadata.distribution(app)
        if found.read_text("RECORD") is None:  # what a build has left in a folder of sources
            return {"install": "source"}
        direct = any(file.name == "direct_url.json" for file in found.files or ())
        installer = (found.read_text("INSTALLER") or "").split()
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return {"install": "source"}
    return {"install": "direct" if direct else "index", **({"installer": installer[0].lower()} if installer else {})}


# ---- arguments -----------------------------------------------------------------------------------------------------


def _named(what: str, name: Any) -> str:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{what} has a name, a text, not {name!r}")
    if not NAME.fullmatch(name):
        raise ArgumentValueError(f"{what}'s name has 1 to 40 letters, digits, '-', '_' and '.', unlike {name[:60]!r}")
    return name


def _names(what: str, names: Any) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ArgumentTypeError(f"{what} is declared by its name in a list or tuple, not as {names!r}")
    return [_named(what, name) for name in names]


def _declared_commands(commands: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(commands, Mapping):
        return dict.fromkeys(_names("a command", commands), ())
    return {_named("a command", name): tuple(_names("an option", options)) for name, options in commands.items()}


def _modules(modules: Any) -> tuple[str, ...]:
    if not isinstance(modules, Iterable):
        raise ArgumentTypeError(f"modules are names of import packages in a list or tuple, not {modules!r}")
    if isinstance(modules, str) or not all(isinstance(name, str) and MODULE.fullmatch(name) for name in modules):
        raise ArgumentValueError(f"modules are names of import packages, such as ('mypackage',), not {modules!r}")
    return tuple(modules)


def _host_settings(exporter: Any, settings: Any) -> dict[str, Any]:
    """The form of it; whether the values can be used is seen by `Telemetry.check`, and before anything is sent."""
    if exporter == "prometheus":
        raise ArgumentValueError("counts cannot be scraped from a program that has ended: exporter is 'otlp' or 'ga'")
    if isinstance(exporter, str) and exporter not in EXPORTERS:
        raise ArgumentValueError(f"exporter is one of {', '.join(EXPORTERS)} or a MetricExporter, not {exporter!r}")
    if exporter is not None and not isinstance(exporter, str) and not callable(getattr(exporter, "export", None)):
        raise ArgumentTypeError(f"exporter is a name such as 'otlp' or an OpenTelemetry MetricExporter, not {exporter!r}")
    if settings is not None and not isinstance(settings, Mapping):
        raise ArgumentTypeError(f"settings is a mapping such as {{'otlp_endpoint': 'https://...'}}, not {settings!r}")
    for key in settings or {}:
        if key not in HOST_KEYS:
            hint = did_you_mean(str(key), HOST_KEYS)
            raise ArgumentValueError(f"{key!r} is no setting that a package can have a wish about.{hint}")
    return {**(settings or {}), **({"exporter": exporter} if isinstance(exporter, str) else {})}


def _checked_dsn(dsn: Any) -> str | None:
    if dsn is not None and not (isinstance(dsn, str) and DSN.fullmatch(dsn)):
        raise ArgumentValueError("crash_dsn is a Sentry DSN such as 'https://key@host/42'")
    return dsn
