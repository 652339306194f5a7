"""``epochmeter telemetry verify``: prove that off is off, and that the preview shows the bytes that are sent."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from profiler.cli.options import AsJson
from profiler.cli.output import say, say_json

FAILED, FORBIDDEN = 1, 4
RUN = """
from profiler import Profiler
with Profiler("verify") as prof:
    for _ in prof.epochs(3):
        for _ in prof.train(range(20)):
            with prof.phase("forward"):
                pass
"""
PACKAGE = """
from profiler import Telemetry
telemetry = Telemetry("verify", "1", features=("a",), crash_dsn="http://key@192.0.2.1/1")
telemetry.feature("a")
telemetry.capture_exception(ValueError())
telemetry.close()
"""
COMPARE = """
import gzip, hashlib, http.server, json, subprocess, sys, threading
received = []
class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        received.append(gzip.decompress(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
from profiler import Profiler
where = {"otlp_endpoint": f"http://127.0.0.1:{server.server_port}"}
with Profiler("verify", exporter="otlp", settings=where) as prof:
    for _ in prof.epochs(3):
        list(prof.train(range(20)))
def output_of(command):
    return json.loads(subprocess.run([sys.executable, "-m", "profiler.cli", "telemetry", command, "--json"],
                                     capture_output=True, check=True).stdout)
arrived = hashlib.sha256(received[-1]).hexdigest()
previewed, logged = output_of("preview")["sha256"], output_of("log")[-1]["sha256"]
sys.exit(0 if arrived == previewed == logged else f"arrived {arrived}, preview {previewed}, log {logged}")
"""
LOOK_UP = """
import socket
try:
    socket.getaddrinfo("collector.example", 4318)
except OSError:
    pass
"""
BY_NAME = '{"version": 2, "exporter": "otlp", "otlp_endpoint": "http://collector.example:4318"}'
BY_ADDRESS = '{"version": 2, "exporter": "otlp", "otlp_endpoint": "http://192.0.2.1:4318"}'  # a documentation address
OFF = '{"version": 2, "sync": false, "exporter": "otlp", "otlp_endpoint": "http://192.0.2.1:4318"}'


def verify(as_json: AsJson = False) -> None:
    """Prove on this machine that off is off, and that the preview shows the bytes that are sent.

    Exit code 1: a claim failed. Exit code 4: the system forbids the proof.

    Example: epochmeter telemetry verify
    """
    from profiler.sending.proof import ProofUnavailableError, watch

    try:
        outcomes = watch(_workloads())
    except ProofUnavailableError as error:
        if as_json:
            say_json({"holds": None, "why": str(error)})
        say(f"epochmeter: the proof cannot be made here: {error}", err=True)
        raise typer.Exit(FORBIDDEN) from None
    holds = all(outcome.holds for outcome in outcomes)
    if as_json:
        say_json({"holds": holds, "claims": [_as_data(outcome) for outcome in outcomes]})
    else:
        _print(outcomes, holds)
    if not holds:
        raise typer.Exit(FAILED)


def _workloads() -> list[Any]:
    from profiler.config.resolve import resolve
    from profiler.sending.proof import Workload

    off = {"DO_NOT_TRACK": "1"}, {"EPOCHMETER_SYNC": "0"}, {"OTEL_SDK_DISABLED": "true"}, {"EPOCHMETER_EXPORTER": "none"}
    claims = [
        Workload("import profiler", "import profiler", settings=BY_NAME),
        Workload("a run with the defaults", RUN),
        Workload("a package that counts and fails, with the defaults", PACKAGE),
        Workload("a run with sync=false in the file", RUN, settings=OFF),
        *(Workload(f"a run with {'='.join(*signal.items())}", RUN, signal, BY_NAME) for signal in off),
        *(Workload(f"a run with {what}", RUN, settings=text) for what, text in (
            ("an empty settings file", ""),
            ("a settings file cut in half", BY_NAME[:40]),
            ("a settings file of a newer version", BY_NAME.replace("2", "3", 1)),
            ("sync that is no boolean", BY_NAME.replace("{", '{"sync": "true", ', 1)),
        )),
    ]  # fmt: skip
    if not resolve().may_send:
        claims.append(_as_it_is())
    return [
        *claims,
        Workload("control: a look-up alone is counted", LOOK_UP, seal="none", sends=True),
        Workload("control: a run with sync on, to a name", RUN, {}, BY_NAME, "none", sends=True),
        Workload("control: a run with sync on, to an address", RUN, {}, BY_ADDRESS, "none", sends=True),
        Workload("the bytes that arrive are those of the preview and the log", COMPARE, seal="none", sends=True),
    ]


def _as_it_is() -> Any:
    """Run a program with this machine's own settings and environment."""
    from profiler.config.environment import choices
    from profiler.config.folder import Folder
    from profiler.config.paths import settings_path
    from profiler.sending.proof import Workload

    try:
        path = settings_path()
        text: str | None = Folder(path.parent).read(path.name).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        text = None
    except (OSError, RuntimeError):
        text = "{"  # as unusable as this machine's own
    return Workload("a run with your own settings", RUN, choices(), text)


def _as_data(outcome: Any) -> dict[str, Any]:
    found = asdict(outcome)
    del found["errors"]
    return {**found, **({"why": outcome.in_words} if not outcome.holds else {})}


def _print(outcomes: list[Any], holds: bool) -> None:
    table = Table("", "claim", "bytes", "packets", "TCP", "UDP", box=box.SIMPLE_HEAD, show_edge=False)
    for outcome in outcomes:
        mark = "[green]holds[/]" if outcome.holds else "[red]FAILS[/]"
        counts = (outcome.bytes, outcome.packets, outcome.connections, outcome.datagrams)
        table.add_row(mark, outcome.name, *map(str, counts))
    console = Console()
    console.print(table)
    for outcome in outcomes:
        if not outcome.holds:
            console.print(f"{outcome.name}: {outcome.in_words}", markup=False, highlight=False, soft_wrap=True)
    sealed = all(outcome.sealed for outcome in outcomes)
    watched = "no internet socket, no other process" if sealed else "sockets and processes are not watched on this system"
    console.print(f"\nAll routes led to a counted device. Where nothing may leave: {watched}.", highlight=False, soft_wrap=True)
    console.print(
        "Off is off here, and the preview shows the bytes that are sent."
        if holds
        else "A claim does not hold: please report it."
    )
