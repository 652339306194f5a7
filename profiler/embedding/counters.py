"""Counters in memory: how often each feature, command and option was used.

The rule it keeps: counting is one step of an iterator, without a lock. It is exact with any number of threads, and cannot
block in a signal handler or a forked process. Nothing heavy is imported: a host's start is not ours to slow.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from itertools import count


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
        self.undeclared = Tally()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The number of names."""
        return len(self.features) + len(self.commands) + len(self.options)

    @property
    def any(self) -> bool:
        """True if anything was counted since the last `take`."""
        options = self.options.values()
        return any(tally.waits for tally in (*self.features.values(), *self.commands.values(), *options, self.undeclared))

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

    def take(self) -> tuple[dict[str, int], dict[str, int], dict[str, dict[str, int]], int]:
        """Return the counts since the last call: features, commands, options by command, and uses of undeclared names."""
        with self._lock:
            features = {name: added for name, tally in list(self.features.items()) if (added := tally.take())}
            commands = {name: added for name, tally in list(self.commands.items()) if (added := tally.take())}
            options: dict[str, dict[str, int]] = {}
            for (command, option), tally in list(self.options.items()):
                if added := tally.take():
                    options.setdefault(command, {})[option] = added
            return features, commands, options, self.undeclared.take()
