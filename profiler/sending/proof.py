"""The proof that "off" is off, made on the machine in question: programs run where every packet is counted.

In a network namespace of their own, all routes lead to the loopback device. So anything a program sends, to any address,
moves that device's counters. A search for sockets from within Python would miss those of compiled code. A sealed program
is ended at once (seccomp) if it opens an internet socket or starts another program, which no counter would show.

This is for ``epochmeter telemetry verify`` and for tests. It starts processes, which a run never does.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from profiler.config.environment import without_choices
from profiler.config.folder import Folder
from profiler.errors import ProfilerError

SETUP = (
    "ip link set lo up && ip route add local default dev lo"
    " && { test ! -e /proc/net/if_inet6 || ip -6 route add local default dev lo; }"
    ' && exec "$@"'
)
TIMEOUT_S = 60
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
CALLS = {  # machine: its audit number, the numbers of socket, clone and clone3, and those of fork, vfork and the execs
    "x86_64": (0xC000003E, 41, 56, 435, (57, 58, 59, 322)),
    "aarch64": (0xC00000B7, 198, 220, 435, (221, 281)),
}
AF_INET, AF_INET6, CLONE_THREAD, NOT_THERE = 2, 10, 0x10000, 38
LOAD, EQUAL, HAS, ANSWER = 0x20, 0x15, 0x45, 0x06  # instructions: code, steps to skip if so, if not, operand
KILL, ALLOW, FAIL = (ANSWER, 0, 0, 0x80000000), (ANSWER, 0, 0, 0x7FFF0000), (ANSWER, 0, 0, 0x50000 | NOT_THERE)
NUMBER, MACHINE, FIRST_ARGUMENT = (LOAD, 0, 0, 0), (LOAD, 0, 0, 4), (LOAD, 0, 0, 16)
Seal = Literal["all", "sockets", "none"]


class ProofUnavailableError(ProfilerError):
    """This system does not allow the proof; the text says why."""


@dataclass(frozen=True)
class Workload:
    """A program to watch.

    Attributes:
        name: its name in the report.
        code: Python source; it finds ``EPOCHMETER_HOME`` in a folder of its own.
        environment: variables to set, on top of an environment without settings of ours.
        settings: the text of its settings file, or None for no file.
        seal: the acts that end it at once: internet sockets and other programs, sockets alone, or nothing.
        sends: True if packets are expected.
        exit_code: the expected exit code.
        home: an existing folder for ``EPOCHMETER_HOME``, instead of one of its own.
    """

    name: str
    code: str
    environment: dict[str, str] = field(default_factory=dict)
    settings: str | None = None
    seal: Seal = "all"
    sends: bool = False
    exit_code: int = 0
    home: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A program's traffic, and its exit code."""

    name: str
    holds: bool
    bytes: int
    packets: int
    connections: int
    datagrams: int
    exit_code: int
    sealed: bool
    errors: str = ""

    @property
    def in_words(self) -> str:
        """The reason why the claim does not hold, or ""."""
        if self.holds:
            return ""
        if self.exit_code == -signal.SIGSYS:
            return "it opened an internet socket or started another process"
        if self.exit_code != 0:
            return f"it ended with {self.exit_code}: {self.errors[-300:]}"
        return "packets left" if self.packets else "no packet left, where some were expected"


