"""The settings file: read, cached and rewritten here, and nowhere else. Reading never writes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from profiler.config.locks import lock
from profiler.config.paths import settings_path
from profiler.config.schema import DESTINATION, KEYS, check_key, check_value
from profiler.config.switch_off import empty_outbox
from profiler.errors import SettingsError

VERSION = 2
MIGRATIONS = {  # version: how its keys and values become those of the next one
    1: dict,  # the same, but its choices had no date; an older program that writes this file would leave a wrong date
}
MAX_FILE_BYTES = 1_000_000
FRESH_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT)
LOCK_TIMEOUT_S = 10.0


# ---- reading -------------------------------------------------------------------------------------------------------


class UnreadableSettings(Exception):  # not an error of the user's: it means "off"
    """The reason why the settings file cannot be used. ``valid`` holds the settings in it that can be kept."""

    def __init__(self, why: str, valid: Mapping[str, Any] | None = None) -> None:
        super().__init__(why)
        self.valid = valid or {}


class _ParsedFile(NamedTuple):
    """The settings file at one moment: its content, or the reason why it cannot be used."""

    stamp: tuple[int, ...]
    content: dict[str, Any]
    fault: UnreadableSettings | None


_parsed: dict[str, _ParsedFile] = {}  # by path


def read_settings(path: Path) -> dict[str, Any]:
    """Return the keys and values of the settings file in the present format; nothing if there is no file.

    The file is parsed again only if its stamp has changed. Consent is asked several times a delivery, and this makes each
    question one ``lstat``, one ``open`` and one ``fstat``. The file is opened for its stamp because NFS answers a bare
    ``stat`` from a cache that may be a minute old, and asks the server at each ``open``: an "off" from another machine
    counts at once.

    Two changes within one tick of the file system's clock have the same stamp, so the stamp of a file that changed in the
    last `FRESH_NS` is not trusted.

    Raises:
        UnreadableSettings: the file cannot be used.
    """
    try:
        if not _is_there(path):
            return {}
        with path.open("rb", buffering=0) as file:
            known = _known(path, file)
    except OSError as error:
        raise UnreadableSettings(f"cannot be read: {error.strerror}") from None
    if known.fault is not None:
        raise UnreadableSettings(str(known.fault), known.fault.valid)
    return dict(known.content)


def _known(path: Path, file: FileIO) -> _ParsedFile:
    """Return the parsed file: the known one if its stamp has not changed."""
    status = _status(file)
    stamp = (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _parsed.get(str(path))
    if known is None or known.stamp != stamp:
        known = _parse(file.readall(), stamp)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > FRESH_NS:
            _parsed[str(path)] = known
    return known


def _status(file: FileIO) -> os.stat_result:
    return os.fstat(file.fileno())


def _parse(text: bytes, stamp: tuple[int, ...]) -> _ParsedFile:
    try:
        return _ParsedFile(stamp, _content(text), None)
    except UnreadableSettings as fault:
        return _ParsedFile(stamp, {}, fault)


def _content(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UnreadableSettings(f"is not valid JSON ({str(error)[:80]})") from None
    if not isinstance(content, dict):
        raise UnreadableSettings("does not hold a JSON object")
    version = content.pop("version", None)
    if type(version) is not int or version < 1:
        raise UnreadableSettings("has no version number")
    for older in range(version, VERSION):
        content = MIGRATIONS[older](content)
    valid, faults = _check_content(content)
    if version > VERSION:
        raise UnreadableSettings(f"was written by a newer epochmeter (version {version}, known is {VERSION})", valid)
    if faults:
        raise UnreadableSettings(f"holds a value that cannot be used: {faults[0]}", valid)
    return content


def _check_content(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that can be used, and the faults of the others."""
    valid, faults = {}, []
    for key in KEYS:
        if key in content:
            try:
                valid[key] = check_value(key, content[key], strict=True)
            except SettingsError as error:
                faults.append(str(error))
    if not isinstance(content.get("decided", ""), str):
        faults.append(f"decided is a date, not {content['decided']!r}")
    return valid, faults


def _is_there(path: Path) -> bool:
    """Return True if there is a file that can be opened without a wait.

    Raises:
        UnreadableSettings: it is no plain file, or far too large.
        OSError: the system does not say.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableSettings("is not a plain file")
    if status.st_size > MAX_FILE_BYTES:
        raise UnreadableSettings(f"has {status.st_size} bytes, which no settings file has")
    return True


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


# ---- writing -------------------------------------------------------------------------------------------------------


def update(changes: Mapping[str, Any]) -> None:
    """Save these settings, and leave all others as they are.

    Raises:
        SettingsError: a key or value cannot be used (then nothing is saved), or the file cannot be written.
    """
    checked = {check_key(key): check_value(key, value) for key, value in changes.items()}
    _rewrite(lambda content: {**content, **checked})


def reset() -> None:
    """Restore every default, except an explicit ``sync=False``, which stays until someone sets ``sync=True``."""
    _rewrite(lambda content: {"sync": False} if content.get("sync") is False else {})


def _rewrite(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read, change and replace the file under a lock. It is replaced as a whole, and only its owner can read it.

    A file that cannot be used is kept aside. Its consent is unknown, so the new file says "off". Its other settings are
    kept if they can be used.
    """
    import filelock

    try:
        path = settings_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Reading and writing are one step for other writers (the lock), and one rename for readers, who take no lock. The file
        # is read inside the lock: otherwise two processes would each write their own change over the other's "off".
        with lock(f"{path}.lock").acquire(timeout=LOCK_TIMEOUT_S):
            try:
                content = read_settings(path)
            except UnreadableSettings as error:
                _keep_aside(path)
                content = {**error.valid, "sync": False}
            changed = _dated(content, change(content))
            _write_whole(path, {"version": VERSION, **changed})
        if is_off(changed):
            empty_outbox()
        if changed.get("crash_reports") is False:
            empty_outbox("crash")
        if changed.get("usage") is False:
            empty_outbox("usage")
    except filelock.Timeout:
        raise SettingsError(f"another process has held {path}.lock for {LOCK_TIMEOUT_S:.0f} s; try again.") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"the settings cannot be saved: {reason}. Make the folder writable, or name another one in EPOCHMETER_HOME."
        ) from error


def is_off(content: Mapping[str, Any]) -> bool:
    """Return True if these settings of the file keep everything on this machine."""
    return content.get("sync") is False or content.get("exporter") == "none"


def _keep_aside(path: Path) -> None:
    """Keep an unusable file under another name. The path is never without a file, which would mean the defaults."""
    aside = _aside(path)
    try:
        os.link(path, aside, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a folder, or a file system without links
        os.replace(path, aside)


def _aside(path: Path) -> str:
    """Return a free name for a file that cannot be used."""
    name = f"{path}.bad-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    return next(free for free in names if not os.path.lexists(free))


def _dated(before: Mapping[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Add a date if the destination or the consent changes: older measurements do not leave under the new choice."""
    kept = {key: value for key, value in after.items() if key != "decided"}
    if any(before.get(key, KEYS[key]) != after.get(key, KEYS[key]) for key in DESTINATION):
        return {**kept, "decided": datetime.now(timezone.utc).isoformat(timespec="microseconds")}
    return {**kept, "decided": before["decided"]} if "decided" in before else kept


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by one rename, so that a reader sees the old content or the new one."""
    import tempfile

    descriptor, temporary = tempfile.mkstemp(prefix=".settings-", dir=path.parent)  # mkstemp makes it mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
