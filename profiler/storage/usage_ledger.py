"""The counts of packages that embed us, in files, until they are summed up.

The rule it keeps: counts made without consent are kept apart, and never leave.

One folder a package, one file a process and its time, written under another name and renamed:

    pending/   counted under a choice that lets them leave; summed up at the next export
    summing/   one folder for each summary being made; its name is the summary's id
    done/      summaries that are in the outbox; their files go to kept/
    kept/      counts that stay here, for the user to look at
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from profiler.config.folder import Folder
from profiler.config.switch_off import COUNTS, PACKAGE

MERGED_FROM = 64  # files in kept/ become one
MAX_BYTES = 2**22  # of one file
SUMMARY = re.compile(r"\w+")  # a folder in summing/ or done/


@dataclass
class Counts:
    """The uses of features, commands, and options of a command; and of facts of runs, the runs by their outcome."""

    features: dict[str, int] = field(default_factory=dict)
    commands: dict[str, int] = field(default_factory=dict)
    options: dict[str, dict[str, int]] = field(default_factory=dict)
    told: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True if nothing was counted."""
        return not (self.features or self.commands or self.options or self.told)

    @property
    def total(self) -> int:
        """Uses of features plus calls of commands."""
        return sum(self.features.values()) + sum(self.commands.values())

    def merge(self, other: Counts) -> None:
        """Add other counts."""
        _add(self.features, other.features)
        _add(self.commands, other.commands)
        for command, options in other.options.items():
            _add(self.options.setdefault(command, {}), options)
        for word, outcomes in other.told.items():
            _add(self.told.setdefault(word, {}), outcomes)


@dataclass
class Counted:
    """The counts of one process, or of several.

    Attributes:
        began: the start of counting, ns since 1970.
        ended: its end, ns since 1970.
        version: the package's version.
        declared: the package's declarations, as JSON.
        counts: the counts.
        facts: of the package and its environment, by the names that they are sent under.
        choice: the choice on sending at the time of counting; None if the counts may not leave.
        notes: our own faults, each with its number.
        contains: the names of files that this one is the sum of.
        apart: True if the facts go each apart from the others.
    """

    began: int
    ended: int
    version: str
    declared: dict[str, Any]
    counts: Counts
    facts: dict[str, Any] = field(default_factory=dict)
    choice: list[Any] | None = None
    notes: dict[str, int] = field(default_factory=dict)
    contains: list[str] = field(default_factory=list)
    apart: bool = False

    def merge(self, other: Counted) -> None:
        """Add the counts of another process."""
        self.began, self.ended = min(self.began, other.began), max(self.ended, other.ended)
        self.counts.merge(other.counts)
        self.facts.update(other.facts)
        self.apart = self.apart or other.apart
        _add(self.notes, other.notes)


