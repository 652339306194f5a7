"""OTLP over HTTP to a server on loopback: what arrives, and what the stock exporter would do that ours does not."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

import exporters
from exporters import Config, ExporterError
from profiler import Profiler, settings
from profiler.config.resolve import resolve
from profiler.sending.destination import in_words
from profiler.storage.run_reader import find, load
from support.processes import python, wait_for
from support.sinks import Sink


def trained(endpoint: str | None, **options: Any) -> Any:
    chosen = {"otlp_endpoint": endpoint} if endpoint else {}
    with Profiler("secret-run", exporter="otlp", settings=chosen, **options) as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(5)))
    return prof.summary.to_dict()


def metrics(sink: Sink) -> dict[str, Any]:
    request = ExportMetricsServiceRequest.FromString(sink.received[-1].content)
    return {m.name: m for rm in request.resource_metrics for sm in rm.scope_metrics for m in sm.metrics}


def test_a_run_arrives(sink: Sink) -> None:
    trained(sink.url)
    (received,) = sink.received
    assert received.path == "/v1/metrics"
    assert received.headers["content-encoding"] == "gzip"
    assert metrics(sink)["epochmeter.stage.steps"].sum.data_points[0].as_int == 10
    assert b"secret-run" not in received.content


def test_the_first_time_is_announced_and_no_other(sink: Sink, capfd: pytest.CaptureFixture[str]) -> None:
    trained(sink.url)
    said = capfd.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert sink.url in said.err and "epochmeter settings sync=false" in said.err
    trained(sink.url)
    assert capfd.readouterr() == ("", "")


def test_what_is_not_sent_is_not_announced(
    sink: Sink, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    trained(sink.url)
    assert capfd.readouterr() == ("", "")


def test_environment_collector_is_announced_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_words(resolve({"exporter": "otlp"})) == "http://localhost:4318/v1/metrics"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector/secret")
    assert in_words(resolve({"exporter": "otlp"})) == "the collector that OTEL_EXPORTER_OTLP_ENDPOINT names"


def test_long_run_sends_in_between(sink: Sink) -> None:
    chosen = {"otlp_endpoint": sink.url, "export_interval": 0.1}
    with Profiler("x", exporter="otlp", settings=chosen, interval=0.05) as prof:
        for _ in prof.epochs(3):
            known = len(sink.received)
            list(prof.train(range(5)))
            wait_for(lambda known=known: len(sink.received) > known)
    assert len(sink.received) >= 3


@pytest.mark.parametrize(
    ("variable", "value"),
    [("EPOCHMETER_SYNC", "0"), ("DO_NOT_TRACK", "1"), ("OTEL_SDK_DISABLED", "true"), ("EPOCHMETER_EXPORTER", "none")],
)
def test_any_off_wins(sink: Sink, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    trained(sink.url)
    assert sink.received == []


def test_off_in_file_wins(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.update(sync=False)
    monkeypatch.setenv("EPOCHMETER_SYNC", "true")
    monkeypatch.setenv("EPOCHMETER_EXPORTER", "otlp")
    trained(sink.url)
    assert sink.received == []


def test_none_in_file_wins(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.update(exporter="none")
    monkeypatch.setenv("EPOCHMETER_EXPORTER", "otlp")
    trained(sink.url)
    assert sink.received == []


def test_switched_off_in_mid_run(sink: Sink) -> None:
    chosen = {"otlp_endpoint": sink.url}
    with Profiler("x", exporter="otlp", settings=chosen) as prof:
        list(prof.train(range(5)))
        settings.update(sync=False)
    assert sink.received == []


def test_headers_meant_for_another_destination_stay(sink: Sink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer token")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password token\n")
    monkeypatch.setenv("NETRC", str(netrc))
    trained(sink.url)
    assert "token" not in str(sink.received[0].headers) and "authorization" not in sink.received[0].headers


def test_the_standard_variables_give_endpoint_and_headers_together(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=vision")
    trained(None)
    assert sink.received[0].headers["x-team"] == "vision"


def test_redirect_is_no_delivery(sink: Sink, home: Path) -> None:
    sink.status, sink.location = 307, sink.url + "/elsewhere"
    notes = trained(sink.url)["notes"]
    assert len(sink.received) == 1
    assert notes == {"not delivered at once: HTTP 307: a redirect, which is not followed": 1}
    assert load(find(home / "runs")).notes == notes  # doctor shows it


def test_random_numbers_and_logs_are_untouched(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    random.seed(7)
    expected = random.random()
    random.seed(7)
    with caplog.at_level(logging.DEBUG, logger="opentelemetry"):
        trained(sink.url)
        sink.status = 400
        trained(sink.url)
    assert random.random() == expected
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


DEAD = """
import time
from profiler import Profiler
with Profiler("x", exporter="otlp", settings={"otlp_endpoint": "http://127.0.0.1:9"}) as prof:
    list(prof.train(range(5)))
    began = time.perf_counter()
print(time.perf_counter() - began)
"""


def test_dead_collector_costs_one_second_silently() -> None:
    python("-c", DEAD)  # the first time is announced
    answer = python("-c", DEAD)
    assert (answer.code, answer.err) == (0, "")
    assert float(answer.out) < 3.0  # 1 s is given; the rest is this machine's noise


def test_unstopped_run_is_sent_at_exit(sink: Sink) -> None:
    script = "import sys\nfrom profiler import Profiler\nchosen = {'otlp_endpoint': sys.argv[1]}\n"
    answer = python("-c", script + "list(Profiler('x', exporter='otlp', settings=chosen).train(range(5)))", sink.url)
    assert (answer.code, len(answer.err.splitlines())) == (0, 1)
    assert metrics(sink)["epochmeter.stage.steps"].sum.data_points[0].as_int == 5


def test_none_imports_nothing_of_the_exporters() -> None:
    script = "import sys\nfrom profiler import Profiler\nwith Profiler('x') as p: list(p.train(range(3)))\n"
    answer = python("-c", script + "print([m for m in sys.modules if m.split('.')[0] in ('exporters', 'requests', 'urllib3')])")
    assert answer.out.strip() == "[]"


def test_unusable_exporter_is_reported_and_run_continues() -> None:
    with pytest.raises(ExporterError, match="there are: none, otlp, ga, prometheus"):
        exporters.gate_for(Config("statsd"), lambda: True)
    settings.update(exporter="ga")
    with Profiler("x") as prof:
        list(prof.train(range(3)))
    (note,) = prof.summary.to_dict()["notes"]
    assert note.startswith("nothing will be sent: exporter=ga needs the stream's id: epochmeter settings ga_measurement_id=")
