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
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from profiler.config.locks import lock

MERGED_FROM = 64  # files in kept/ become one


@dataclass
class Counts:
    """The uses of features, commands, and options of a command."""

    features: dict[str, int] = field(default_factory=dict)
    commands: dict[str, int] = field(default_factory=dict)
    options: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True if nothing was counted."""
        return not (self.features or self.commands or self.options)

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

    def merge(self, other: Counted) -> None:
        """Add the counts of another process."""
        self.began, self.ended = min(self.began, other.began), max(self.ended, other.ended)
        self.counts.merge(other.counts)
        self.facts.update(other.facts)
        _add(self.notes, other.notes)


class UsageLedger:
    """The counts of one package on this machine.

    Args:
        folder: the package's; made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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

        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = lock(self.folder / "lock")
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
        for path, counted in self._read(self.folder / "pending"):
            kind = json.dumps([_summary_key(counted), counted.choice])
            if kind in found:
                found[kind][1].merge(counted)
            else:
                found[kind] = _id(path), counted
        return list(found.values())

    def kept(self) -> list[Counted]:
        """Return the counts that stay here, oldest first. Sent ones are among them."""
        found = list(self._read(self.folder / "kept"))
        within = {name for _, counted in found for name in counted.contains}
        return [counted for path, counted in found if path.name not in within]

    def summaries(self, choice: list[Any]) -> list[tuple[str, Counted]]:
        """Return the counts that are to leave, summed up by version, each with an id that stays the same until `sent`.

        The caller holds the package's lock. Counts made under another choice move to kept/.
        """
        for path, counted in self._read(self.folder / "pending"):
            if counted.choice != choice:
                self._move(path, self.folder / "kept")
        # A summary is a folder in summing/. Its files are moved there one rename each, and its name is drawn from the first
        # one, so a process that is killed here leaves a folder that the next one takes up under the same id. The outbox
        # replaces an entry of the same name. So a kill between two steps loses no count.
        groups: dict[str, list[Path]] = {}
        for path, counted in self._read(self.folder / "pending"):
            groups.setdefault(_summary_key(counted), []).append(path)
        for paths in groups.values():
            for path in paths:
                self._move(path, self.folder / "summing" / _id(paths[0]))
        found = []
        for folder in self._folders("summing"):
            parts = [counted for _, counted in self._read(folder)]
            if parts and all(part.choice == choice for part in parts):
                for part in parts[1:]:
                    parts[0].merge(part)
                found.append((folder.name, parts[0]))
            else:
                self.sent(folder.name, keep=True)
        return found

    def sent(self, summary: str, *, keep: bool) -> None:
        """Settle a summary that is in the outbox, or was given up: keep its parts here, or remove them."""
        (self.folder / "done").mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.folder / "summing" / summary, self.folder / "done" / summary)
        for folder in self._folders("done"):
            for path in _files(folder):
                if keep:
                    self._move(path, self.folder / "kept")
                else:
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()

    def is_untidy(self, days: float) -> bool:
        """Return True if there are many files, or files that are too old by their names."""
        names = [path.name for path in _files(self.folder / "kept")]
        return len(names) > MERGED_FROM or (bool(names) and names[0] < f"{int((time.time() - days * 86_400) * 1e9):020d}")

    def tidy(self, days: float) -> None:
        """Merge many files into one, and remove old ones. The caller holds the package's lock."""
        limit = time.time() - days * 86_400
        kept = list(self._read(self.folder / "kept"))
        contained = {name for _, counted in kept for name in counted.contains}
        for path, counted in kept:
            if counted.ended / 1e9 < limit or path.name in contained:
                path.unlink(missing_ok=True)
        kept = [(path, counted) for path, counted in kept if path.exists()]
        if len(kept) <= MERGED_FROM:
            return
        groups: dict[str, list[tuple[Path, Counted]]] = {}
        for path, counted in kept:
            day = counted.ended // 86_400_000_000_000
            groups.setdefault(f"{_summary_key(counted)} {day}", []).append((path, counted))
        for parts in [parts for parts in groups.values() if len(parts) > 1]:
            whole = parts[0][1]
            for _, part in parts[1:]:
                whole.merge(part)
            whole.contains, whole.choice = [path.name for path, _ in parts], None
            self._write("kept", f"{whole.began:020d}-{secrets.token_hex(6)}.json", whole)
            for path, _ in parts:
                path.unlink(missing_ok=True)

    def exported_at(self) -> float:
        """Return when the last summary was made, in seconds since 1970; 0 if none was."""
        try:
            return (self.folder / "exported").stat().st_mtime
        except OSError:
            return 0.0

    def note_export(self) -> None:
        """Note that a summary is made now."""
        with contextlib.suppress(OSError):
            (self.folder / "exported").touch(mode=0o600)
            os.utime(self.folder / "exported")

    def _write(self, folder: str, name: str, counted: Counted) -> None:
        into = self.folder / folder
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.folder / f".{secrets.token_hex(8)}.part"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(counted), file)
            os.replace(temporary, into / name)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def _read(self, folder: Path) -> Iterator[tuple[Path, Counted]]:
        """Yield the files of a folder, oldest first, without spoilt ones."""
        for path in _files(folder):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                content = json.loads(path.read_bytes())
                yield path, Counted(**{**content, "counts": Counts(**content["counts"])})

    def _folders(self, name: str) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(path for path in (self.folder / name).iterdir() if path.is_dir())
        return []

    def _move(self, path: Path, into: Path) -> None:
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # switched off meanwhile: it has been moved
            os.replace(path, into / path.name)


def ledgers(folder: Path) -> list[UsageLedger]:
    """Return the ledgers of all packages that have counted here."""
    with contextlib.suppress(OSError):
        return [UsageLedger(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    return []


def _add(into: dict[str, int], added: Mapping[str, int]) -> None:
    for name, times in added.items():
        into[name] = into.get(name, 0) + times


def _summary_key(counted: Counted) -> str:
    """Return a key of counts that can be summed up: the same version and the same names."""
    return json.dumps([counted.version, counted.declared])


def _id(path: Path) -> str:
    """Return a summary's id: the random part of its first file's name, so that a preview shows the id that is sent."""
    return path.stem.rpartition("-")[2]


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    return []
