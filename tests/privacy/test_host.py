"""Claim C7: a program with telemetry, logs, hooks and random numbers of its own finds them as it left them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from support.processes import python
from support.sinks import Sink, serving

pytest.importorskip("sentry_sdk")
pytest.importorskip("opentelemetry.instrumentation.requests")

HOST = """
import json, locale, logging, os, random, signal, sys, threading, warnings
import numpy, requests, sentry_sdk
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

url, exporter, ending = sys.argv[1:]
records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.name)
logging.basicConfig(level=logging.DEBUG, handlers=[Keep()])
reader, spans, breadcrumbs, events = InMemoryMetricReader(), InMemorySpanExporter(), [], []
def keep(event, hint):
    events.append("event")
    breadcrumbs.extend(crumb["data"]["url"] for crumb in event["breadcrumbs"]["values"] if "url" in crumb.get("data", {}))
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))
RequestsInstrumentor().instrument()
sentry_sdk.init(
    dsn=url.replace("http://", "http://key@") + "/1", traces_sample_rate=1.0,
    before_send=keep,
    before_send_transaction=lambda event, hint: events.append("transaction"),
)
def hook(*arguments):
    print("the host's hook", file=sys.stderr)
sys.excepthook = hook
os.environ["HOST_OWN"] = "1"
random.seed(1); numpy.random.seed(1)

def state():
    return {
        "random": hash(random.getstate()), "numpy": numpy.random.get_state()[1].tolist()[:8],
        "environment": dict(os.environ), "folder": os.getcwd(), "hook": sys.excepthook is hook,
        "threading hook": threading.excepthook is threading.__excepthook__,
        "providers": [trace.get_tracer_provider() is tracers, type(metrics.get_meter_provider()).__name__],
        "sentry": sentry_sdk.get_client().dsn, "handlers": [type(h).__name__ for h in logging.getLogger().handlers],
        "level": logging.getLogger().level, "warnings": len(warnings.filters), "locale": locale.setlocale(locale.LC_ALL),
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "path": list(sys.path), "switch interval": sys.getswitchinterval(),
        "threads": sorted(t.name for t in threading.enumerate() if t.name != "epochmeter"),
        "new non-daemon": [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()],
    }

before = state()
# ---- the program ----
from profiler import Profiler
settings = {"otlp_endpoint": url}
with Profiler("x", exporter=exporter, settings=settings, interval=0.02) as prof:
    for _ in prof.epochs(3):
        list(prof.train(range(10)))
# ---- and after it ----
after = state()
changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
said = {
    "changed": changed, "records": sorted(set(records)), "spans": [s.name for s in spans.get_finished_spans()],
    "events": list(events), "metrics": reader.get_metrics_data() is not None,
}
requests.get(url)  # a request of the host's own is traced, logged and noted: these observers work
sentry_sdk.capture_message("of the host's own")
said["own"] = {"records": "urllib3.connectionpool" in records, "spans": len(spans.get_finished_spans()), "crumbs": breadcrumbs}
print(json.dumps(said), flush=True)
if ending == "crash":
    raise RuntimeError("crash")
sys.exit(7)
"""


@pytest.mark.parametrize("exporter", ["none", "otlp"])
def test_a_host_finds_everything_as_it_left_it(sink: Sink, exporter: str) -> None:
    answer = python("-c", HOST, sink.url, exporter, "exit")
    assert answer.code == 7, answer.err
    said: dict[str, Any] = answer.json
    own = said.pop("own")
    assert said == {"changed": {}, "records": [], "spans": [], "events": [], "metrics": False}
    assert own["records"] and own["spans"]
    assert [url.rstrip("/") for url in own["crumbs"]] == [sink.url]  # the host's own request, and none of ours
    sent = [received for received in sink.received if received.path == "/v1/metrics"]
    assert len(sent) == (exporter == "otlp")
    for received in sent:
        assert not {"sentry-trace", "baggage", "traceparent", "tracestate"} & set(received.headers)
    assert sys.platform == "win32" or answer.err.count("\n") == (exporter == "otlp")  # the one line of the first time


def test_its_hook_and_exit_code_are_its_own(sink: Sink) -> None:
    answer = python("-c", HOST, sink.url, "otlp", "crash")
    assert answer.code == 1
    assert answer.err.splitlines()[-1] == "the host's hook"


TRACED = """
import http.client, sys
put = http.client.HTTPConnection.putrequest
def putrequest(self, *arguments, **more):
    put(self, *arguments, **more)
    self.putheader("sentry-trace", "secret")
    self.putheader("baggage", "secret")
http.client.HTTPConnection.putrequest = putrequest
import requests
request = requests.Session.request
def traced(self, *arguments, **more):
    more["headers"] = {**(more.get("headers") or {}), "traceparent": "secret"}
    return request(self, *arguments, **more)
requests.Session.request = traced
requests.post(sys.argv[1] + "/own", data=b"")
from profiler import Profiler
with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sys.argv[1]}) as prof:
    list(prof.train(range(3)))
"""


def test_no_header_of_a_tracer_reaches_the_destination(sink: Sink, home: Path) -> None:
    assert python("-c", TRACED, sink.url).code == 0
    own, ours = sink.received
    assert {"sentry-trace", "baggage", "traceparent"} <= set(own.headers)  # so the patches work
    assert not {"sentry-trace", "baggage", "traceparent"} & set(ours.headers)
    assert "secret" not in str(ours.headers)


TRANSACTION = """
import os, sys
import sentry_sdk
sentry_sdk.init(sys.argv[1].replace("://", "://key@") + "/7", traces_sample_rate=1.0)
from profiler import Profiler
with sentry_sdk.start_transaction(name="the host's"):
    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": os.environ["OURS"]}) as prof:
        list(prof.train(range(3)))
sentry_sdk.flush(10)
"""


def test_own_request_is_no_span_of_host(sink: Sink) -> None:
    own, end = serving()
    try:
        assert python("-c", TRANSACTION, own.url, OURS=sink.url).code == 0
    finally:
        end()
    assert [received.path for received in sink.received] == ["/v1/metrics"]
    told = b"".join(received.content for received in own.received)
    assert b"the host's" in told and sink.url.encode() not in told
