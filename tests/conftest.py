"""Fixtures: a home of its own for every test, a clock to turn, the command line, and a server that receives OTLP."""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from profiler.config import schema as config_schema
from profiler.measure import hot_path
from profiler.records import faults
from profiler.testing import FakeClock

PATIENT_S = 20.0  # a run's end waits so long for its delivery, on machines that have other things to do
PATIENT = {"EPOCHMETER_EXIT_TIMEOUT": str(PATIENT_S)}  # the same, for other processes
OFF_SIGNALS = ("DO_NOT_TRACK", "OTEL_SDK_DISABLED")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """EPOCHMETER_HOME in an empty folder, and none of the caller's settings in the environment."""
    for name in list(os.environ):
        if name.startswith(("EPOCHMETER_", "OTEL_")) or name in OFF_SIGNALS:
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("EPOCHMETER_HOME", str(folder))
    monkeypatch.setitem(config_schema.KEYS, "exit_timeout", PATIENT_S)
    faults.forget_warnings()
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The timers' clock, standing still."""
    fake = FakeClock(1_000_000)
    monkeypatch.setattr(hot_path, "now", fake)
    return fake


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
    """Runs this Python on arguments, in a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **PATIENT, **environment},
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def epochmeter(*arguments: str, **environment: str) -> Answer:
    return python("-m", "profiler.cli", *arguments, **{"COLUMNS": "120", "EPOCHMETER_EXIT_TIMEOUT": "", **environment})


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Until it holds; fails when it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> bytes:
        return gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body


@dataclass
class Sink:
    """A loopback server that keeps what is posted to it and answers as told."""

    url: str
    status: int = 200
    location: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    received: list[Received] = field(default_factory=list)


FAKE_NVML = Path(__file__).parent / "fake_nvml" / "nvml.c"


def build_fake_nvml(into: Path, *defines: str) -> Path:
    """Compiles the stand-in for NVIDIA's library; the folder is one for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the stand-in for NVML is built with a C compiler, on Linux")
    into.mkdir(parents=True, exist_ok=True)
    library = into / "libnvidia-ml.so.1"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    # The file has the library's name, for LD_LIBRARY_PATH, and the object has not: once it is loaded into this process,
    # no other test is to take it for the real one.
    name = "-Wl,-soname,fake-nvml.so"
    subprocess.run([compiler, *flags, *defines, name, "-o", str(library), str(FAKE_NVML), "-lm", "-lpthread"], check=True)
    return library


@pytest.fixture(scope="session")
def fake_nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml")).parent


class Machine:
    """The compiled stand-in for NVML, in this process: what it plays is told in the words of `fake_nvml/nvml.c`."""

    def __init__(self, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._library = library
        self._monkeypatch = monkeypatch
        self.plays("")
        library.fake_nvml_forget()

    def plays(self, *entries: str) -> None:
        self._monkeypatch.setenv("FAKE_NVML", ";".join(entries))

    def calls(self, name: str) -> int:
        times: int = self._library.fake_nvml_calls(name.encode())
        return times


@pytest.fixture
def machine(fake_nvml_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    import pynvml

    from profiler.hardware.nvidia.library import NvmlCalls

    library = ctypes.CDLL(str(fake_nvml_folder / "libnvidia-ml.so.1"))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(NvmlCalls, "_initialised", None)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    pynvml._nvmlGetFunctionPointer_cache.clear()
    yield Machine(library, monkeypatch)
    pynvml._nvmlGetFunctionPointer_cache.clear()


def serving() -> tuple[Sink, Callable[[], None]]:
    """A sink, and what ends it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            found.received.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(found.status)
            if found.location:
                self.send_header("location", found.location)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(found.content)))
            self.end_headers()
            self.wfile.write(found.content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Sink(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5)

    return found, end


@pytest.fixture
def sink() -> Iterator[Sink]:
    found, end = serving()
    yield found
    end()
