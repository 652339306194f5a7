"""Run this Python, or our command, in a process of its own; wait for a condition."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from profiler import Profiler

PATIENT_S = 20.0  # a run's end waits so long for its delivery, on machines that have other things to do
PATIENT = {"EPOCHMETER_EXIT_TIMEOUT": str(PATIENT_S)}  # the same, for other processes
KILLED = """
import os, signal
from profiler import Profiler
with Profiler("killed") as prof:
    for epoch in prof.epochs(3):
        list(prof.train(range(10)))
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""  # a run that ends so in its second epoch


@dataclass
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def python(*arguments: str, timeout: float = 60, **environment: str) -> Answer:
    """Run this Python on arguments, in a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **PATIENT, **environment},
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def at_terminal(*arguments: str, timeout: float = 60, **environment: str) -> Answer:
    """Run this Python with a terminal as its stderr, so that its user sees what it says there."""
    master, slave = os.openpty()
    said = bytearray()

    def listen() -> None:
        with suppress(OSError):  # the terminal is gone when the last program has closed it
            while part := os.read(master, 65_536):
                said.extend(part)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
            timeout=timeout,
            env={**os.environ, **PATIENT, **environment},
        )
    finally:
        os.close(slave)
        listener.join(5)
        os.close(master)
    return Answer(done.returncode, done.stdout, said.decode("utf-8", "replace").replace("\r\n", "\n"))


def epochmeter(*arguments: str, **environment: str) -> Answer:
    return python("-m", "profiler.cli", *arguments, **{"COLUMNS": "120", "EPOCHMETER_EXIT_TIMEOUT": "", **environment})


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Until it holds; fails when it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def wait_for_ticks(prof: Profiler, ticks: int = 1, *, drivers: bool = False) -> None:
    """Wait until the sampling thread (or the drivers' one) has taken that many rounds of readings."""
    probes = prof.session.sampler.threads[drivers]
    wait_for(lambda: probes.ticks >= ticks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def can_connect(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
