"""Claim C1: where anything says "off", no packet, no socket, no look-up and no process, seen from a network namespace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from profiler.cli.telemetry.verify import BY_ADDRESS, BY_NAME, LOOK_UP, OFF, RUN
from profiler.sending import proof
from profiler.sending.proof import Workload
from support.package_author import OUTSIDE

HINDERED = proof.hinders()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(HINDERED is not None, reason=f"C1 is not proved on this machine: {HINDERED}"),
]

IN_CODE = RUN.replace('"verify"', '"verify", exporter="otlp", settings={"otlp_endpoint": "http://collector.example:4318"}')
CRASH = RUN + "raise SystemError('crash')\n"
CRASH_INSIDE = RUN.replace("pass", "raise SystemError('crash')")
NEVER_STOPPED = """
from profiler import Profiler
list(Profiler("x").train(range(20)))
"""
TERMINATED = NEVER_STOPPED.replace("list(", "for _ in ").replace("(range(20)))", "(range(20)): pass") + (
    "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n"
)
EXIT = NEVER_STOPPED + "import sys\nsys.exit(3)\n"
FORK = """
import os
from profiler import Profiler
with Profiler("x") as prof:
    for step in prof.train(range(20)):
        if step == 3 and os.fork() == 0:
            list(prof.validate(range(3)))
            break
    else:
        os.wait()
"""
SPAWN = """
import subprocess, sys
from profiler import Profiler
with Profiler("x") as prof:
    for _ in prof.epochs(3):
        list(prof.train(range(3)))
    code = "from profiler import Profiler\\nwith Profiler('y') as p: list(p.train(range(3)))"
    subprocess.run([sys.executable, "-c", code], check=True)
"""
FLIPPED_HERE = """
from profiler import Profiler, settings
with Profiler("x") as prof:
    for epoch in prof.epochs(3):
        list(prof.train(range(20)))
        if epoch == 1:
            settings.update(sync=False)
"""
FLIPPED_ELSEWHERE = """
import subprocess, sys
from profiler import Profiler
with Profiler("x") as prof:
    for epoch in prof.epochs(3):
        list(prof.train(range(20)))
        if epoch == 1:
            subprocess.run([sys.executable, "-m", "profiler.cli", "settings", "sync=false"], check=True, capture_output=True)
"""
PACKAGE = """
from profiler import Telemetry
telemetry = Telemetry("digits", "1.2.3", features=("export",), exporter="otlp", crash_dsn="http://key@192.0.2.1/42",
                      settings={"otlp_endpoint": "http://192.0.2.1:4318", "sync": True, "crash_reports": True})
telemetry.feature("export")
try:
    with telemetry.guard():
        raise ValueError("crash")
except ValueError:
    pass
with telemetry.profiler("x") as prof:
    list(prof.train(range(20)))
telemetry.close()
"""
TOLD = PACKAGE.replace(
    "from profiler import Telemetry",
    """
import os, pathlib
from profiler.sending import notices
notices.can_be_seen = lambda: True
from profiler import Telemetry
notices.show_notice("digits", "http://192.0.2.1:4318/v1/metrics")
""",
)
COMMAND = """
import sys
from profiler import Profiler
with Profiler("x") as prof:
    list(prof.train(range(3)))