class UsageLedger:
    """The counts of one package on this machine.

    Args:
        folder: the package's; made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._folder = Folder(folder)

    def add(self, counted: Counted) -> None:
        """Write the counts of a process.

        Raises:
            OSError: they cannot be kept.
        """
        name = f"{counted.began:020d}-{secrets.token_hex(6)}.json"
        self._write("kept" if counted.choice is None else "pending", name, counted)

    @contextlib.contextmanager
    def alone(self, patience_s: float) -> Iterator[bool]:
        """Hold the package's lock. Yield True, or False if another process has it for longer than ``patience_s``."""
        import filelock

        held = self._folder.lock("lock")
        try:
            held.acquire(timeout=patience_s)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            held.release()

    def pending(self) -> list[tuple[str, Counted]]:
        """Return the counts that are to leave and are not on their way, summed up as by the next `summaries`."""
        found: dict[str, tuple[str, Counted]] = {}
        for name, counted in self._read("pending"):
            kind = json.dumps([_summary_key(counted), counted.choice])
            if kind in found:
                found[kind][1].merge(counted)
            else:
                found[kind] = _id(name), counted
        return list(found.values())

    def kept(self) -> list[Counted]:
        """Return the counts that stay here, oldest first. Sent ones are among them."""
        found = list(self._read("kept"))
        within = {name for _, counted in found for name in counted.contains}
        return [counted for name, counted in found if name not in within]

    def unreadable(self) -> int:
        """Return the number of files that cannot be read."""
        states = ("pending", "kept", *(f"summing/{summary}" for summary in self._summaries("summing")))
        return sum(len(self._state(state).names(COUNTS)) - len(list(self._read(state))) for state in states)

    def summaries(self, choice: list[Any]) -> list[tuple[str, Counted]]:
        """Return the counts that are to leave, summed up by version, each with an id that stays the same until `sent`.

        The caller holds the package's lock. Counts made under another choice move to kept/.
        """
        for name, counted in self._read("pending"):
            if counted.choice != choice:
                self._move("pending", name, "kept")
        # A summary is a folder in summing/. Its files are moved there one rename each, and its name is drawn from the first
        # one, so a process that is killed here leaves a folder that the next one takes up under the same id. The outbox
        # replaces an entry of the same name. So a kill between two steps loses no count.
        groups: dict[str, list[str]] = {}
        for name, counted in self._read("pending"):
            groups.setdefault(_summary_key(counted), []).append(name)
        for names in groups.values():
            for name in names:
                self._move("pending", name, f"summing/{_id(names[0])}")
        found = []
        for summary in self._summaries("summing"):
            parts = [counted for _, counted in self._read(f"summing/{summary}")]
            if parts and all(part.choice == choice for part in parts):
                for part in parts[1:]:
                    parts[0].merge(part)
                found.append((summary, parts[0]))
            else:
                self.sent(summary, keep=True)
        return found

    def sent(self, summary: str, *, keep: bool) -> None:
        """Settle a summary that is in the outbox, or was given up: keep its parts here, or remove them."""
        with contextlib.suppress(FileNotFoundError):
            self._state("summing").move_folder(summary, self._state("done"))
        for known in self._summaries("done"):
            for name in self._state(f"done/{known}").names(COUNTS):
                if keep:
                    self._move(f"done/{known}", name, "kept")
                else:
                    self._remove(f"done/{known}", name)
            with contextlib.suppress(OSError):
                self._state("done").remove_folder(known)

    def is_untidy(self, days: float) -> bool:
        """Return True if there are many files, or files that are too old by their names."""
        names = self._state("kept").names(COUNTS)
        return len(names) > MERGED_FROM or (bool(names) and names[0] < f"{int((time.time() - days * 86_400) * 1e9):020d}")

    def tidy(self, days: float) -> None:
        """Merge many files into one, and remove old ones. The caller holds the package's lock."""
        limit = time.time() - days * 86_400
        kept = list(self._read("kept"))
        contained = {name for _, counted in kept for name in counted.contains}
        gone = {name for name, counted in kept if counted.ended / 1e9 < limit or name in contained}
        for name in gone:
            self._remove("kept", name)
        kept = [(name, counted) for name, counted in kept if name not in gone]
        if len(kept) <= MERGED_FROM:
            return
        groups: dict[str, list[tuple[str, Counted]]] = {}
        for name, counted in kept:
            day = counted.ended // 86_400_000_000_000
            groups.setdefault(f"{_summary_key(counted)} {day}", []).append((name, counted))
        for parts in [parts for parts in groups.values() if len(parts) > 1]:
            whole = parts[0][1]
            for _, part in parts[1:]:
                whole.merge(part)
            whole.contains, whole.choice = [name for name, _ in parts], None
            self._write("kept", f"{whole.began:020d}-{secrets.token_hex(6)}.json", whole)
            for name, _ in parts:
                self._remove("kept", name)

    def exported_at(self) -> float:
        """Return when the last summary was made, in seconds since 1970; 0 if none was."""
        try:
            return self._folder.status("exported").st_mtime
        except OSError:
            return 0.0

    def note_export(self) -> None:
        """Note that a summary is made now."""
        with contextlib.suppress(OSError):
            self._folder.replace("exported", b"")

    def _state(self, state: str) -> Folder:
        """Return the folder of a state, or of a summary in it."""
        outer, _, summary = state.partition("/")
        return self._folder.sub(outer).sub(summary) if summary else self._folder.sub(outer)

    def _write(self, state: str, name: str, counted: Counted) -> None:
        self._state(state).replace(name, json.dumps(asdict(counted)).encode("utf-8"), by=self._folder)

    def _read(self, state: str) -> Iterator[tuple[str, Counted]]:
        """Yield the files of a state or summary, oldest first, without spoilt ones."""
        for name in self._state(state).names(COUNTS):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
                yield name, _counted_from(json.loads(self._state(state).read(name, MAX_BYTES)))

    def _summaries(self, state: str) -> list[str]:
        return self._state(state).folders(SUMMARY)

    def _move(self, state: str, name: str, into: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # switched off meanwhile: it has been moved
            self._state(state).move(name, self._state(into))

    def _remove(self, state: str, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._state(state).remove(name)


def ledgers(folder: Path) -> list[UsageLedger]:
    """Return the ledgers of all packages that have counted here."""
    return [UsageLedger(folder / name) for name in Folder(folder).folders(PACKAGE)]


def _counted_from(content: dict[str, Any]) -> Counted:
    """Return the counts that a file holds.

    Raises:
        ValueError, TypeError, KeyError: they are spoilt.
    """
    found = Counted(**{**content, "counts": Counts(**content["counts"])})
    counts = found.counts
    for numbers in (counts.features, counts.commands, found.notes, *counts.options.values(), *counts.told.values()):
        if not all(isinstance(name, str) and type(number) is int for name, number in numbers.items()):
            raise ValueError("it holds no counts")
    if type(found.began) is not int or type(found.ended) is not int or not isinstance(found.version, str):
        raise ValueError("it holds no counts")
    if not isinstance(found.declared, dict) or not isinstance(found.facts, dict) or not isinstance(found.contains, list):
        raise ValueError("it holds no counts")
    return found


def _add(into: dict[str, int], added: Mapping[str, int]) -> None:
    for name, times in added.items():
        into[name] = into.get(name, 0) + times


def _summary_key(counted: Counted) -> str:
    """Return a key of counts that can be summed up: the same version and the same names."""
    return json.dumps([counted.version, counted.declared])


def _id(name: str) -> str:
    """Return a summary's id: the random part of its first file's name, so that a preview shows the id that is sent."""
    return name.removesuffix(".json").rpartition("-")[2]
