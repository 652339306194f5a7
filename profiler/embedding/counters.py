"""Counters in memory: how often each feature, command and option was used.

The rule it keeps: counting is one step of an iterator, without a lock. It is exact with any number of threads, and cannot
block in a signal handler or a forked process. Nothing heavy is imported: a host's start is not ours to slow.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from itertools import count
from typing import NamedTuple


class Tally:
    """A number that only grows. ``add`` counts, by one call of an iterator in C, which no thread can interrupt."""

    __slots__ = ("_looks", "_taken", "add")

    def __init__(self) -> None:
        self.add = count().__next__
        self._looks = 0
        self._taken = 0

    def take(self) -> int:
        """Return the growth since the last call. Call it from one thread at a time."""
        total = self._total()
        added, self._taken = total - self._taken, total
        return added

    @property
    def waits(self) -> bool:
        """True if it has grown since."""
        return self._total() > self._taken

    def _total(self) -> int:
        total = self.add() - self._looks
        self._looks += 1
        return total


class Taken(NamedTuple):
    """The counts since the last look: uses of features, calls of commands, options of each, and facts by outcome.

    Attributes:
        told: for each word of a fact, its runs by their outcome.
        undeclared: how often a name was not declared.
    """

    features: dict[str, int]
    commands: dict[str, int]
    options: dict[str, dict[str, int]]
    told: dict[str, dict[str, int]]
    undeclared: int


class Counters:
    """The counters of a process.

    Args:
        features: the names of features.
        commands: the names of commands, each with the names of its options.
    """

    def __init__(self, features: Iterable[str], commands: Mapping[str, Iterable[str]]) -> None:
        self.features = {name: Tally() for name in features}
        self.commands = {name: Tally() for name in commands}
        self.options = {(name, option): Tally() for name, options in commands.items() for option in options}
        self.told: dict[tuple[str, str], Tally] = {}
        self.undeclared = Tally()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The number of names."""
        return len(self.features) + len(self.commands) + len(self.options)

    @property
    def any(self) -> bool:
        """True if anything was counted since the last `take`."""
        named = (self.features, self.commands, self.options, self.told)
        return self.undeclared.waits or any(tally.waits for tallies in named for tally in list(tallies.values()))

    def count(self, command: str, options: Iterable[str]) -> None:
        """Count a command and the options given with it, all or none.

        Raises:
            KeyError, TypeError: one is unknown, or no name.
        """
        tallies = [self.commands[command]]
        for option in options:
            tallies.append(self.options[command, option])
        for tally in tallies:
            tally.add()

    def tell(self, word: str, outcome: str) -> None:
        """Count a run for which this fact is true, by how it ended."""
        self.told.setdefault((word, outcome), Tally()).add()

    def learn(self, command: str, options: Iterable[str]) -> None:
        """Add a command, or options of one."""
        self.commands.setdefault(command, Tally())
        for option in options:
            self.options.setdefault((command, option), Tally())

    def count_known(self, command: str, options: Iterable[str], *, again: bool = False) -> bool:
        """Count the known ones of a command and its given options. Return True if all are known.

        Args:
            command: the command's name.
            options: the names of the given options.
            again: the command itself was counted before; only its options are new.
        """
        found = [] if again else [self.commands.get(command)]
        found += [self.options.get((command, option)) for option in options]
        for tally in found:
            (tally or self.undeclared).add()
        return None not in found

    def forget(self) -> None:
        """Begin anew in a forked process."""
        self._lock = threading.Lock()
        self.take()

    def take(self) -> Taken:
        """Return the counts since the last call."""
        with self._lock:
            features = {name: added for name, tally in list(self.features.items()) if (added := tally.take())}
            commands = {name: added for name, tally in list(self.commands.items()) if (added := tally.take())}
            return Taken(features, commands, _taken(self.options), _taken(self.told), self.undeclared.take())


def _taken(tallies: Mapping[tuple[str, str], Tally]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (first, second), tally in list(tallies.items()):
        if added := tally.take():
            found.setdefault(first, {})[second] = added
    return found
