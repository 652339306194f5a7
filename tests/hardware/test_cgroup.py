"""Container limits from copies of real ``/proc`` and cgroup files: v1, v2, both at once, and none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiler.hardware.cgroup import Cgroups

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 32 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def write(root: Path, files: dict[str, str]) -> Cgroups:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Cgroups(root)


def test_v2_takes_smallest_limit_of_parents(tmp_path: Path) -> None:
    cgroups = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pods/mine\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pods/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pods/cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 2500000\n",
            "sys/fs/cgroup/pods/memory.max": "2147483648\n",
            "sys/fs/cgroup/pods/mine/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pods/mine/memory.max": "max\n",
            "sys/fs/cgroup/pods/mine/memory.current": "1000000\n",
            "sys/fs/cgroup/pods/mine/memory.stat": "anon 1\ninactive_file 400000\n",
        },
    )
    assert cgroups.cpu_quota() == 1.5
    assert cgroups.memory_limit() == 2**31
    assert cgroups.memory_working_set() == 600_000
    assert cgroups.throttled_seconds() == 2.5
    assert cgroups.available_cores() == min(1.5, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1.5)


def test_v1(tmp_path: Path) -> None:
    cgroups = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n",
            "proc/self/mountinfo": V1_MOUNTS.replace("0:29 / ", "0:29 /docker/x ").replace("0:30 / ", "0:30 /docker/x "),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 22\nnr_throttled 20\nthrottled_time 1000000000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "871000000\n",
            "sys/fs/cgroup/memory/memory.stat": "cache 1\ntotal_inactive_file 516000000\n",
        },
    )
    assert cgroups.cpu_quota() == 0.5
    assert cgroups.memory_limit() == 2**30
    assert cgroups.memory_working_set() == 355_000_000
    assert cgroups.throttled_seconds() == 1.0


def test_a_v2_mount_without_controllers_beside_v1(tmp_path: Path) -> None:
    cgroups = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/\n5:memory:/\n0::/\n",
            "proc/self/mountinfo": V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ") + V1_MOUNTS,
            "sys/fs/cgroup/unified/cgroup.procs": "",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cgroups.cpu_quota() == 2.0
    assert cgroups.memory_limit() is None


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": ""},
        {"proc/self/cgroup": "nonsense", "proc/self/mountinfo": "more nonsense - \n"},
        {"proc/self/cgroup": "0::/../../etc\n", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/cpu.max": "100000 0\n"},
    ],
)
def test_without_limits_nothing_is_claimed(tmp_path: Path, files: dict[str, str]) -> None:
    cgroups = write(tmp_path, files)
    assert cgroups.cpu_quota() is None
    assert cgroups.memory_limit() is None
    assert cgroups.memory_working_set() is None
    assert cgroups.throttled_seconds() is None


def test_this_machine_answers_or_is_silent() -> None:
    cgroups = Cgroups()
    quota = cgroups.cpu_quota()
    assert quota is None or quota > 0
    cores = cgroups.available_cores()
    assert cores is not None and cores > 0
