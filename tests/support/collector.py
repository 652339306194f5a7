"""A real OpenTelemetry collector, on loopback."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import can_connect, free_port, wait_for


def start(ports: tuple[int, int], folder: Path, *exporter: str) -> subprocess.Popen[bytes]:
    """Start a collector that listens on the ports for HTTP and gRPC, with an exporter given by its options."""
    rotel = pytest.importorskip("rotel", reason="the collector's package has no build for this system")
    command = [
        *(str(Path(rotel.__file__).parent / "rotel-agent"), "start", "--exporter", *exporter),
        *("--otlp-http-endpoint", f"127.0.0.1:{ports[0]}", "--otlp-grpc-endpoint", f"127.0.0.1:{ports[1]}"),
        *("--batch-timeout", "100ms", "--pid-file", str(folder / "collector.pid")),
    ]
    with (folder / "collector.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: can_connect(ports[0]) and can_connect(ports[1]))
    except BaseException:
        process.kill()
        raise
    return process


@contextlib.contextmanager
def collector_with(folder: Path, *exporter: str) -> Iterator[tuple[int, int]]:
    """Run a collector with an exporter, given by its options, to the end of the block. Yield its ports for HTTP and gRPC."""
    ports = free_port(), free_port()
    process = start(ports, folder, *exporter)
    try:
        yield ports
    finally:
        process.terminate()
        process.wait(10)


def to_otlp(address: str) -> tuple[str, ...]:
    """Return the options of the exporter that hands all data on to another receiver."""
    return "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", address


def to_clickhouse(address: str) -> tuple[str, ...]:
    """Return the options of the exporter that writes into a database's tables."""
    place, _, database = address.removeprefix("clickhouse://").partition("/")
    return (
        *("clickhouse", "--clickhouse-exporter-endpoint", f"http://{place}"),
        *("--clickhouse-exporter-database", database, "--clickhouse-exporter-compression", "none"),
    )
