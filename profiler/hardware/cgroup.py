"""The limits that Linux sets for this process: CPU quota, memory limit, throttling; cgroup v1, v2 or both at once.

The files are found through ``/proc/self/cgroup`` and ``/proc/self/mountinfo``, never assumed to be in one place. Limits are
hierarchical, so the smallest one from the group up to its mount is in force. The paths there can hold container ids; they
lead to the files, and are kept nowhere.
Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

NO_LIMIT = 1 << 62  # cgroup v1 writes 9223372036854771712 for "none"


@dataclass(frozen=True)
class Group:
    """One group's folders, from the process's own up to the mount."""

    version: int
    controllers: frozenset[str]
    folders: tuple[Path, ...]


class Cgroups:
    """The groups of this process. On a system without cgroups there are none, and every answer is None.

    Args:
        root: the root of the file system; tests put a copy elsewhere.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._groups = _find(root)

    def cpu_quota(self) -> float | None:
        """Return how many CPUs' time may be used, or None without a quota."""
        found = self._tightest_cpu()
        return found[0] if found else None

    def available_cores(self) -> float | None:
        """Return the CPUs this process may use: the smaller of affinity and quota (OpenTelemetry's denominator)."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        return min((count for count in (cores, self.cpu_quota()) if count is not None), default=None)

    def memory_limit(self) -> int | None:
        """Return the bytes that may be used, or None without a limit."""
        limits = []
        for group in self._having("memory"):
            name = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
            limits += [_whole_number_in(folder / name) for folder in group.folders]
        return min((limit for limit in limits if limit is not None and limit < NO_LIMIT), default=None)

    def memory_working_set(self) -> int | None:
        """Return the bytes in use without droppable page cache, or None if unknown."""
        for group in self._having("memory"):
            folder = group.folders[0]
            usage_name, cache_name = (
                ("memory.current", "inactive_file") if group.version == 2 else ("memory.usage_in_bytes", "total_inactive_file")
            )
            usage, cache = _whole_number_in(folder / usage_name), _table(folder / "memory.stat").get(cache_name)
            if usage is not None and cache is not None:
                return max(usage - cache, 0)
        return None

    def throttled_seconds(self) -> float | None:
        """Return the time for which the quota has stopped this group since it was made, or None without a quota."""
        found = self._tightest_cpu()
        if not found:
            return None
        table = _table(found[1] / "cpu.stat")
        if "throttled_usec" in table:
            return table["throttled_usec"] / 1e6
        if "throttled_time" in table:
            return table["throttled_time"] / 1e9
        return None

    def _having(self, controller: str) -> list[Group]:
        return [group for group in self._groups if group.version == 2 or controller in group.controllers]

    def _tightest_cpu(self) -> tuple[float, Path] | None:
        # A quota of a parent group stops this process, too, so the whole chain is read and the tightest quota counts.
        quotas = []
        for group in self._having("cpu"):
            for folder in group.folders:
                quota = _quota_v2(folder) if group.version == 2 else _quota_v1(folder)
                if quota is not None:
                    quotas.append((quota, folder))
        return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    if len(words) != 2 or not (words[0].isdigit() and words[1].isdigit()) or words[1] == "0":
        return None  # no such file, or "max": no quota
    return int(words[0]) / int(words[1])


def _quota_v1(folder: Path) -> float | None:
    quota, period = _whole_number_in(folder / "cpu.cfs_quota_us"), _whole_number_in(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period is not None and quota > 0 and period > 0 else None


def _find(root: Path) -> list[Group]:
    mounts = _mounts(root)
    groups = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        version = 2 if number == "0" and not names else 1
        controllers = frozenset(filter(None, names.split(",")))
        for mount_version, mount_controllers, mount_root, mount_point in mounts:
            if version == mount_version and (version == 2 or controllers & mount_controllers):
                folders = _folders(root, path, mount_root, mount_point)
                if folders:
                    groups.append(Group(version, controllers, folders))
                break
    return groups


def _folders(root: Path, path: str, mount_root: str, mount_point: str) -> tuple[Path, ...]:
    """Return the group's folder and its parents up to the mount, without the mount's own root."""
    try:
        inner = PurePosixPath(path).relative_to(mount_root)
    except ValueError:
        inner = PurePosixPath(path.lstrip("/")) if mount_root == "/" else PurePosixPath()
    if ".." in inner.parts:
        inner = PurePosixPath()
    top = root / mount_point.lstrip("/")
    chain = [top / inner, *(top / parent for parent in inner.parents)] if inner.parts else [top]
    return tuple(folder for folder in chain if folder.is_dir())


def _mounts(root: Path) -> list[tuple[int, frozenset[str], str, str]]:
    found = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kinds[0] == "cgroup2" else 1
        found.append((version, frozenset(kinds[2].split(",")), fields[3], fields[4].replace("\\040", " ")))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _whole_number_in(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
