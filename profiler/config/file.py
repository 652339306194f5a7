"""The settings file: read, cached and rewritten here, and nowhere else. Reading never writes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from profiler.config.folder import Folder
from profiler.config.paths import settings_path
from profiler.config.place import UntrustedError
from profiler.config.schema import CONSENT, DESTINATION, KEYS, check_key, check_value, mistyped
from profiler.config.switch_off import empty_outbox
from profiler.errors import SettingsError

VERSION = 2
MIGRATIONS = {  # version: how its keys and values become those of the next one
    1: dict,  # the same, but its choices had no date; an older program that writes this file would leave a wrong date
}
MAX_FILE_BYTES = 1_000_000
FRESH_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT)
LOCK_TIMEOUT_S = 10.0
LOCK_TIMEOUT_OFF_S = 1.0  # for a change that only switches off: it is saved without the lock, too
NOWHERE = ("exporter", "none")
TURNS = 100  # tries to save a change, if other processes change the file meanwhile without the lock


# ---- reading -------------------------------------------------------------------------------------------------------


class UnreadableSettings(Exception):  # not an error of the user's: it means "off"
    """The reason why the settings file cannot be used. ``valid`` holds the settings in it that can be kept."""

    def __init__(self, why: str, valid: Mapping[str, Any] | None = None, cure: str = "epochmeter settings sync=...") -> None:
        super().__init__(why)
        self.valid = valid or {}
        self.cure = cure


class _ParsedFile(NamedTuple):
    """The settings file at one moment: its content, or the reason why it cannot be used."""

    stamp: tuple[int, ...]
    content: dict[str, Any]
    fault: UnreadableSettings | None


_parsed: dict[str, _ParsedFile] = {}  # by path


def read_settings(path: Path) -> dict[str, Any]:
    """Return the keys and values of the settings file in the present format; nothing if there is no file.

    The file is parsed again only if its stamp has changed, as consent is asked several times a delivery. It is opened for its
    stamp: NFS answers a bare ``stat`` from a cache that may be a minute old, but asks the server at each ``open``. So an
    "off" from another machine counts at once.

    Two changes within one tick of the file system's clock have the same stamp. So the stamp of a file that changed in the
    last `FRESH_NS` is not trusted.

    Raises:
        UnreadableSettings: the file cannot be used.
    """
    try:
        with Folder(path.parent).opened(path.name, roots_too=True) as (descriptor, status, is_roots):
            known = _known(path, descriptor, status)
    except FileNotFoundError:
        return {}
    except UntrustedError as error:
        raise UnreadableSettings(f"cannot be trusted: {error.filename} {error.strerror}", cure=error.cure) from None
    except OSError as error:
        raise UnreadableSettings(f"cannot be read: {error.strerror}") from None
    if known.fault is not None:
        raise UnreadableSettings(str(known.fault), known.fault.valid)
    return offs_of(known.content) if is_roots else dict(known.content)


def offs_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of these settings that switch something off: every "off" survives any change of the others."""
    return {key: value for key, value in content.items() if (key in CONSENT and value is False) or (key, value) == NOWHERE}


def _known(path: Path, descriptor: int, status: os.stat_result) -> _ParsedFile:
    """Return the parsed file: the known one if its stamp has not changed."""
    stamp = _stamp_of(status)
    known = _parsed.get(str(path))
    if known is None or known.stamp != stamp:
        known = _parse(_content_of(descriptor, status), stamp)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > FRESH_NS:
            _parsed[str(path)] = known
    return known


def _content_of(descriptor: int, status: os.stat_result) -> bytes:
    if status.st_size > MAX_FILE_BYTES:
        raise UnreadableSettings(f"has {status.st_size} bytes, which no settings file has")
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_FILE_BYTES)


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
    faults += filter(None, (mistyped(key, value) for key, value in content.items() if key not in (*KEYS, "decided")))
    if not isinstance(content.get("decided", ""), str):
        faults.append(f"decided is a date, not {content['decided']!r}")
    return valid, faults


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
    _rewrite(lambda content: {**content, **checked}, only_off=bool(checked) and offs_of(checked) == checked)


def reset() -> None:
    """Restore every default. A setting that was switched off (sync, usage, crash_reports, local, exporter) stays off."""
    _rewrite(offs_of)


