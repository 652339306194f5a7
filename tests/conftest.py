"""Fixtures: a home of its own for every test, a clock to turn, the command line, and a server that receives OTLP."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.config import schema as config_schema
from profiler.measure import hot_path
from profiler.records import faults
from profiler.testing import FakeClock
from support.nvml_library import Machine, build_fake_nvml
from support.processes import PATIENT_S
from support.sinks import Sink, serving

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
def clock() -> Iterator[FakeClock]:
    """Stop the timers' clock; a test moves it."""
    fake = FakeClock(1_000_000)
    hot_path.use_clock(fake)
    yield fake
    hot_path.use_clock(None)


@pytest.fixture(scope="session")
def fake_nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml")).parent


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


@pytest.fixture
def sink() -> Iterator[Sink]:
    found, end = serving()
    yield found
    end()


@pytest.fixture(scope="session")
def clickhouse_server() -> Iterator[str]:
    """Run ClickHouse's engine behind its HTTP interface, in a process of its own; return its address."""
    pytest.importorskip("chdb", reason="ClickHouse's engine has no build for this system")
    pytest.importorskip("clickhouse_connect")
    program = Path(__file__).parent / "support" / "clickhouse_server.py"
    process = subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield f"clickhouse://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(scope="module")
def clickhouse(clickhouse_server: str, request: pytest.FixtureRequest) -> str:
    """Return the address of a database that this file's tests have for themselves."""
    import clickhouse_connect

    name = request.module.__name__.rpartition(".")[2]
    clickhouse_connect.get_client(dsn=f"{clickhouse_server}/default").command(f"CREATE DATABASE IF NOT EXISTS {name}")
    return f"{clickhouse_server}/{name}"
