"""`Telemetry`: with its users' consent, a library's author learns how the package is used and where it fails.

The rules it keeps: the host's program goes first. Making a `Telemetry` loads nothing and starts nothing, and counting is
one step of an iterator. Nothing here raises into the program, except arguments that the author must correct. The users'
settings, and any "off", win.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import sys
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress

from profiler.embedding.arguments import (
    allowed_settings,
    checked_dsn,
    checked_flag,
    checked_modules,
    checked_name,
    checked_names,
    declared_commands,
    host_settings,
)
from profiler.embedding.command_counter import CommandCounter
from profiler.embedding.counters import Counters
from profiler.embedding.guard import Guard
from profiler.embedding.shipper import ENDS_WITH_THREADS, LOOK_EVERY_S, Shipper
from profiler.errors import ArgumentValueError, SettingsError
from profiler.records.faults import is_of_a_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from profiler.config.resolve import EmbeddingApp
    from profiler.embedding.own_files import OwnFiles
    from profiler.embedding.package_info import PackageInfo
    from profiler.embedding.told_run import DeclaredFacts, ToldRun
    from profiler.session.profiler import Profiler


NOTED = "__epochmeter_noted__"  # attribute of an error: the packages that have noted it
now = time.monotonic
_live: weakref.WeakSet[Telemetry] = weakref.WeakSet()


class Telemetry:
    """Counts of features and commands, crash reports and measured runs of a package that embeds this one.

    Args:
        app: the package's name on its index, such as "mypackage": letters, digits, ``-``, ``_``, ``.``.
        version: its version. For an unreleased one, only that fact is sent.
        features: names of features that `feature` can count.
        commands: names of commands that `command` can count, or a mapping from each to the names of its options.
        exporter: the destination unless the user has chosen another: "otlp" or "ga", with its address in ``settings``, or
            an OpenTelemetry ``MetricExporter``. The user sees a notice once, and nothing is sent that time. In CI, in
            tests, and if an offline switch is set, nothing is ever sent there.
        crash_dsn: the Sentry DSN for crash reports of users who have switched them on: ``https://key@host/42``.
        settings: settings that the package would like, of `HOST_KEYS`. It can lower consent (``{"usage": False}``) and
            shorten ``exit_timeout``, never the other way.
        modules: the import packages whose code a crash report may name; by default the one named like the app.
        facts: facts of its runs for `run`, with words, limits of classes, or ``bool``: ``{"task": ("detect",), "amp": bool}``.
        joint_facts: get the facts of a machine together, and not each apart from the others. The notice says which.

    Raises:
        ArgumentTypeError, ArgumentValueError, SettingsError: an argument cannot be used.
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
        facts: Mapping[str, Any] | None = None,
        joint_facts: bool = False,
    ) -> None:
        self._name = checked_name("app", app)
        if not isinstance(version, str) or not 1 <= len(version) <= 60:
            raise ArgumentValueError(f"version is a text such as '1.2.3', not {version!r}")
        self._version, self._joint_facts = version, checked_flag("joint_facts", joint_facts)
        self._modules = checked_modules(modules) or (re.sub(r"\W", "_", app, flags=re.ASCII),)
        self._counters = Counters(checked_names("a feature", features), declared_commands(commands))
        self._commands = CommandCounter(self._name, self._counters, commands, self._warn)
        self._told = facts and _declared_facts(facts)
        self._settings = host_settings(exporter, settings)
        self._exporter = None if isinstance(exporter, str) else exporter
        self._dsn = checked_dsn(crash_dsn)
        self._features = {name: tally.add for name, tally in self._counters.features.items()}
        self._facts: dict[str, str] = {}
        self._has_warned = False
        self._hears = False  # of processes of multiprocessing
        self._began_ns = time.time_ns()
        self._own_files: OwnFiles | None = None
        self._shipper = Shipper(self._counters, version, self._info, self._began_ns, lambda: self._commands.take(self._is_own))
        self._look_at = now() + (LOOK_EVERY_S if ENDS_WITH_THREADS else 0.0)
        if sys.version_info < (3, 11):  # at the program's end this Python cannot load it any more
            import concurrent.futures.thread  # noqa: F401
        _live.add(self)
        atexit.register(self._at_exit)
        self._hear_of_workers()

    # ---- for the host ----------------------------------------------------------------------------------------------

    def feature(self, name: str) -> None:
        """Count one use of a declared feature. An undeclared name is counted as undeclared, and never leaves."""
        try:
            self._features[name]()
        except Exception as error:  # of a program's own class of names, anything
            if is_of_a_signal(error):
                raise
            self._swallow("a feature could not be counted", lambda: self._miss("feature", name))
        if now() > self._look_at:
            self._send_if_due()

    def command(self, called: Any, options: Iterable[str] = ()) -> None:
        """Count one call of a command, and the names (never the values) of the options that were given.

        Args:
            called: a context of click or Typer, a declared name, or the result of ``parse_args``. For the last one,
                options are counted only if the parser is watched (see `watch`).
            options: with a name, the names of the options that were given.
        """
        try:
            self._counters.count(called, options := tuple(options))
        except Exception as error:  # a context, a namespace, or anything else
            if is_of_a_signal(error):
                raise
            self._swallow("a command could not be counted", lambda: self._commands.count(called, options))
        self._send_if_due()

    def watch(self, cli: Any) -> Any:
        """Count every command of a program, without a line in each.

        Args:
            cli: a click command or a Typer app, whose commands are all counted and guarded (see `guard`). Or a complete
                ``ArgumentParser``: then hand its result to `command`.

        Returns:
            the object to call instead of ``cli``: ``telemetry.watch(app)()``.

        Raises:
            ArgumentTypeError: it is none of these.
        """
        from profiler.embedding import commands as command_lines

        command = command_lines.click_command(cli)
        if command is None:
            self._commands.watch_parser(cli)
            return cli
        for name, options in command_lines.walked(command):
            self._commands.learn(name, options)
        command_lines.around(command, self.command, self.guard)
        return command

    def capture_exception(self, error: BaseException | None = None) -> None:
        """Note a crash, and report it if the user has switched crash reports on.

        A report holds the error's class and the places in the package's own code, never the error's text.

        Args:
            error: the error; by default the one that is being handled.
        """
        found = sys.exc_info()[1] if error is None else error
        if isinstance(found, Exception):
            self._swallow("a crash could not be noted", lambda: self._capture(found))

    def guard(self) -> Guard:
        """Note an error that is raised inside, and let it pass: ``with telemetry.guard():``, or as a decorator."""
        return Guard(self)

    def profiler(self, name: str, **more: Any) -> Profiler:
        """Return a `Profiler` of the package: under its consent, with its version, sent to the same destination.

        Args:
            name: the run's name.
            more: ``epochs``, ``interval``, ``device``, ``distributed`` and ``live`` of `Profiler`.

        Raises:
            ArgumentTypeError, ArgumentValueError: an argument cannot be used.
        """
        from profiler.session.profiler import Profiler

        if taken := {"settings", "exporter"} & set(more):
            raise ArgumentValueError(f"{' and '.join(sorted(taken))} of a run are those of its Telemetry")
        made = Profiler(name, exporter=self._exporter, **more)
        made.session.belongs_to(self._app(), self.facts())
        return made

    def run(self, /, **facts: Any) -> ToldRun:
        """Return a run to report: ``with telemetry.run(task="detect") as run:``. Its end is reported with its facts.

        Args:
            facts: declared facts of the run; `ToldRun.tell` adds to them. A value that is not declared never leaves.
        """
        self._send_if_due()
        from profiler.embedding.told_run import ToldRun

        def missed(name: Any) -> None:
            self._swallow("a fact could not be told", lambda: self._miss("fact", name))

        return ToldRun(self._told or _declared_facts({}), self._counters.tell, missed, facts)

    def close(self) -> None:
        """Send the counts so far, if they may be sent, and wait for the delivery for ``exit_timeout`` seconds.

        Without this call, the program's end does it, unless a summary was sent in the last ``export_interval``.
        """
        self._swallow("counts could not be kept", lambda: self._shipper.send_last(closing=True))

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def check(self) -> None:
        """Check that the package's settings can be used; for its tests.

        Making a `Telemetry` checks only their form, because the full check would slow a program's start. Nothing is sent
        if they cannot be used.

        Raises:
            SettingsError: they cannot; the text says which and why.
        """
        allowed_settings(self._settings)

    def facts(self) -> dict[str, str]:
        """Return the package's ``name``, ``version``, ``install`` (index, direct or source) and ``installer``."""
        if not self._facts:
            from profiler.embedding.installed import install_facts

            self._facts = {"name": self._name, "version": self._version, **install_facts(self._name)}
        return self._facts

    def declared(self) -> dict[str, Any]:
        """Return the declarations: ``app``, ``modules``, ``features``, ``commands`` (with their options) and ``told``."""
        is_own = self._is_own
        options: dict[str, dict[str, None]] = {
            self._commands.listed_name(name, is_own): {} for name in list(self._counters.commands)
        }
        for command, option in list(self._counters.options):
            name = self._commands.listed_name(command, is_own)
            options[name][self._commands.listed_option(command, option, is_own)] = None
        return {
            "app": self._name,
            "modules": list(self._modules),
            "features": list(self._counters.features),
            "commands": [[name, list(given)] for name, given in options.items()],
            **({"told": self._told.words} if self._told else {}),
        }

    def __repr__(self) -> str:
        return f"<Telemetry {self._name!r} {self._version}>"

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _miss(self, what: str, name: Any) -> None:
        self._counters.undeclared.add()
        self._warn(f"a {what} {name!r} is not declared, and not counted" if isinstance(name, str) else f"a {what} has no name")

    def _capture(self, error: BaseException) -> None:
        from profiler.embedding.crash import is_crash

        if not is_crash(error):
            return
        noted_by = getattr(error, NOTED, ())
        if self._name in noted_by:
            return  # on its way out through nested guards
        with suppress(AttributeError, TypeError):
            setattr(error, NOTED, (*noted_by, self._name))
        self._shipper.keep_crash(error)

    def _is_own(self, name: str) -> bool:
        from profiler.embedding.own_files import OwnFiles

        self._own_files = self._own_files or OwnFiles(self._name, self._modules)
        return self._own_files.says(name)

    def _info(self) -> PackageInfo:
        from profiler.embedding.package_info import PackageInfo

        return PackageInfo(self.facts, self._app(), self.declared(), self._dsn, self._exporter)

    def _app(self) -> EmbeddingApp:
        """Return the package with the settings it would like; if they cannot be used, with "nothing leaves"."""
        from profiler.config.resolve import EmbeddingApp

        try:
            allowed = allowed_settings(self._settings)
        except SettingsError as error:
            if not self._has_warned:
                self._shipper.note(f"nothing is sent: {error}")
            self._warn(f"nothing is sent: {error}")
            allowed = {"exporter": "none"}
        return EmbeddingApp(self._name, allowed, self._began_ns, self._joint_facts)

    def _send_if_due(self) -> None:
        """Send the counts now and then, from the counting thread. Otherwise no thread is started."""
        if now() > self._look_at:
            self._look_at = now() + LOOK_EVERY_S
            self._swallow("counts could not be sent", self._send_some)

    def _send_some(self) -> None:
        self._look_at = now() + self._shipper.send_some()

    def _at_exit(self) -> None:
        self._look_at, self._shipper.is_over = math.inf, True
        if self._shipper.has_work:
            with suppress(KeyboardInterrupt):  # the user need not wait for it
                self._swallow("counts could not be kept", lambda: self._shipper.send_last(closing=False))

    def _swallow(self, what: str, action: Any) -> None:
        """Do the action; a fault is counted. The author also sees a warning about settings that cannot be used."""

        def warned() -> None:
            try:
                action()
            except SettingsError as error:
                self._warn(f"{what}: {error} 'epochmeter doctor' shows more.")
                raise

        self._shipper.faults.swallow(what, warned)

    def _warn(self, what: str) -> None:
        """Warn the package's author, once in a process. pytest and ``python -X dev`` show it; users do not see it."""
        if not self._has_warned:
            self._has_warned = True
            import warnings

            warnings.warn(f"epochmeter, for {self._name}: {what}", ResourceWarning, stacklevel=_frames_of_ours() + 1)

    def _hear_of_workers(self) -> None:
        """Register with multiprocessing, whose processes end without `atexit` but call finalizers of their own."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None and not self._hears:
            self._hears = True
            util.register_after_fork(self, Telemetry._in_worker)

    def _in_worker(self) -> None:
        sys.modules["multiprocessing.util"].Finalize(None, self._at_exit, exitpriority=100)


def _declared_facts(facts: Any) -> DeclaredFacts:
    from profiler.embedding.told_run import DeclaredFacts

    return DeclaredFacts(facts)


def _frames_of_ours() -> int:
    """Return how many frames there are from the calling function up to the first one that is not ours."""
    level = 1
    while str(sys._getframe(level).f_globals.get("__name__")).startswith("profiler."):
        level += 1
    return level - 1


def _before_fork() -> None:
    for telemetry in list(_live):
        telemetry._hear_of_workers()


def _after_fork() -> None:
    for telemetry in list(_live):
        telemetry._shipper.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