sys.argv = ["epochmeter", *{words}]
from profiler.cli import main
main()
"""
TO_GOOGLE = '{"version": 2, "exporter": "ga", "ga_measurement_id": "G-ABC123DEF4"}'
CRASH_REPORTS = '{"version": 2, "crash_reports": true}'
SIGNALS: list[dict[str, str]] = [
    {"DO_NOT_TRACK": "1"},
    {"DO_NOT_TRACK": "anything"},
    {"EPOCHMETER_SYNC": "0"},
    {"EPOCHMETER_SYNC": "off"},
    {"EPOCHMETER_SYNC": "perhaps"},
    {"OTEL_SDK_DISABLED": "true"},
    {"EPOCHMETER_EXPORTER": "none"},
    {"EPOCHMETER_RETENTION_DAYS": "never"},
    {"do_not_track": "1"},
    {"EPOCHMETER_SYNCH": "0"},
    {"EPOCHMETER_TELEMETRY": "off"},
    {"Epochmeter_Sync": "false"},
]
CORRUPT = {
    "empty": "",
    "a brace": "{",
    "a list": "[]",
    "null": "null",
    "NUL bytes": "\0\0\0",
    "a BOM": "\ufeff" + BY_NAME,
    "10 MB": BY_NAME + " " * 10_000_000,
    "sync as text": BY_NAME.replace("{", '{"sync": "False", ', 1),
    "sync as 0": BY_NAME.replace("{", '{"sync": 0, ', 1),
    "sync as null": BY_NAME.replace("{", '{"sync": null, ', 1),
    "duplicate keys": BY_NAME.replace("{", '{"sync": false, "sync": true, ', 1),
    "a newer version": BY_NAME.replace('"version": 2', '"version": 3'),
    "no version": '{"exporter": "otlp"}',
    "cut in half": BY_NAME[: len(BY_NAME) // 2],
    "Sync for sync": BY_NAME.replace("{", '{"Sync": false, ', 1),
    "exporters for exporter": BY_NAME.replace("{", '{"exporters": "none", ', 1),
    "an unknown no": BY_NAME.replace("{", '{"telemetry": false, ', 1),
    "a date that is none": BY_NAME.replace("{", '{"decided": 7, ', 1),
}
SILENT = [
    Workload("import", "import profiler", settings=BY_NAME),
    Workload("defaults", RUN),
    Workload("sync off", RUN, settings=OFF),
    Workload("exporter in code, sync off in the file", IN_CODE, settings=OFF),
    Workload("exporter none in the file, otlp in code", IN_CODE, settings='{"version": 2, "exporter": "none"}'),
    *(Workload("=".join(*signal.items()), RUN, signal, BY_NAME) for signal in SIGNALS),
    *(Workload(f"{'='.join(*signal.items())}, in code", IN_CODE, signal) for signal in SIGNALS[:6]),
    *(Workload(what, RUN, settings=text) for what, text in CORRUPT.items()),
    Workload("crash", CRASH, settings=OFF, exit_code=1),
    Workload("crash in the loop", CRASH_INSIDE, settings=OFF, exit_code=1),
    Workload("never stopped", NEVER_STOPPED, settings=OFF),
    Workload("SIGTERM", TERMINATED, settings=OFF, exit_code=-15),
    Workload("exit", EXIT, settings=OFF, exit_code=3),
    Workload("fork", FORK, settings=OFF, seal="sockets"),
    Workload("spawned worker", SPAWN, settings=OFF, seal="sockets"),
    # these began with consent, so what sends has been loaded, and that binds a socket: no packet, but no seal either
    Workload("sync flipped off in the run", FLIPPED_HERE, settings=BY_ADDRESS, seal="none"),
    Workload("sync flipped off elsewhere", FLIPPED_ELSEWHERE, settings=BY_ADDRESS, seal="none"),
    Workload("a package, the first time", PACKAGE, OUTSIDE),
    Workload("a package, in a test", TOLD, {**OUTSIDE, "PYTEST_CURRENT_TEST": "x"}, CRASH_REPORTS),
    Workload("a package, in CI", TOLD, {**OUTSIDE, "CI": "1"}, CRASH_REPORTS),
    *(
        Workload(f"a package, {'='.join(*signal.items())}", TOLD, {**OUTSIDE, **signal}, CRASH_REPORTS)
        for signal in SIGNALS[:7]
    ),
    *(
        Workload(f"a package, {what}", TOLD, OUTSIDE, '{"version": 2, "crash_reports": true, ' + text + "}")
        for what, text in (("sync off", '"sync": false'), ("exporter none", '"exporter": "none"'))
    ),
    *(Workload(f"a package, {what}", TOLD, OUTSIDE, CORRUPT[what]) for what in ("a brace", "sync as text", "a newer version")),
    *(
        Workload(f"the command line: {words}", COMMAND.format(words=words.split()), {"DO_NOT_TRACK": "1"}, text, exit_code=code)
        for words, text, code in (
            *(
                (words, BY_ADDRESS, 0)
                for words in ("doctor", "settings", "runs", "report", "telemetry schema", "telemetry log")
            ),
            *((words, BY_ADDRESS, 0) for words in ("telemetry preview", "telemetry preview usage", "telemetry flush")),
            *(("telemetry preview --check", text, 2) for text in (TO_GOOGLE, BY_ADDRESS)),
        )
    ),
]
CONTROLS = [
    Workload("control: a look-up", LOOK_UP, seal="none", sends=True),
    Workload("control: by name", RUN, settings=BY_NAME, seal="none", sends=True),
    Workload("control: by address", RUN, settings=BY_ADDRESS, seal="none", sends=True),
    Workload("control: a package, once it has told", TOLD, OUTSIDE, seal="none", sends=True),
    Workload("control: a package's crash", PACKAGE, OUTSIDE, CRASH_REPORTS, "none", sends=True),
    Workload("control: a package, to the user's collector", PACKAGE, OUTSIDE, BY_ADDRESS, "none", sends=True),
    Workload("control: in code", IN_CODE, seal="none", sends=True),
    *(
        Workload(f"control: {name}", code, settings=BY_ADDRESS, seal="none", sends=True, exit_code=exit_code)
        for name, code, exit_code in (
            *(("crash", CRASH, 1), ("crash in the loop", CRASH_INSIDE, 1), ("never stopped", NEVER_STOPPED, 0)),
            *(("exit", EXIT, 3), ("fork", FORK, 0), ("spawn", SPAWN, 0)),
            ("flip", FLIPPED_HERE.replace("sync=False", "retention_days=5"), 0),
        )
    ),
    Workload("control: DO_NOT_TRACK=0", RUN, {"DO_NOT_TRACK": "0"}, BY_ADDRESS, "none", sends=True),
]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, proof.Outcome]:
    return {outcome.name: outcome for outcome in proof.watch([*SILENT, *CONTROLS])}


@pytest.mark.parametrize("workload", SILENT, ids=lambda workload: workload.name)
def test_no_packet_no_socket_no_process(workload: Workload, outcomes: dict[str, proof.Outcome]) -> None:
    outcome = outcomes[workload.name]
    assert outcome.holds, f"{outcome.in_words}\n{outcome.errors}"
    assert (outcome.bytes, outcome.packets, outcome.connections, outcome.datagrams) == (0, 0, 0, 0)


@pytest.mark.parametrize("workload", CONTROLS, ids=lambda workload: workload.name)
def test_where_it_is_on_the_counters_move(workload: Workload, outcomes: dict[str, proof.Outcome]) -> None:
    outcome = outcomes[workload.name]
    assert outcome.holds, f"{outcome.in_words}\n{outcome.errors}"
    assert outcome.bytes > 0


def test_corrupt_file_is_warned_of_once(outcomes: dict[str, proof.Outcome]) -> None:
    for name in CORRUPT:
        assert outcomes[name].errors.count("epochmeter: the settings file") == 1, name


BREACHES = [
    Workload("a socket", "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)"),
    Workload("a socket from C", "import ctypes\nctypes.CDLL(None).socket(10, 1, 0)"),
    Workload("what importing urllib3 does", "import urllib3"),
    Workload("a program", "import subprocess\nsubprocess.run(['true'])"),
    Workload("a fork", "import os\nos.fork()"),
    Workload("a packet", "import socket\nsocket.socket(2, 2).sendto(b'x', ('192.0.2.1', 9))", seal="none"),
    Workload("an exit code", "raise SystemExit(1)"),
]


def test_the_watch_sees_every_breach() -> None:
    found = {outcome.name: outcome for outcome in proof.watch(BREACHES)}
    assert not [name for name, outcome in found.items() if outcome.holds]
    assert found["a packet"].in_words == "packets left"
    if found["a socket"].sealed:
        assert "opened an internet socket" in found["a socket from C"].in_words


def test_threads_are_not_taken_for_processes() -> None:
    threads = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    (outcome,) = proof.watch([Workload("threads", threads)])
    assert outcome.holds, outcome.errors


def test_link_and_folder_as_settings_file(tmp_path: Path) -> None:
    (tmp_path / "folder" / "settings.json").mkdir(parents=True)
    (tmp_path / "link").mkdir()
    (tmp_path / "true.json").write_text(BY_ADDRESS)
    (tmp_path / "link" / "settings.json").symlink_to(tmp_path / "true.json")
    found = proof.watch([Workload(name, IN_CODE, home=str(tmp_path / name)) for name in ("folder", "link")])
    assert [outcome.holds for outcome in found] == [True, True], [outcome.in_words for outcome in found]


def test_verify_is_this_proof() -> None:
    from support.processes import epochmeter

    answer = epochmeter("telemetry", "verify", "--json", DO_NOT_TRACK="1")
    assert answer.code == 0, answer.out
    claims = {claim["name"]: claim for claim in answer.json["claims"]}
    assert answer.json["holds"] is True
    assert claims["a run with sync=false in the file"]["bytes"] == 0
    assert claims["a run with your own settings"]["packets"] == 0
    assert claims["control: a look-up alone is counted"]["datagrams"] > 0
    assert claims["the bytes that arrive are those of the preview and the log"]["connections"] >= 1
    assert "Off is off here" in epochmeter("telemetry", "verify").out


def test_impossible_proof_is_reported(tmp_path: Path) -> None:
    from support.processes import epochmeter

    answer = epochmeter("telemetry", "verify", "--json", PATH=str(tmp_path))
    assert answer.code == 4
    assert "not found" in json.loads(answer.out)["why"]
    assert "cannot be made here" in answer.err
    refuses = tmp_path / "unshare"
    refuses.write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
    refuses.chmod(0o755)
    answer = epochmeter("telemetry", "verify", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert answer.code == 4
    assert "Operation not permitted" in answer.err
