"""Count commands and their options, declared by the author or learned from the program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from profiler.embedding.arguments import NAME
from profiler.errors import ArgumentValueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from profiler.embedding.commands import WatchedParser
    from profiler.embedding.counters import Counters, Taken


MAX_NAMES = 1_000
OTHER = "other"  # the name of all commands and options that may be the user's own words


class CommandCounter:
    """The commands of one package.

    Args:
        app: the package's name.
        counters: where they are counted.
        commands: the argument of `Telemetry`: a mapping fixes the options of each command; no commands at all means
            that they are learned from the program.
        warn: shows the author a command or option that is not declared.

    Raises:
        ArgumentValueError: more than `MAX_NAMES` names are declared.
    """

    def __init__(self, app: str, counters: Counters, commands: Any, warn: Callable[[str], None]) -> None:
        self._app = app
        self._counters = counters
        self._learns_options = set() if isinstance(commands, Mapping) else set(counters.commands)
        self._learns_commands = not counters.commands
        self._warn = warn
        self._watched: WatchedParser | None = None
        self._learned: set[str | tuple[str, str]] = set()  # commands, and options of a command, that the author has not listed
        self._check_size()

    def watch_parser(self, parser: Any) -> None:
        """Watch an ``ArgumentParser``, so that `count` knows which options were given.

        Raises:
            ArgumentTypeError: it is no parser.
        """
        from profiler.embedding import commands as command_lines

        self._watched = command_lines.WatchedParser(parser)
        for name, options in self._watched.commands.items():
            self.learn(name, options)

    def learn(self, command: str, options: Iterable[str]) -> None:
        """Declare a command and its options as the program has them, unless the author has declared others."""
        is_new = command not in self._counters.commands
        if (is_new and not self._learns_commands) or not NAME.fullmatch(command):
            return
        learns = is_new or command in self._learns_options
        learned = [option for option in options if learns and NAME.fullmatch(option)]
        self._learned |= {(command, option) for option in learned if (command, option) not in self._counters.options}
        self._learned |= {command} if is_new else set()
        self._counters.learn(command, learned)
        self._check_size()

    def count(self, called: Any, options: Iterable[str]) -> None:
        """Count a call: of a name, a context of click or Typer, or a namespace that a parser gave."""
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
        is_new = True
        if command_lines.is_context(called):
            is_new = command_lines.is_new(called, self._app, name)
            if given and name in self._learns_options:
                self.learn(name, command_lines.options_of(called.command))
        if not self._counters.count_known(name, given, again=not is_new):
            self._warn(f"a command or option of {' '.join((name, *given))!r} is not declared, and not counted")

    def listed_name(self, command: str, is_own: Callable[[str], bool]) -> str:
        """Return a command's name as it may be kept: itself if the author has listed it, or if it stands in the package."""
        from profiler.embedding.commands import MAIN

        return command if command == MAIN or command not in self._learned or is_own(command) else OTHER

    def take(self, is_own: Callable[[str], bool]) -> Taken:
        """Take all counts, with ``other`` for the commands and options that may have been made of the user's own words."""
        taken = self._counters.take()
        told: dict[str, int] = {}
        for name, times in taken.commands.items():
            listed = self.listed_name(name, is_own)
            told[listed] = told.get(listed, 0) + times
        given: dict[str, dict[str, int]] = {}
        for command, option, times in ((c, o, n) for c, found in taken.options.items() for o, n in found.items()):
            into = given.setdefault(self.listed_name(command, is_own), {})
            listed = self.listed_option(command, option, is_own)
            into[listed] = into.get(listed, 0) + times
        return taken._replace(commands=told, options=given)

    def listed_option(self, command: str, option: str, is_own: Callable[[str], bool]) -> str:
        """Return an option's name in the same way. Of a command that may not be named, no option is."""
        if self.listed_name(command, is_own) == OTHER:
            return OTHER
        return option if (command, option) not in self._learned or is_own(option) else OTHER

    def _check_size(self) -> None:
        if self._counters.size > MAX_NAMES:
            what = "features, commands and options"
            raise ArgumentValueError(f"at most {MAX_NAMES} {what} can be declared, not {self._counters.size}")