def _rewrite(change: Callable[[dict[str, Any]], dict[str, Any]], *, only_off: bool = False) -> None:
    """Read, change and replace the file under a lock. It is replaced as a whole, and only its owner can read it.

    A file that cannot be used is kept aside. Its consent is unknown, so the new file says "off". Its other settings are
    kept if they can be used.

    Args:
        change: returns the settings to save.
        only_off: save them also if another process never lets go of the lock.
    """
    try:
        path = settings_path()
        with _alone(path, only_off):
            try:
                changed = _replaced(path, change)
            except OSError as error:
                if not only_off or error.errno != errno.ENOSPC:
                    raise
                empty_outbox()  # nothing of it is to leave, and that may make room
                changed = _replaced(path, change)
        if is_off(changed):
            empty_outbox()
        if changed.get("crash_reports") is False:
            empty_outbox("crash")
        if changed.get("usage") is False:
            empty_outbox("usage")
    except UntrustedError as error:
        raise SettingsError(f"the settings cannot be saved: {error.filename} {error.strerror}; {error.cure}.") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        full = getattr(error, "errno", None) == errno.ENOSPC
        cure = "Free some space" if full else "Make the folder writable, or name another one in EPOCHMETER_HOME"
        raise SettingsError(f"the settings cannot be saved: {reason}. {cure}.") from error


@contextlib.contextmanager
def _alone(path: Path, only_off: bool) -> Iterator[None]:
    """Hold the lock of the file. A change that only switches off goes on without it after `LOCK_TIMEOUT_OFF_S`."""
    import filelock

    folder, held = Folder(path.parent), None
    folder.make()
    try:
        held = folder.lock(f"{path.name}.lock")
        held.acquire(timeout=LOCK_TIMEOUT_OFF_S if only_off else LOCK_TIMEOUT_S)
    except (OSError, NotImplementedError) as error:  # filelock.Timeout is an OSError
        if not only_off and isinstance(error, filelock.Timeout):
            raise SettingsError(
                f"another process has held {path}.lock for {LOCK_TIMEOUT_S:.0f} s; try again. (An 'off' is saved at once.)"
            ) from None
        if not only_off:
            raise
        held = None
    try:
        yield
    finally:
        if held is not None:
            held.release()


def _replaced(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Replace the file by its change, and return the new settings."""
    # Reading and writing are one step for other writers (the lock), and one rename for readers, who take no lock. The file is
    # read inside the lock: otherwise two processes would each write their own change over the other's "off". An "off" may
    # be written without the lock, so the file is looked at once more just before the rename.
    for turn in range(TURNS):
        before = _stamp(path)
        try:
            content = read_settings(path)
            is_spoilt = bool(before) and not Folder(path.parent).has(path.name)  # root's: kept aside, and its offs go on
        except UnreadableSettings as error:
            content, is_spoilt = {**error.valid, "sync": False}, True
        changed = _dated(content, change(content))
        if _write_whole(path, {"version": VERSION, **changed}, None if turn == TURNS - 1 else before, is_spoilt):
            return changed
    raise AssertionError  # the last turn returns


def _stamp(path: Path) -> tuple[int, ...]:
    """Return a stamp that differs between two states of the file, or nothing if there is no file."""
    try:
        return _stamp_of(os.lstat(path))
    except OSError:
        return ()


def _stamp_of(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_off(content: Mapping[str, Any]) -> bool:
    """Return True if these settings of the file keep everything on this machine."""
    return content.get("sync") is False or content.get("exporter") == "none"


def _keep_aside(folder: Folder, name: str) -> None:
    """Keep an unusable file under another name. The path is never without a file, which would mean the defaults."""
    aside = f"{name}.bad-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    names = itertools.chain([aside], (f"{aside}-{count}" for count in itertools.count(2)))
    folder.keep_aside(name, next(free for free in names if not os.path.lexists(folder.path / free)))


def _dated(before: Mapping[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Add a date if the destination or the consent changes: older measurements do not leave under the new choice."""
    kept = {key: value for key, value in after.items() if key != "decided"}
    if any(before.get(key, KEYS[key]) != after.get(key, KEYS[key]) for key in DESTINATION):
        return {**kept, "decided": datetime.now(timezone.utc).isoformat(timespec="microseconds")}
    return {**kept, "decided": before["decided"]} if "decided" in before else kept


def _write_whole(path: Path, content: Mapping[str, Any], before: tuple[int, ...] | None, is_spoilt: bool) -> bool:
    """Replace the file by one rename, so that a reader sees the old content or the new one.

    Args:
        path: the file.
        content: its new content.
        before: the stamp of the file that the content was made from, or None if that does not matter any more.
        is_spoilt: True if that file cannot be used, and is to be kept aside.

    Returns:
        False if another process has changed the file meanwhile; then it was left alone.
    """
    folder, temporary = Folder(path.parent), f".settings-{secrets.token_hex(8)}"
    folder.create(temporary, (json.dumps(content, indent=2) + "\n").encode("utf-8"), durable=True)
    try:
        is_current = before is None or _stamp(path) == before
        if is_current:
            if is_spoilt:
                _keep_aside(folder, path.name)
            folder.move(temporary, folder, path.name, over_anything=is_spoilt)
        else:
            folder.remove(temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.remove(temporary)
        raise
    return is_current
