"""The user's own words for whose run it is: to the user's own collector, and nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

import exporters
from exporters import payload
from exporters.rebuild import rebuild
from exporters.rules import ATTRIBUTE, OURS, SAID, Declared, may_be_said
from profiler import Profiler, SettingsError, settings
from profiler.config import word_grammar
from profiler.config.own_words import own_words
from profiler.config.resolve import EmbeddingApp, resolve
from profiler.sending.flush import flush
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.exports import a_run, data
from support.processes import epochmeter, free_port, python
from support.sinks import Sink, serving

WORDS = {
    "epochmeter.label.job": "nightly",
    "epochmeter.label.team": "vision",
    "k8s.job.name": "train-7",
    "service.name": "vision-train",
}
CHOSEN = {"service_name": "vision-train", "labels": "team:vision,job:nightly", "otlp_resource": "k8s.job.name,k8s.pod.name"}
RESOURCE = "k8s.job.name=train-7,secret.attr=hidden,k8s.node.name=secret-node,k8s.pod.name=not%20one%20word"


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.update(CHOSEN)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", RESOURCE)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "secret-service")


def train(**options: Any) -> None:
    with Profiler("secret-run", interval=0.05, **options) as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(5)))


def resource_of(body: bytes) -> dict[str, str]:
    (found,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    return {entry.key: entry.value.string_value for entry in found.resource.attributes}


def told(sink: Sink) -> list[dict[str, str]]:
    return [resource_of(received.content) for received in sink.received]


def said_in(resource: dict[str, str]) -> dict[str, str]:
    ours = resource.get("service.name") == "epochmeter"
    return {
        k: v for k, v in resource.items() if k.startswith(("epochmeter.label.", "k8s.")) or (k == "service.name" and not ours)
    }


def test_the_collector_gets_the_words_and_no_others(words: None, sink: Sink, capfd: pytest.CaptureFixture[str]) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    train()
    assert [said_in(resource) for resource in told(sink)] == [WORDS]
    assert not [received for received in sink.received if b"secret" in received.content]
    assert "of your words only epochmeter.label.job=nightly" in capfd.readouterr().err
    (path,) = run_paths(Path(os.environ["EPOCHMETER_HOME"]) / "runs")
    assert load(path).said == WORDS
    assert [note for note in load(path).notes if "k8s.pod.name" in note]
    assert said_in(resource_of(bytes.fromhex(epochmeter_body()))) == WORDS


def epochmeter_body() -> str:
    """Return the previewed bytes of the last run, in hexadecimal digits."""
    code = "import sys; sys.argv = ['epochmeter', 'telemetry', 'preview', '--bytes']; from profiler.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ})
    return done.stdout.hex()


def test_the_environment_counts_only_where_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=from-attributes,k8s.job.name=j")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-variable")
    assert own_words(resolve()) == {}
    assert own_words(resolve({"otlp_resource": "service.name"})) == {"service.name": "from-variable"}
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    assert own_words(resolve({"otlp_resource": "service.name"})) == {"service.name": "from-attributes"}
    assert own_words(resolve({"otlp_resource": "service.name", "service_name": "x"})) == {"service.name": "x"}


def test_google_and_packages_get_none(words: None, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run()
    run.said = WORDS
    declared = Declared("", said=tuple(WORDS.items()))
    for body in exporters.form_of("ga").bodies(rebuild(data(run), "ga", declared), True):
        assert not [value for value in WORDS.values() if value.encode() in body]
    for name in ("CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("profiler.config.resolve.not_for_hosts", lambda: "")
    app = EmbeddingApp("pack", {"exporter": "otlp", "otlp_endpoint": sink.url})
    assert resolve({}, app).host_chose and own_words(resolve({}, app)) == {}


def test_an_exporter_of_the_program_gets_none(words: None) -> None:
    from profiler.testing import RecordingExporter  # it needs OpenTelemetry

    keeps = RecordingExporter()
    train(exporter=keeps)
    attributes = [dict(part.resource.attributes) for kept in keeps.exports for part in kept.resource_metrics]
    assert attributes and all(found["service.name"] == "epochmeter" and not said_in(found) for found in attributes)


def test_killed_run_is_recovered_with_its_words(words: None, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    code = (
        "import os, signal\nfrom profiler import Profiler\nwith Profiler('killed') as prof:\n"
        "    for epoch in prof.epochs(3):\n        list(prof.train(range(10)))\n"
        "        if epoch == 1:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert python("-c", code).code != 0
    settings.update(labels="team:other")
    monkeypatch.setattr("exporters.outbox.OPEN_GRACE_S", 0.0)
    flush()
    assert [said_in(resource) for resource in told(sink)] == [WORDS]


def test_prometheus_gets_them(words: None) -> None:
    pytest.importorskip("exporters.prometheus")
    port = free_port()
    settings.update(exporter="prometheus", prometheus_port=port)
    with Profiler("x", interval=0.05) as prof:
        for _ in prof.epochs(1):
            list(prof.train(range(5)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    (info,) = (line for line in text.splitlines() if line.startswith("target_info{"))
    assert 'service_name="vision-train"' in info and 'epochmeter_label_team="vision"' in info and "secret" not in info


def test_the_gate_refuses_words_nobody_said() -> None:
    run = a_run()
    declared = Declared("", said=(("epochmeter.label.team", "vision"),))
    (body,) = payload.bodies(rebuild(data(run), "otlp", declared), True)
    assert payload.first_fault(body, "otlp", declared=declared) is None
    assert "epochmeter.label.team" in (payload.first_fault(body, "otlp") or "")
    other = Declared("", said=(("epochmeter.label.team", "other"),))
    assert "epochmeter.label.team" in (payload.first_fault(body, "otlp", declared=other) or "")
    assert payload.first_fault(body, "ga", declared=declared) is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("service_name", value) for value in ("", " ", "a b", "ü", "a/b", "x" * 65, "-a", "a\nb", "user@host")),
        *(("labels", value) for value in ("team", "team:", ":x", "Team:x", "a:b,a:c", "a:b c", "a:b,,", "a:" + "v" * 65)),
        *(("labels", value) for value in ("k" * 65 + ":v", ",".join(f"k{n}:v" for n in range(9)))),
        *(("otlp_resource", value) for value in ("Job", "k8s..x", "epochmeter.run", "service.instance.id", "A.b")),
        *(("otlp_resource", value) for value in ("host.arch", ",".join(f"a.b{n}" for n in range(9)))),
    ],
)
def test_words_outside_the_grammar_are_errors(key: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=key):
        settings.update({key: value})
    assert settings[key] is None
    if value.strip():
        monkeypatch.setenv(f"EPOCHMETER_{key.upper()}", value)
        assert not resolve().may_send and resolve().problems


def test_both_halves_have_the_same_grammar() -> None:
    assert word_grammar.VALUE.pattern == SAID and set(word_grammar.OURS) == set(OURS)
    for name in ("k8s.job.name", "plain", "service.name", "host.name", "a.b_c.d1"):
        assert word_grammar.names_in(name) == (name,) and may_be_said(name, "x")
    for name in ("service.version", "epochmeter.run.name", "Dots", "x.é"):
        assert not may_be_said(name, "x")
    assert may_be_said("epochmeter.label.team", "x") and not may_be_said("epochmeter.label.team", "x y")
    assert re.fullmatch(ATTRIBUTE, "epochmeter.label." + "k" * 64)


def test_schema_shows_them(words: None) -> None:
    shown = epochmeter("telemetry", "schema").out
    assert all(f"{name}: {value}" in shown for name, value in WORDS.items())
    assert epochmeter("telemetry", "schema", "--json").json["own_words"]["in_force"] == WORDS


def test_hostile_logs_and_entries_add_nothing_odd(home: Path) -> None:
    from exporters.rules import declared_from

    for said in ([["host.name", "a b"]], [["epochmeter.run.name", "x"]], [["a.b", "x"], ["a.b", "y"]]):
        with pytest.raises(ValueError, match="word"):
            declared_from({"app": "", "modules": [], "features": [], "commands": [], "said": said})
    sink, end = serving()
    try:
        settings.update(exporter="otlp", otlp_endpoint=sink.url)
        train()
        (path,) = run_paths(home / "runs")
        content = path.read_text().replace(
            '{"key":"epochmeter.run.name"',
            '{"key":"epochmeter.run.said","value":{"arrayValue":{"values":[{"stringValue":"user.name=my secret"}]}}},'
            '{"key":"epochmeter.run.name"',
        )
        path.write_text(content)
        answer = epochmeter("telemetry", "preview")
        assert answer.code == 0 and "secret" not in answer.out
    finally:
        end()
