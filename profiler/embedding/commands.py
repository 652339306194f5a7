"""Commands and option names of a program that uses click, Typer or argparse.

The rules it keeps: none of the three is imported; the program's own objects are asked. Values are never read. click itself
knows which options were given; a watched argparse parser notes the call of an option's action.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from typing import Any

from profiler.errors import ArgumentTypeError

MAIN = "main"  # the name of a program's only command
NAMES_OF_COMMAND = ("command", "cmd", "subcommand")  # in an argparse.Namespace of an unwatched parser
WATCHED = "__epochmeter_watched__"  # on a command of click's
CalledCommand = tuple[str, tuple[str, ...]]


def of_context(context: Any) -> CalledCommand | None:
    """Return the command of a click or Typer context, and the options given on the command line.

    Commands in groups are joined by dots. The program itself is not part of the name, unless it has no group. In a group's own
    callback the called command is returned without its options, which are not parsed yet. None if that is a group again, or
    a command of ours.
    """
    chain, step = [], context
    while step.parent is not None:
        chain.append(step.command.name)
        step = step.parent
    called = getattr(context, "invoked_subcommand", None)
    if called:
        inner = getattr(context.command, "commands", {}).get(called)
        if inner is not None and (hasattr(inner, "resolve_command") or is_ours(inner)):
            return None
        return ".".join([*reversed(chain), called]), ()
    return ".".join(reversed(chain)) or context.command.name, tuple(_given(context))


def _given(context: Any) -> Iterator[str]:
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if parameter.param_type_name == "option" and getattr(source, "name", "") == "COMMANDLINE":
            yield parameter.name


def is_context(thing: Any) -> bool:
    """Return True if this is a context of click or Typer."""
    return hasattr(thing, "command") and hasattr(thing, "get_parameter_source")


def is_new(context: Any, app: str, command: str) -> bool:
    """Return True at the first count of this call: it may be watched, and counted by its own code, too."""
    counted = context.meta.setdefault(f"epochmeter.{app}", set())
    new = command not in counted
    counted.add(command)
    return new


def is_ours(command: Any) -> bool:
    """Return True for a command of ours that is mounted in a package's program."""
    return str(getattr(command.callback, "__module__", "")).startswith("profiler.cli.")


def walked(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the commands of a click command: name, and names of options.

    Our own mounted commands are left out, and so are those that a group finds only when it is called.
    """
    inner = getattr(command, "commands", None)
    if is_ours(command):
        return
    if inner is None:
        yield ".".join(path) or command.name or "", options_of(command)
        return
    for name, child in inner.items():
        yield from walked(child, (*path, name))


def options_of(command: Any) -> tuple[str, ...]:
    """Return the names of a click command's options."""
    return tuple(p.name for p in command.params if p.param_type_name == "option" and p.name != "help")


def click_command(cli: Any) -> Any:
    """Return the command that click runs: itself, or the one that Typer makes; None if it is neither."""
    if hasattr(cli, "registered_commands"):
        return sys.modules["typer.main"].get_command(cli)
    return cli if hasattr(cli, "invoke") and hasattr(cli, "params") else None


def around(command: Any, before: Callable[[Any], None], guard: Callable[[], Any]) -> None:
    """Wrap a command and those within it: each call first calls ``before`` with its context, then runs inside ``guard()``."""
    if getattr(command, WATCHED, False) or is_ours(command):
        return
    setattr(command, WATCHED, True)
    if hasattr(command, "resolve_command"):  # also of a group that finds its commands only when they are called
        resolve = command.resolve_command

        def resolve_command(*arguments: Any, **more: Any) -> Any:
            found = resolve(*arguments, **more)
            if found[1] is not None:
                around(found[1], before, guard)
            return found

        command.resolve_command = resolve_command
        return
    run = command.invoke

    def invoke(context: Any) -> Any:
        before(context)
        with guard():
            return run(context)

    command.invoke = invoke


# ---- argparse ------------------------------------------------------------------------------------------------------


class WatchedParser:
    """A complete parser whose options and sub-commands note that they were given.

    Attributes:
        commands: each with its options, including those of the parsers above it.

    Raises:
        ArgumentTypeError: it is no parser.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        import argparse

        if not isinstance(parser, argparse.ArgumentParser):
            raise ArgumentTypeError(f"a click command, a Typer app or an ArgumentParser was expected, not {parser!r}")
        self.commands: dict[str, tuple[str, ...]] = {}
        self._given: list[str] = []
        self._chosen: list[str] = []
        self._watch(parser, (), ())
        parse = parser.parse_known_args

        def parse_known_args(*arguments: Any, **more: Any) -> Any:
            self._given.clear()  # of a call that failed, or that was not counted
            self._chosen.clear()
            return parse(*arguments, **more)

        parser.parse_known_args = parse_known_args  # type: ignore[method-assign]

    def _watch(self, parser: argparse.ArgumentParser, path: tuple[str, ...], above: tuple[str, ...]) -> None:
        import argparse

        actions = list(parser._actions)  # there is no public attribute; tools that complete or document parsers use this one
        options = [action for action in actions if action.option_strings and action.default is not argparse.SUPPRESS]
        choosers = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
        names = (*above, *(option.dest for option in options))
        for option in options:
            _note_calls(option, partial(self._note_option, option.dest))
        for chooser in choosers:
            canonical: dict[int, str] = {}
            for name, child in chooser.choices.items():  # an alias follows the name that it stands for
                if canonical.setdefault(id(child), name) == name:
                    self._watch(child, (*path, name), names)
            by_name = {name: canonical[id(child)] for name, child in chooser.choices.items()}
            _note_calls(chooser, partial(self._note_command, by_name))
        if not choosers:
            self.commands[".".join(path) or MAIN] = names

    def _note_option(self, name: str, values: Any) -> None:
        self._given.append(name)

    def _note_command(self, by_name: Mapping[str, str], values: Any) -> None:
        self._chosen.append(by_name[values[0]])

    def called(self) -> CalledCommand | None:
        """Return the command that was parsed last and its given options, or None if no command was called."""
        name = ".".join(self._chosen) or MAIN
        return (name, tuple(dict.fromkeys(self._given))) if name in self.commands else None


def _note_calls(action: argparse.Action, note: Callable[[Any], None]) -> None:
    """Note each call of an action. argparse calls it only if its option is on the command line."""
    kind = type(action)

    def called(self: Any, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        note(values)
        kind.__call__(self, parser, namespace, values, option_string)

    action.__class__ = type(kind.__name__, (kind,), {"__call__": called})


def of_namespace(namespace: argparse.Namespace, commands: Container[str]) -> CalledCommand:
    """Return the command in the result of an unwatched parser. Its given options cannot be known."""
    held = vars(namespace)
    found = (held[name] for name in NAMES_OF_COMMAND if name in held)
    return next((name for name in found if isinstance(name, str) and name in commands), MAIN), ()