def hinders() -> str | None:
    """Return why programs cannot be watched here, or None."""
    if sys.platform != "linux":
        return "packets are counted in a network namespace, which only Linux has"
    missing = [name for name in ("unshare", "ip") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found (packages util-linux and iproute2)"
    done = subprocess.run(_inside(["true"]), capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return f"this system allows no network namespace: {said[-1] if said else f'exit code {done.returncode}'}"
    return None


def watch(workloads: Iterable[Workload], timeout: float = 600) -> list[Outcome]:
    """Run the programs, one after the other, and yield the traffic of each.

    Raises:
        ProofUnavailableError: they cannot be watched here.
    """
    reason = hinders()
    if reason is not None:
        raise ProofUnavailableError(reason)
    done = subprocess.run(
        _inside([sys.executable, "-m", "profiler.sending.proof"]),
        input=json.dumps([asdict(workload) for workload in workloads]),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=_environment({}),
    )
    if done.returncode:
        raise ProofUnavailableError(f"the programs could not be watched: {done.stderr.strip()[-500:]}")
    return [Outcome(**entry) for entry in json.loads(done.stdout)]


def inside(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a place without any device but loopback."""
    return subprocess.run(_inside(command), capture_output=True, text=True, check=False, **options)


def _inside(command: Sequence[str]) -> list[str]:
    return ["unshare", "-rn", "sh", "-c", SETUP, "sh", *command]


def _environment(more: dict[str, str]) -> dict[str, str]:
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, without_choices().get("PYTHONPATH", ""))))
    return {**without_choices(), "PYTHONPATH": path, **more}


# ---- within the namespace ------------------------------------------------------------------------------------------


def _main() -> None:
    workloads = [Workload(**entry) for entry in json.load(sys.stdin)]
    can_seal = _can_seal()
    json.dump([asdict(_outcome(workload, can_seal)) for workload in workloads], sys.stdout)


def _can_seal() -> bool:
    """Return True if this system ends a program that opens an internet socket."""
    code = "import profiler.sending.proof, socket\nprofiler.sending.proof.seal('all')\nsocket.socket()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=_environment({}))
    return done.returncode == -signal.SIGSYS


def _outcome(workload: Workload, can_seal: bool) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="epochmeter-") as own:
        home = Path(workload.home or own)
        if workload.settings is not None:
            Folder(home).replace("settings.json", workload.settings.encode("utf-8", "surrogateescape"))
        sealed = can_seal and workload.seal != "none"
        sealing = f"import profiler.sending.proof\nprofiler.sending.proof.seal({workload.seal!r})\n" if sealed else ""
        before = counters()
        try:
            done = subprocess.run(
                [sys.executable, "-c", sealing + workload.code],
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
                env=_environment({"EPOCHMETER_HOME": str(home), **workload.environment}),
            )
            code, errors = done.returncode, done.stderr
        except subprocess.TimeoutExpired:
            code, errors = 124, f"it took longer than {TIMEOUT_S} s"
        moved = [after - earlier for earlier, after in zip(before, counters(), strict=True)]
    silent = not any(moved)
    holds = code == workload.exit_code and silent is not workload.sends
    return Outcome(
        workload.name,
        holds,
        bytes=moved[0],
        packets=moved[1],
        connections=moved[2],
        datagrams=moved[3],
        exit_code=code,
        sealed=sealed or workload.seal == "none",
        errors=errors,
    )


def counters() -> tuple[int, int, int, int]:
    """Return bytes and packets on loopback, connections tried (TCP) and datagrams sent (UDP), IPv4 and IPv6."""
    device = next(line for line in Path("/proc/net/dev").read_text("ascii").splitlines() if line.strip().startswith("lo:"))
    fields = [int(number) for number in device.partition(":")[2].split()]
    lines = Path("/proc/net/snmp").read_text("ascii").splitlines()
    table = {
        (names.split()[0], name): int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names.split()[1:], values.split()[1:], strict=True)
    }
    six = Path("/proc/net/snmp6")
    rows = dict(line.split() for line in six.read_text("ascii").splitlines()) if six.exists() else {}
    datagrams = table["Udp:", "OutDatagrams"] + int(rows.get("Udp6OutDatagrams", 0))
    return fields[8], fields[9], table["Tcp:", "ActiveOpens"], datagrams


def seal(what: Seal) -> None:
    """End this process and its children at once if they open an internet socket; with "all", also if they start a program.

    On an unknown machine, nothing happens.

    Raises:
        OSError: the system does not allow it.
    """
    if what == "none" or platform.machine() not in CALLS:
        return
    rules = _rules(what)
    program = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    held = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(held))
    library = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, FILTER, ctypes.c_char_p(described), 0, 0)):
        if library.prctl(*arguments):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def _rules(what: Seal) -> list[tuple[int, int, int, int]]:
    """Return the filter of seccomp(2). The result of each call stands right behind the test for it."""
    audit, socket, clone, clone3, programs = CALLS[platform.machine()]
    rules = [MACHINE, (EQUAL, 1, 0, audit), ALLOW, NUMBER]
    if what == "all":
        for number in programs:
            rules += [(EQUAL, 0, 1, number), KILL]
        rules += [(EQUAL, 0, 1, clone3), FAIL]  # its flags cannot be seen; without it, clone is used
        rules += [(EQUAL, 0, 4, clone), FIRST_ARGUMENT, (HAS, 1, 0, CLONE_THREAD), KILL, ALLOW]
    rules += [(EQUAL, 0, 5, socket), FIRST_ARGUMENT, (EQUAL, 0, 1, AF_INET), KILL, (EQUAL, 0, 1, AF_INET6), KILL]
    return [*rules, ALLOW]


if __name__ == "__main__":
    _main()
