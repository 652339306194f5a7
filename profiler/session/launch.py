"""Measure an unchanged script: the part of ``epochmeter run`` inside the script's own process.

Python itself runs the script as ``__main__``, with its own arguments, exit code and signals. Before it begins, a run is
started. Once the script has imported torch, all of its loaders, modules and optimizers are observed.

The rules it keeps: the script runs in any case. Nothing is printed before its end.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePath
from typing import Any

from profiler.errors import ProfilerError
from profiler.session.command_words import command_words
from profiler.session.endings import asked_exit, ending, keep_interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.report.summary import RunSummary
    from profiler.session.profiler import Profiler
    from profiler.session.session import Session


def measure(kind: str, target: str, request: Mapping[str, Any]) -> None:
    """Begin the run.

    Args:
        kind: "script" or "module".
        target: its path or name.
        request: ``name`` (None: the script's), ``quiet``, ``live``, ``json`` (a file for the report, or None) and, for a proof,
            ``proof``; see `proof_changes.install`.
    """
    from profiler.session.profiler import Profiler  # the command asks this module, too, and has no need of that one

    try:
        prof = Profiler(request["name"] or name_of(kind, target), live=bool(request["live"]))
        atexit.register(
            _show, prof, os.getpid(), bool(request["quiet"]), request.get("json")
        )  # runs after the session's own, which ends it
        prof.session.run.way, prof.session.run.command = "script", _command(target)
        prof.start()
    except ProfilerError as error:
        _say(f"nothing is measured: {error}")
        return
    sys.excepthook = _hook_without_us(sys.excepthook)
    asked_exit.watch()
    session = prof.session
    when_imported("torch", lambda: session.faults.swallow("torch could not be followed", lambda: _follow(session, request)))


def _follow(session: Session, request: Mapping[str, Any]) -> None:
    if "proof" in request:
        from profiler.session.proof_changes import install  # only if the user has asked for it

        install(request["proof"])
    session.observation.follow_everything()
    spawning = importlib.import_module("torch.multiprocessing.spawn")
    start = spawning.start_processes

    @functools.wraps(start)
    def start_processes(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        Rank.were_spawned = True
        return start(Rank(fn, session.run.name, bool(request["quiet"]), session.run.command), *args, **kwargs)

    for module in (spawning, importlib.import_module("torch.multiprocessing")):
        vars(module)["start_processes"] = start_processes


class Rank:
    """The function that ``torch.multiprocessing.spawn`` runs in each process: it measures the script's function."""

    were_spawned = False  # by this process, which then only waits for them

    def __init__(self, function: Callable[..., Any], name: str, quiet: bool, command: str) -> None:
        self._function = function
        self._command = command
        self._name = name
        self._quiet = quiet

    def __call__(self, *args: Any) -> Any:
        from profiler.session.profiler import Profiler

        prof = Profiler(self._name)
        session, observation = prof.session, prof.session.observation
        error: BaseException | None = None
        session.run.way, session.run.command = "script", self._command
        session.start()
        when_imported("torch", lambda: session.faults.swallow("torch could not be followed", observation.follow_everything))
        try:
            return self._function(*args)
        except BaseException as raised:
            error = raised
            raise
        finally:
            session.finish(*ending(error))
            if session.run.rank is not None:
                _show(prof, os.getpid(), self._quiet)


def _command(target: str) -> str:
    """Return the words with which this process was started, from the script on."""
    words = sys.orig_argv
    return command_words(target, words[words.index(target) + 1 :] if target in words else [])


def name_of(kind: str, target: str) -> str:
    """Return the default name of a run: its script's, without folders."""
    return (PurePath(target).stem if kind == "script" else target.rpartition(".")[2]) or "run"


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Do the action once that module has been imported, or at once if it has been."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watch(name, action))


class _Watch:
    """A finder that lets the others find a module, and notices its execution."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action
        self._is_asking = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        # torch takes seconds to import, and a script may never do so. This finder is asked first for every module. For torch it
        # asks the other finders, and wraps the loader's `exec_module` to learn when the module is complete.
        if name != self._name or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_asking = False
        loader: Any = spec.loader if spec is not None else None
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self._action()

        loader.exec_module = exec_module
        return spec


def _show(prof: Profiler, pid: int, quiet: bool, file: str | None = None) -> None:
    """Print the report on stderr at the very end, and write it into a file; not in a forked child or a later rank."""
    is_first = os.getpid() == pid and not prof.session.run.rank and not Rank.were_spawned
    if (quiet and file is None) or not is_first or prof.summary.state == "running":
        return
    if file is not None:
        _write(prof.summary, file)
    if not quiet:
        _print(prof.summary)
    keep_interrupt()


def _print(summary: RunSummary) -> None:
    show = f"epochmeter report {summary.id}"
    try:
        if has_no_step(summary):
            what = "failed" if summary.state == "crashed" else "was ended"
            sys.stderr.write(f"epochmeter: the script {what} before its first step; the machine's readings: {show}\n")
        else:
            sys.stderr.write(f"\n{summary}\nkept on this machine; show it again with: {show}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed, or none at all
        pass


def _write(summary: RunSummary, file: str) -> None:
    try:
        Path(file).write_text(json.dumps(summary.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        _say(f"{file} cannot be written: {error.strerror}; epochmeter report {summary.id} --json shows the same")


def has_no_step(summary: RunSummary) -> bool:
    """Return True if the script failed or was ended before its first step: its own message says more than a report."""
    return summary.state in ("crashed", "interrupted") and not any(stage["steps"] for stage in summary.stages.values())


def _say(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"epochmeter: {text}\n")


def _hook_without_us(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ``excepthook`` that shows the script's errors without our frames."""

    def excepthook(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
        seen: set[int] = set()
        waiting: list[BaseException | None] = [error]
        while waiting:
            shown = waiting.pop()
            if shown is None or id(shown) in seen:
                continue
            seen.add(id(shown))
            shown.__traceback__ = _without_us(shown.__traceback__)
            waiting += [shown.__cause__, shown.__context__, *getattr(shown, "exceptions", ())]
        hook(kind, error, error.__traceback__)

    return excepthook


def _without_us(traceback: types.TracebackType | None) -> types.TracebackType | None:
    ours = str(Path(__file__).parents[1])
    kept = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(ours):
            kept.append(traceback)
        traceback = traceback.tb_next
    result: types.TracebackType | None = None
    for entry in reversed(kept):
        result = types.TracebackType(result, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return result
