"""``epochmeter telemetry``: the list in print, the log of what was sent, the views, and the pages made from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from exporters import sentlog
from exporters.allowlist import METRICS, RESOURCE
from exporters.schema import page, schema
from exporters.views import views
from profiler import Profiler, settings
from profiler.config.folder import Folder
from support.processes import epochmeter
from support.sinks import Sink

DOCS = Path(__file__).parents[2] / "docs"
WRONG = {"EPOCHMETER_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}


def test_the_schema_has_everything_that_can_leave() -> None:
    printed = epochmeter("telemetry", "schema", "--json").json
    assert printed["own_words"].pop("in_force") == {}
    assert printed == json.loads(json.dumps(schema()))
    assert [entry["name"] for entry in printed["metrics"]] == [entry.name for entry in METRICS]
    assert [entry["name"] for entry in printed["resource"]] == [entry.name for entry in RESOURCE]
    for entry in printed["metrics"]:
        assert entry["purpose"] and entry["since"] and set(entry["destinations"]) <= {"otlp", "prometheus", "ga"}
        assert all(rule.get("values") or rule["form"] for rule in entry["attributes"].values())
    text = epochmeter("telemetry", "schema", COLUMNS="40").out
    for entry in (*METRICS, *RESOURCE):
        assert entry.name in text and entry.purpose in text


def test_the_reference_page_is_made_from_the_list() -> None:
    assert (DOCS / "telemetry.md").read_text("utf-8") == page(), "run `make docs`"


def test_the_page_has_every_value_of_every_attribute() -> None:
    for entry in METRICS:
        for name in entry.attributes:
            rows = [line for line in page().splitlines() if line.startswith(f"| `{name}` |") and f"`{entry.name}`" in line]
            assert len(rows) == 1, (entry.name, name)


def test_privacy_page_shows_reference_payload() -> None:
    printed = (DOCS / "privacy.md").read_text("utf-8").partition("<!-- payload -->\n```text\n")[2].removesuffix("```\n")
    assert printed == epochmeter("telemetry", "preview", EPOCHMETER_HOME=str(DOCS / "reference")).out, "run `make docs`"
    assert "my own phase" not in printed and '"custom"' in printed


def test_preview_says_whether_it_would_be_sent() -> None:
    with Profiler("x") as prof:
        list(prof.train(range(3)))
    off = epochmeter("telemetry", "preview", "--json").json
    assert (off["may_leave"], off["why_not"]) == (False, "exporter is none (default)")
    said = epochmeter("telemetry", "preview", DO_NOT_TRACK="1").out
    assert "nothing leaves this machine: sync is off (DO_NOT_TRACK)" in said
    on = epochmeter("telemetry", "preview", "--json", EPOCHMETER_EXPORTER="otlp").json
    assert (on["may_leave"], on["destination"]) == (True, "http://localhost:4318/v1/metrics")
    assert on["sha256"] == off["sha256"]
    for chosen, lacking in (({"EPOCHMETER_EXPORTER": "ga"}, "ga_measurement_id=G-"), (WRONG, "http/protobuf, grpc")):
        said = epochmeter("telemetry", "preview", **chosen).out.splitlines()[1]
        assert said.startswith("nothing leaves this machine: ") and lacking in said
        assert any(lacking in check["detail"] for check in epochmeter("doctor", "--json", **chosen).json["checks"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("preview",), "no run has been recorded"),
        (("log", "123"), "nothing with the id '123' was sent"),
        (("shcema",), "Did you mean 'schema'"),
    ],
)
def test_bad_input_exits_2(arguments: tuple[str, ...], says: str) -> None:
    answer = epochmeter("telemetry", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err


# ---- the log of what was sent --------------------------------------------------------------------------------------


def test_nothing_sent_is_an_empty_log() -> None:
    answer = epochmeter("telemetry", "log")
    assert (answer.code, answer.out, answer.err) == (0, "", "nothing was sent from this machine\n")
    assert epochmeter("telemetry", "log", "--json").json == []


def test_the_log_shows_what_was_answered(sink: Sink, home: Path) -> None:
    for status in (200, 400):
        sink.status = status
        with Profiler("secret-run", exporter="otlp", settings={"otlp_endpoint": sink.url, "local": False}) as prof:
            list(prof.train(range(3)))
    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": "http://127.0.0.1:9"}) as prof:
        list(prof.train(range(3)))
    logged = epochmeter("telemetry", "log", "--json").json
    assert [entry["answer"] for entry in logged] == ["HTTP 200", "HTTP 400", "no answer: ConnectionError (Connection refused)"]
    assert [entry["time"] for entry in logged] == sorted(entry["time"] for entry in logged)
    listed = epochmeter("telemetry", "log").out
    assert all(listed.count(str(entry[key])) == 1 for entry in logged for key in ("id", "time", "sha256"))
    assert listed.count("answer is not known") == 0 and listed.count("    HTTP 200\n") == 1
    shown = epochmeter("telemetry", "log", logged[0]["id"]).out
    assert 'service.name = "epochmeter"' in shown and "secret-run" not in shown
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in (home / "sent").iterdir()} == {0o600}


def test_no_token_stands_anywhere(home: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{sink.url}/TOKEN-123/otlp")
    with Profiler("x", exporter="otlp") as prof:
        list(prof.train(range(3)))
    (entry,) = epochmeter("telemetry", "log", "--json").json
    assert entry["destination"] == f"{sink.url}/.../otlp/v1/metrics"
    assert sink.received[0].path == "/TOKEN-123/otlp/v1/metrics"
    assert "TOKEN" not in capfd.readouterr().err
    for command in (
        ["doctor"],
        ["settings", "--explain"],
        ["settings", "--json"],
        ["telemetry", "log"],
        ["telemetry", "preview"],
    ):
        answer = epochmeter(*command, EPOCHMETER_EXPORTER="otlp", EPOCHMETER_OTLP_ENDPOINT=f"{sink.url}/TOKEN-123")
        assert answer.code == 0 and "TOKEN" not in answer.out + answer.err, command
    assert not [path for path in home.rglob("*") if path.is_file() and b"TOKEN" in path.read_bytes()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPOCHMETER_OTLP_ENDPOINT", f"{sink.url}/TOKEN-123")
        assert "TOKEN" not in repr(settings) + str(settings) and settings["otlp_endpoint"].endswith("TOKEN-123")


def test_payload_is_logged_before_it_leaves(sink: Sink, home: Path) -> None:
    """A process that is killed right after its first byte has left an entry without an answer."""
    answered = sentlog.note(Folder(home / "sent"), "http://collector", b"body")
    (entry,) = sentlog.read(Folder(home / "sent"))
    assert (entry.destination, entry.body, entry.answer) == ("http://collector", b"body", None)
    answered("no answer: Timeout")
    answered("HTTP 200")
    assert [entry.answer for entry in sentlog.read(Folder(home / "sent"))] == ["HTTP 200"]


def test_a_spoilt_line_spoils_no_other(home: Path) -> None:
    folder = home / "sent"
    sentlog.note(Folder(folder), "a", b"1")
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes() + b'{"id": "cut\n[]\n{"id": "x", "time": "", "destination": "", "body": "?"}\n')
    sentlog.note(Folder(folder), "b", b"2")
    assert [entry.destination for entry in sentlog.read(Folder(folder))] == ["a", "b"]


def test_copies_are_removed_with_age(home: Path) -> None:
    folder = home / "sent"
    sentlog.note(Folder(folder), "a", b"1")
    (path,) = folder.iterdir()
    now = path.stat().st_mtime
    sentlog.prune(Folder(folder), 90, now + 89 * 86_400)
    assert sentlog.read(Folder(folder))
    sentlog.prune(Folder(folder), 90, now + 91 * 86_400)
    assert sentlog.read(Folder(folder)) == []


# ---- the views -----------------------------------------------------------------------------------------------------


def test_views_keep_listed_metrics() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], views=views(), exemplar_filter=AlwaysOffExemplarFilter())
    meter = provider.get_meter("a program")
    meter.create_histogram("epochmeter.step.duration", "s").record(1.0, {"epochmeter.stage": "train", "user": "secret"})
    meter.create_counter("the.programs.own").add(1, {"user": "secret"})
    seen = reader.get_metrics_data()
    assert seen is not None
    found = {m.name: m for rm in seen.resource_metrics for sm in rm.scope_metrics for m in sm.metrics}
    assert set(found) == {"epochmeter.step.duration"}
    (point,) = found["epochmeter.step.duration"].data.data_points
    assert (dict(point.attributes or {}), list(point.exemplars)) == ({"epochmeter.stage": "train"}, [])
    assert type(found["epochmeter.step.duration"].data).__name__ == "ExponentialHistogram"
    provider.shutdown()
