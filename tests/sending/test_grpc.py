"""OTLP over gRPC to a server on loopback: what arrives, and what each status means."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from exporters.outbox import Outbox
from profiler import Profiler
from profiler.config.folder import Folder
from support.processes import epochmeter, python

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")


@dataclass
class Service:
    url: str = ""
    received: list[bytes] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    answer: Callable[[Any], bytes] = lambda context: b""


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()

    def export(request: bytes, context: Any) -> bytes:
        found.received.append(request)
        found.metadata = dict(context.invocation_metadata())
        return found.answer(context)

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.metrics.v1.MetricsService", {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    found.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(0).wait(5)


def run(url: str, **chosen: Any) -> Any:
    chosen = {"otlp_endpoint": url, "otlp_protocol": "grpc", **chosen}
    prof = Profiler("secret-run", exporter="otlp", settings=chosen).start()
    for _ in prof.epochs(2):
        list(prof.train(range(5)))
    began = time.monotonic()
    prof.stop()
    return prof.summary.to_dict() | {"end_s": time.monotonic() - began}


def box(home: Path) -> Outbox:
    return Outbox(Folder(home / "outbox"))


def refuse(code: Any, *metadata: tuple[str, bytes]) -> Callable[[Any], bytes]:
    def answer(context: Any) -> bytes:
        context.set_trailing_metadata(metadata)
        context.abort(code, "said the service")
        return b""

    return answer


def test_a_run_arrives_as_it_was_previewed(service: Service) -> None:
    told = run(service.url)
    (body,) = service.received
    assert ExportMetricsServiceRequest.FromString(body).resource_metrics
    assert b"secret-run" not in body
    previewed = epochmeter("telemetry", "preview", told["run"]["id"], "--json").json
    (logged,) = epochmeter("telemetry", "log", "--json").json
    assert previewed["sha256"] == logged["sha256"]
    assert (logged["answer"], logged["destination"]) == ("gRPC OK", service.url)
    assert service.metadata["user-agent"].startswith("epochmeter ")


def test_headers_of_our_own_variable_go_along(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHMETER_OTLP_HEADERS", "x-scope=vision")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-foreign=1")
    run(service.url)
    assert service.metadata["x-scope"] == "vision" and "x-foreign" not in service.metadata


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        *[(name, True) for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "DATA_LOSS", "INTERNAL")],
        *[(name, True) for name in ("UNAUTHENTICATED", "PERMISSION_DENIED")],
        *[(name, False) for name in ("INVALID_ARGUMENT", "UNIMPLEMENTED")],
        ("RESOURCE_EXHAUSTED", False),
    ],
)
def test_temporary_status_waits_final_is_set_aside(service: Service, home: Path, name: str, waits: bool) -> None:
    service.answer = refuse(grpc.StatusCode[name])
    notes = run(service.url)["notes"]
    assert (len(box(home).waiting()), len(box(home).aside())) == ((1, 0) if waits else (0, 1))
    assert f"gRPC {name}: said the service" in str(notes)


def test_retry_info_is_honoured(service: Service, home: Path) -> None:
    from google.protobuf.duration_pb2 import Duration
    from google.rpc.error_details_pb2 import RetryInfo

    told = RetryInfo(retry_delay=Duration(seconds=600)).SerializeToString()
    service.answer = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, ("google.rpc.retryinfo-bin", told))
    run(service.url)
    run(service.url)
    assert (len(service.received), len(box(home).waiting())) == (1, 2)


def test_partial_success_is_recorded(service: Service, home: Path) -> None:
    partial = ExportMetricsPartialSuccess(rejected_data_points=2, error_message="too old")
    service.answer = lambda context: ExportMetricsServiceResponse(partial_success=partial).SerializeToString()
    notes = run(service.url)["notes"]
    assert notes == {"taken in part: gRPC OK, but 2 data points were not taken: too old": 1}
    assert box(home).dropped() == {"partly": 1}


def test_garbage_for_an_answer_loses_nothing(service: Service, home: Path) -> None:
    service.answer = lambda context: b"\xff\xff\xff"
    run(service.url)
    assert len(box(home).waiting()) == 1


@pytest.mark.slow
def test_hanging_service_is_waited_for_one_second(service: Service, home: Path) -> None:
    service.answer = lambda context: time.sleep(3) or b""
    assert run(service.url, exit_timeout=1)["end_s"] < 1.5


@pytest.mark.slow
def test_process_with_dead_collector_ends_silently(home: Path) -> None:
    code = (
        "import time\nfrom profiler import Profiler\n"
        "where = {'otlp_endpoint': 'http://127.0.0.1:9', 'otlp_protocol': 'grpc'}\n"
        "prof = Profiler('x', exporter='otlp', settings=where).start()\n"
        "list(prof.train(range(3)))\nbegan = time.monotonic()\nprof.stop()\nprint(time.monotonic() - began)"
    )
    began = time.monotonic()
    answer = python("-c", code, EPOCHMETER_EXIT_TIMEOUT="")
    assert (answer.code, len(answer.err.splitlines())) == (0, 1), answer.err
    assert float(answer.out) < 1.5 and time.monotonic() - began < 8
    assert len(box(home).waiting()) == 1


FORK = """
import os, sys
from profiler import Profiler
from profiler.config.folder import Folder
where = {"otlp_endpoint": sys.argv[1], "otlp_protocol": "grpc", "export_interval": 0.05, "exit_timeout": 5}
with Profiler("parent", exporter="otlp", settings=where, interval=0.02) as prof:
    import time
    list(prof.train(range(3)))
    time.sleep(0.3)  # the channel is open now
    child = os.fork()
    if child == 0:
        with Profiler("child", exporter="otlp", settings=where) as prof:
            list(prof.train(range(3)))
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_makes_its_own_channel(service: Service, home: Path) -> None:
    answer = python("-c", FORK, service.url, GRPC_VERBOSITY="NONE")
    assert answer.code == 0, answer.err
    runs = {
        attribute.value.string_value
        for body in service.received
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for attribute in resource.resource.attributes
        if attribute.key == "service.instance.id"
    }
    assert len(runs) + len({entry.run for entry in box(home).waiting()} - runs) == 2
    assert os.name == "posix"
