"""Names of files, functions and variables of the run's own code: in its run log, and in nothing that leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import exporters
from exporters.rebuild import rebuild
from exporters.rules import Declared
from profiler import Profiler, settings
from profiler.config.paths import data_path, runs_path
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.exports import data
from support.processes import epochmeter, free_port, python
from support.sinks import Sink

CANARY = b"canarybird"
SCRIPT = """
import sys, time
from profiler import Profiler

class CanarybirdNet:
    def forward(self):
        canarybird_variable = time.sleep
        canarybird_variable(0.06)

def canarybird_function(canarybird_net):
    canarybird_net.forward()

with Profiler("run", interval=0.05) as prof:
    for epoch in prof.epochs(2):
        for canarybird_batch in prof.train(range(4)):
            with prof.phase("forward"):
                canarybird_function(CanarybirdNet())
"""


def run_canary(folder: Path, **environment: str) -> None:
    script = folder / "canarybird_file.py"
    script.write_text(SCRIPT)
    answer = python(str(script), **environment)
    assert answer.code == 0, answer.err


def in_log() -> bool:
    (path,) = run_paths(runs_path())
    return CANARY in path.read_bytes().lower()


def test_collector_and_kept_copies_get_none(tmp_path: Path, sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    run_canary(tmp_path)
    assert in_log() and sink.received
    assert not [received for received in sink.received if CANARY in received.content.lower()]
    kept = [path for path in data_path().rglob("*") if path.is_file() and path.parent != runs_path()]
    assert kept and not [path for path in kept if CANARY in path.read_bytes().lower()]
    assert CANARY.decode() not in epochmeter("telemetry", "preview").out.lower()
    assert CANARY.decode() not in epochmeter("telemetry", "schema").out.lower()


def test_google_gets_none(tmp_path: Path) -> None:
    run_canary(tmp_path)
    (path,) = run_paths(runs_path())
    run = load(path)
    assert run.whole().lines and run.whole().costs is not None
    for target in ("ga", "otlp"):
        for body in exporters.form_of(target).bodies(rebuild(data(run), target, Declared("")), True):
            assert CANARY not in body.lower()


def test_page_for_prometheus_has_none(tmp_path: Path) -> None:
    pytest.importorskip("exporters.prometheus")
    port = free_port()
    script = tmp_path / "canarybird_file.py"
    page = f"    import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/metrics').read().decode())\n"
    script.write_text(SCRIPT + page)
    answer = python(str(script), EPOCHMETER_EXPORTER="prometheus", EPOCHMETER_PROMETHEUS_PORT=str(port))
    assert "epochmeter_stage_steps" in answer.out and in_log()
    assert CANARY.decode() not in answer.out.lower()


def test_exporter_of_the_program_gets_none() -> None:
    from profiler.testing import RecordingExporter  # it needs OpenTelemetry

    def canarybird_function() -> None:
        import time

        time.sleep(0.06)

    keeps = RecordingExporter()
    with Profiler("run", interval=0.05, exporter=keeps) as prof:
        for _ in prof.train(range(8)):
            canarybird_function()
    assert keeps.exports and in_log()
    assert not [made for made in keeps.exports if CANARY.decode() in made.to_json().lower()]


def test_log_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    run_canary(tmp_path)
    (path,) = run_paths(runs_path())
    assert os.name == "nt" or path.stat().st_mode & 0o077 == 0


def test_report_shows_them_on_this_machine(tmp_path: Path) -> None:
    run_canary(tmp_path)
    finding = epochmeter("report", "--format", "json").json["verdict"]["findings"][0]
    assert finding["cause"] in ("compute", "host")
    assert "canarybird_file.py" in run_paths(runs_path())[0].read_text("utf-8")


def test_the_words_of_a_command_stay(tmp_path: Path, sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    script = tmp_path / "canarybird_file.py"
    script.write_text("import time; time.sleep(0.1)")
    answer = epochmeter("run", "-q", str(script), "canarybird", "--mode=canarybird")
    assert answer.code == 0, answer.err
    (path,) = run_paths(runs_path())
    assert b"canarybird --mode=canarybird" in path.read_bytes()
    assert str(tmp_path).encode() not in path.read_bytes()
    assert "canarybird_file.py canarybird" in epochmeter("runs").out
    assert sink.received
    assert not [received for received in sink.received if CANARY in received.content.lower()]
    kept = [path for path in data_path().rglob("*") if path.is_file() and path.parent != runs_path()]
    assert kept and not [path for path in kept if CANARY in path.read_bytes().lower()]
    for shown in (("telemetry", "preview"), ("telemetry", "schema"), ("telemetry", "log")):
        assert CANARY.decode() not in epochmeter(*shown).out.lower()
