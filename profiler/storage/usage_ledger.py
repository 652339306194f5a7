"""What packages that embed us have counted, in files, until it is summed up.

The rule it keeps: what was counted without consent is kept apart, and has no way out.

One folder a package, one file a process and its time, written under another name and renamed:

    pending/   counted under a choice that lets them leave; summed up at the next export
    summing/   one folder for each summary that is being made; its name is the summary's id
    done/      the same, once the summary is in the outbox; its files go to kept/
    kept/      what stays here: all that was counted, for the user to look at
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
    """What a package that embeds us has counted: how often each feature, command, and option of a command was used."""

    features: dict[str, int] = field(default_factory=dict)
    commands: dict[str, int] = field(default_factory=dict)
    options: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.features or self.commands or self.options)

    @property
    def total(self) -> int:
        """Uses of features, and calls of commands."""
        return sum(self.features.values()) + sum(self.commands.values())

    def merge(self, other: Counts) -> None:
        _add(self.features, other.features)
        _add(self.commands, other.commands)
        for command, options in other.options.items():
            _add(self.options.setdefault(command, {}), options)


@dataclass
class Counted:
    """What one process (or several) counted.

    Attributes:
        began, ended: ns since 1970.
        choice: what was decided about sending when it was counted; None where it may not leave.
        declared: what the package had declared, as JSON.
        facts: of the package and of what it ran on, by the names that they go out with.
        notes: what went wrong on our side.
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
        self.began, self.ended = min(self.began, other.began), max(self.ended, other.ended)
        self.counts.merge(other.counts)
        self.facts.update(other.facts)
        _add(self.notes, other.notes)


class Ledger:
    """The counts of one package on this machine.

    Args:
        folder: the package's; made when something is put into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, counted: Counted) -> None:
        """Puts down what was counted.

        Raises:
            OSError: it cannot be kept.
        """
        name = f"{counted.began:020d}-{secrets.token_hex(6)}.json"
        self._write("kept" if counted.choice is None else "pending", name, counted)

    @contextlib.contextmanager
    def alone(self, patience_s: float) -> Iterator[bool]:
        """Holds the package's lock: True; False where another process has it for longer than that."""
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
        """What is to leave and is not on its way yet, as the next `summaries` will sum it up."""
        found: dict[str, tuple[str, Counted]] = {}
        for path, counted in self._read(self.folder / "pending"):
            kind = json.dumps([_kind(counted), counted.choice])
            if kind in found:
                found[kind][1].merge(counted)
            else:
                found[kind] = _id(path), counted
        return list(found.values())

    def kept(self) -> list[Counted]:
        """What stays here, oldest first; all that was sent is in it, too."""
        found = list(self._read(self.folder / "kept"))
        within = {name for _, counted in found for name in counted.contains}
        return [counted for path, counted in found if path.name not in within]

    def summaries(self, choice: list[Any]) -> list[tuple[str, Counted]]:
        """What is to leave, summed up by version of the package: each with an id that stays the same until `sent`.

        The caller holds the package's lock. What was counted under another choice is kept here.
        """
        for path, counted in self._read(self.folder / "pending"):
            if counted.choice != choice:
                self._move(path, self.folder / "kept")
        groups: dict[str, list[Path]] = {}
        for path, counted in self._read(self.folder / "pending"):
            groups.setdefault(_kind(counted), []).append(path)
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
        """The summary is in the outbox, or has been given up: its parts are kept here, or removed."""
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
        """Whether there are many files, or some that are older than this, as far as their names tell."""
        names = [path.name for path in _files(self.folder / "kept")]
        return len(names) > MERGED_FROM or (bool(names) and names[0] < f"{int((time.time() - days * 86_400) * 1e9):020d}")

    def tidy(self, days: float) -> None:
        """Makes one file of many, and removes what is older than this. The caller holds the package's lock."""
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
            groups.setdefault(f"{_kind(counted)} {day}", []).append((path, counted))
        for parts in [parts for parts in groups.values() if len(parts) > 1]:
            whole = parts[0][1]
            for _, part in parts[1:]:
                whole.merge(part)
            whole.contains, whole.choice = [path.name for path, _ in parts], None
            self._write("kept", f"{whole.began:020d}-{secrets.token_hex(6)}.json", whole)
            for path, _ in parts:
                path.unlink(missing_ok=True)

    def exported_at(self) -> float:
        """When a summary was last made, in seconds since 1970; 0 where none was."""
        try:
            return (self.folder / "exported").stat().st_mtime
        except OSError:
            return 0.0

    def note_export(self) -> None:
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
        """The files of a folder, oldest first. Spoilt ones are passed over."""
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


def ledgers(folder: Path) -> list[Ledger]:
    """Those of all packages that have counted something here."""
    with contextlib.suppress(OSError):
        return [Ledger(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    return []


def _add(into: dict[str, int], added: Mapping[str, int]) -> None:
    for name, times in added.items():
        into[name] = into.get(name, 0) + times


def _kind(counted: Counted) -> str:
    """What can be summed up: counts of the same version, with the same names."""
    return json.dumps([counted.version, counted.declared])


def _id(path: Path) -> str:
    """A summary's id: drawn at random for the first file in it, so that what is previewed is what is sent."""
    return path.stem.rpartition("-")[2]


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    return []
