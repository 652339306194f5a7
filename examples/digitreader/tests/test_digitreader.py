"""The package as its users run it, and what its author wants to be sure of: that its telemetry is what it says."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from digitreader.cli import app
from digitreader.telemetry import telemetry

README = Path(__file__).parents[1] / "README.md"
MARK = "<!-- made by `digitreader telemetry schema --markdown` -->\n"
# for those that look at what is sent: as outside of tests, where nothing ever is
OUTSIDE = {"PYTEST_CURRENT_TEST": "", "PYTEST_VERSION": "", "CI": "", "GITHUB_ACTIONS": "", "EPOCHMETER_EXIT_TIMEOUT": "20"}


def digitreader(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    home = {"EPOCHMETER_HOME": str(folder / "home"), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "digitreader", *arguments],
        cwd=folder, env={**os.environ, **home, **environment}, capture_output=True, text=True, timeout=110,
    )  # fmt: skip


@pytest.fixture
def received() -> Iterator[list[tuple[str, bytes]]]:
    """Receive everything that is sent to a collector and to a Sentry on this machine."""
    found: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append((self.path, gzip.decompress(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    found.append((f"http://127.0.0.1:{server.server_port}", b""))
    yield found
    server.shutdown()
    server.server_close()


def test_its_settings_can_be_used() -> None:
    telemetry.check()


def test_what_is_declared_is_what_there_is() -> None:
    command = typer.main.get_command(app)
    declared = dict(telemetry.declared()["commands"])
    assert {*declared, "settings", "telemetry"} == set(command.commands)
    for name, options in declared.items():
        found = {p.name for p in command.commands[name].params if p.param_type_name == "option"}
        assert set(options) == found - {"help"}


def test_readme_section_is_generated_from_list(tmp_path: Path) -> None:
    section = README.read_text("utf-8").partition(MARK)[2]
    assert section == digitreader(tmp_path, "telemetry", "schema", "--markdown").stdout, "run `make docs`"


@pytest.mark.slow
def test_it_trains_predicts_and_sends_nothing(tmp_path: Path) -> None:
    trained = digitreader(tmp_path, "train", "--epochs", "4")
    assert trained.returncode == 0, trained.stderr
    assert float(trained.stdout.split()[1].rstrip("%,")) > 90
    assert digitreader(tmp_path, "predict", "7").stdout == "image 7 looks like a 7, and shows a 7\n"
    assert digitreader(tmp_path, "telemetry", "log").stdout == ""
    assert not (tmp_path / "home" / "outbox").exists()


@pytest.mark.slow
def test_author_gets_counts_after_the_notice(tmp_path: Path, received: list[tuple[str, bytes]]) -> None:
    url, _ = received.pop()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "settings.json").write_text(json.dumps({"version": 2, "otlp_endpoint": url, "exporter": "otlp"}))
    told = digitreader(tmp_path, "train", "--epochs", "2", "--augment", **OUTSIDE)
    assert told.returncode == 0 and url in told.stderr
    bodies = b"".join(body for _, body in received)
    for expected in (b"epochmeter.usage.feature", b"augmentation", b"epochs", b"epochmeter.epoch.count", b"digitreader"):
        assert expected in bodies, expected
    assert str(tmp_path).encode() not in bodies and b"digits.pt" not in bodies  # values of options do not leave


@pytest.mark.slow
def test_crash_is_reported_only_if_switched_on(tmp_path: Path, received: list[tuple[str, bytes]]) -> None:
    url, _ = received.pop()
    crashed = digitreader(tmp_path, "predict", "7", "--model", "/home/alice/model.pt", **OUTSIDE)
    assert crashed.returncode == 1 and "NotTrainedError" in crashed.stderr
    assert received == []
    digitreader(tmp_path, "settings", "crash_reports=true", "exporter=otlp", f"otlp_endpoint={url}")
    hidden = {"PYTHONPATH": str(without_sentry(tmp_path))}  # so that it goes to this collector, and not to localhost:9000
    digitreader(tmp_path, "predict", "7", "--model", "/home/alice/model.pt", **OUTSIDE, **hidden)
    (body,) = [body for path, body in received if path == "/v1/logs"]
    assert b"ValueError" in body and b"digitreader.model:predict:+" in body
    assert b"alice" not in body


def without_sentry(folder: Path) -> Path:
    """Make a folder for PYTHONPATH that hides Sentry's library."""
    (folder / "hidden").mkdir()
    (folder / "hidden" / "sitecustomize.py").write_text(
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'sentry_sdk' else find(name, *more)\n"
    )
    return folder / "hidden"


def test_one_switch_stops_everything(tmp_path: Path) -> None:
    assert digitreader(tmp_path, "settings", "sync=false").returncode == 0
    assert '"sync": false' in digitreader(tmp_path, "settings", "--json").stdout
