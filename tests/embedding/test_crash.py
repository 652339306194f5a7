"""Crash reports: what arrives of a crash, through Sentry's own library, and what is left of the program's own Sentry."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from exporters import Declared, crash_log, crash_payload
from exporters.allowlist import EXCEPTIONS, MAX_FRAMES
from exporters.rules import Frame, Version, coarse
from profiler import ArgumentTypeError, Telemetry
from profiler.embedding.crash import address_of, is_crash, public, scrubbed
from profiler.storage.usage_ledger import UsageLedger
from support.package_author import COUNT, HOST, OUTSIDE, WITHOUT_SENTRY, choose, envelopes, host
from support.processes import Answer, at_terminal, epochmeter, python
from support.sinks import Sink

pytest.importorskip("sentry_sdk")

SECRETS = {
    "host name": "canary-host",
    "user name": "canary-user",
    "home path": "canary-folder",
    "argument": "canary-argument",
    "message": "canary-token",
    "source line": "canary-source",
    "package list": "canary-package",
    "log line": "canary-line",
    "environment value": "canary-variable",
}  # and the git revision, which is known once there is one
PACKAGE = """
import logging, os

def load(path):
    environment = dict(os.environ)
    logging.getLogger("digits").warning("reading canary-line")
    raise ValueError(f"cannot read {path}: canary-token")  # canary-source

def fit(path):
    return load(path)
"""
MAIN = """
import os, socket, sys
socket.gethostname = lambda: "canary-host"
import digits
"""
PLAIN = (
    MAIN
    + """
import sentry_sdk
sentry_sdk.init(sys.argv[1].replace("://", "://key@") + "/42", send_default_pii=True, traces_sample_rate=0)
try:
    digits.fit(os.environ["HOME"])
except ValueError:
    sentry_sdk.capture_exception()
sentry_sdk.flush(10)
"""
)
OURS = (
    MAIN
    + HOST.replace("import sys\n", "")
    + """
telemetry.feature("export")
telemetry.command("fit", [name for name in vars(digits) if name == "data"])
with telemetry.guard():
    digits.fit(os.environ["HOME"])
"""
)


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    """Make a package in a git repository of a user, all with names to look for."""
    folder = tmp_path / "canary-folder" / "home" / "canary-user"
    (folder / "canary_package-1.0.dist-info").mkdir(parents=True)
    (folder / "canary_package-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: canary-package\nVersion: 1.0\n"
    )
    (folder / "digits.py").write_text(PACKAGE)
    git = ["git", "-c", "user.name=canary-user", "-c", "user.email=canary-user@canary-host"]
    revision = "0" * 40
    if shutil.which("git"):
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        subprocess.run(["git", "add", "digits.py"], cwd=folder, check=True)
        subprocess.run([*git, "commit", "-q", "-m", "canary-token"], cwd=folder, check=True)
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
        revision = found.stdout.strip()
    environment = {
        "HOME": str(folder),
        "USER": "canary-user",
        "LOGNAME": "canary-user",
        "USERNAME": "canary-user",
        "CANARY": "canary-variable",
        "PYTHONPATH": str(folder),
        "SENTRY_DSN": "",
        "SENTRY_ENVIRONMENT": "canary-variable",
    }
    return {"folder": folder, "revision": revision, "environment": environment}


def run(place: dict[str, Any], script: str, url: str, **more: str) -> Answer:
    (place["folder"] / "main.py").write_text(script)
    before = Path.cwd()
    os.chdir(place["folder"])
    try:
        return at_terminal("main.py", url, "--token=canary-argument", **{**OUTSIDE, **place["environment"], **more})
    finally:
        os.chdir(before)


def seen(place: dict[str, Any], sink: Sink) -> set[str]:
    """Return the secrets found in the headers and bodies that arrived."""
    everything = b"".join(
        str(received.headers).encode() + received.path.encode() + received.content for received in sink.received
    )
    looked_for = {**SECRETS, "git revision": place["revision"]}
    return {what for what, secret in looked_for.items() if secret.encode() in everything}


def test_usual_sentry_sends_all_ten_secrets(sink: Sink, place: dict[str, Any]) -> None:
    assert run(place, PLAIN, sink.url).code == 0
    assert len(seen(place, sink)) == 10 if shutil.which("git") else 9


def test_crash_report_omits_user_frames_and_secrets(sink: Sink, home: Path, place: dict[str, Any]) -> None:
    choose(home, crash_reports=True, exporter="otlp", otlp_endpoint=sink.url)
    answer = run(place, OURS, sink.url)
    assert answer.code == 1
    *traceback, _, _ = answer.err.rstrip().splitlines()  # and a line for each: the first time
    last = re.sub(r"\x1b\[[\d;]*m", "", traceback[-1])  # Python 3.13 may colour it
    assert last.startswith("ValueError: cannot read ")  # the program's own is as it was
    assert sorted(received.path for received in sink.received) == ["/api/42/envelope/", "/v1/metrics"]
    assert seen(place, sink) == set()  # in the counts neither
    (received,) = envelopes(sink)
    event = crash_payload.readable(received.content)["event"]
    (error,) = event["exception"]["values"]
    assert error == {
        "type": "ValueError",
        "stacktrace": {
            "frames": [
                {"function": "other", "in_app": False},
                {"function": "digits:fit:+1", "in_app": True},
                {"function": "digits:load:+3", "in_app": True},
            ]
        },
    }
    assert event["release"] == "digits@1.2.3"
    assert event["tags"]["epochmeter.app.install"] == "source"
    assert received.headers["x-sentry-auth"].endswith("sentry_key=key")


def test_crash_goes_to_collector_without_sentry(sink: Sink, home: Path, place: dict[str, Any]) -> None:
    choose(home, crash_reports=True, exporter="otlp", otlp_endpoint=sink.url)
    answer = run(place, WITHOUT_SENTRY + OURS, sink.url)
    assert answer.code == 1
    (received,) = [received for received in sink.received if received.path == "/v1/logs"]
    assert not envelopes(sink) and seen(place, sink) == set()
    (record,) = crash_log.readable(received.content)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    told = {attribute["key"]: attribute["value"]["stringValue"] for attribute in record["attributes"]}
    assert told == {"exception.type": "ValueError", "exception.stacktrace": "other\ndigits:fit:+1\ndigits:load:+3"}
    assert record["eventName"] == "epochmeter.crash"
    logged = epochmeter("telemetry", "log", "--json").json
    (entry,) = [entry for entry in logged if entry["destination"].endswith("/v1/logs")]
    assert entry["sha256"] == hashlib.sha256(received.content).hexdigest() and entry["content"]["resourceLogs"]


CRASHES = """
with telemetry.guard():
    raise KeyError("secret")
"""


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ({}, {}),
        ({"crash_reports": False}, {"EPOCHMETER_CRASH_REPORTS": "1"}),
        ({"crash_reports": True, "sync": False}, {}),
        ({"crash_reports": True, "exporter": "none"}, {}),
        ({"crash_reports": True}, {"DO_NOT_TRACK": "1"}),
        ({"crash_reports": True}, {"EPOCHMETER_CRASH_REPORTS": "0"}),
        ({"crash_reports": True}, {"CI": "1"}),
        ({"crash_reports": True}, {"PYTEST_CURRENT_TEST": "x"}),
    ],
    ids=str,
)
def test_crash_reports_need_the_switch(sink: Sink, home: Path, settings: dict[str, Any], environment: dict[str, str]) -> None:
    choose(home, **settings)
    assert host(sink, CRASHES, **environment).code == 1
    choose(home, crash_reports=True)
    assert host(sink, CRASHES.replace("KeyError", "IndexError")).code == 1
    assert [b"IndexError" in received.content for received in envelopes(sink)] == [True]  # and the first one never leaves


def test_crash_preview_and_log_equal_sent_bytes(sink: Sink, home: Path) -> None:
    choose(home, crash_reports=True)
    answer = host(sink, CRASHES)
    assert "digits: where in its code an error came from, and of which class it is (no names" in answer.err
    (arrived,) = envelopes(sink)
    (told,) = epochmeter("telemetry", "preview", "crashes", "--json").json
    digest = hashlib.sha256(arrived.content).hexdigest()
    assert told["sha256"] == digest  # made without Sentry's library, and the same
    assert (told["may_leave"], told["what"]) == (True, "crashes")
    (entry,) = epochmeter("telemetry", "log", "--json").json
    assert (entry["sha256"], entry["answer"]) == (digest, "HTTP 200")
    assert "KeyError" in epochmeter("telemetry", "log", entry["id"]).out
    assert '"type": "KeyError"' in epochmeter("telemetry", "preview").out


def test_crash_noted_while_off_is_previewed_so(sink: Sink, home: Path) -> None:
    host(sink, CRASHES)
    (told,) = epochmeter("telemetry", "preview", "crashes", "--json").json
    assert (told["may_leave"], told["why_not"]) == (False, "crash_reports is off")
    choose(home, crash_reports=True)
    (told,) = epochmeter("telemetry", "preview", "crashes", "--json").json
    assert told["may_leave"] is False and "while nothing was to be reported" in told["why_not"]


def test_a_sentry_that_is_down_gets_it_later(home: Path, sink: Sink) -> None:
    choose(home, crash_reports=True)
    sink.status = 503
    assert host(sink, CRASHES).code == 1
    sink.status = 200
    waits = epochmeter("telemetry", "flush")  # only the package knows where its reports go: an entry cannot vouch for itself
    assert waits.code == 3 and "which a package has chosen" in waits.err
    assert epochmeter("telemetry", "flush", "--adopt").code == 0
    first, second = envelopes(sink)
    assert first.content == second.content
    assert "IndexError" not in str(first)


def test_switched_off_meanwhile_it_stays(home: Path, sink: Sink) -> None:
    choose(home, crash_reports=True, exporter="otlp", otlp_endpoint=sink.url)
    sink.status = 503
    host(sink, COUNT + CRASHES)
    answer = epochmeter("telemetry", "flush", EPOCHMETER_CRASH_REPORTS="0")
    assert answer.code == 3 and "crash_reports is off" in answer.err
    assert len(list((home / "outbox" / "waiting").iterdir())) == 2  # counts wait there, too
    epochmeter("settings", "crash_reports=false")
    (left,) = (home / "outbox" / "waiting").iterdir()
    assert b'"usage"' in left.read_bytes().splitlines()[0]
    sink.status = 200
    assert epochmeter("telemetry", "flush").code == 0
    assert len(envelopes(sink)) == 1


def test_faulty_envelope_does_not_enter_outbox(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.embedding import crash

    for name in OUTSIDE:
        monkeypatch.setenv(name, "")
    choose(home, crash_reports=True)
    made = crash.envelope
    monkeypatch.setattr(crash, "envelope", lambda event, dsn: made({**event, "server_name": "canary"}, dsn))
    telemetry = Telemetry("digits", "1", crash_dsn="http://key@127.0.0.1:9/42")
    telemetry.capture_exception(ValueError())
    telemetry.close()
    assert not [folder for folder in ("waiting", "sending", "dropped") if (home / "outbox" / folder).exists()]
    ((note, times),) = UsageLedger(home / "usage" / "digits").kept()[0].notes.items()
    assert times == 1 and note.startswith("an export was dropped: its event has the fields") and "server_name" in note


def test_crash_at_exit_is_delivered_later(home: Path, sink: Sink) -> None:
    choose(home, crash_reports=True)
    late = """
import atexit
def late():
    with telemetry.guard():
        raise IndexError("secret")
"""
    script = late + "atexit.register(late)\n" + HOST  # registered before ours, it is called after it
    at_terminal("-c", script, sink.url, **OUTSIDE)
    assert envelopes(sink) == []
    assert epochmeter("telemetry", "flush", "--adopt").code == 0
    assert b"IndexError" in envelopes(sink)[0].content


def test_crash_destination_is_announced_for_package_collector(home: Path, sink: Sink) -> None:
    host(sink)
    choose(home, crash_reports=True)
    first, second = (at_terminal("-c", WITHOUT_SENTRY + HOST + CRASHES, sink.url, **OUTSIDE) for _ in range(2))
    assert f"goes to {sink.url}/v1/logs" in first.err and "crash_reports=false" in first.err
    assert "goes to" not in second.err
    assert [received.path for received in sink.received] == ["/v1/logs"] * 2


def test_notes_of_crashes_age_without_new_ones(home: Path) -> None:
    old = home / "crashes" / f"{1:020d}-000000000000.json"
    for work in ("telemetry.feature('a')", "with telemetry.profiler('x') as prof: list(prof.train(range(3)))"):
        old.parent.mkdir(parents=True, exist_ok=True)
        old.write_text("{}")
        os.utime(old, (1, 1))
        python("-c", f"from profiler import Telemetry\ntelemetry = Telemetry('digits', '1', features=('a',))\n{work}")
        assert not old.exists()


# ---- the program's own Sentry --------------------------------------------------------------------------------------

TWO = """
import json, os, sys
import sentry_sdk
from sentry_sdk import client, profiler as profiling
from sentry_sdk.profiler import continuous_profiler
mine, ours = sys.argv[1], os.environ["OURS"]  # its own Sentry reports arguments
sentry_sdk.init(mine.replace("://", "://mine@") + "/7", release="mine@1", traces_sample_rate=1.0,
                profile_session_sample_rate=1.0, profile_lifecycle="manual")
client.SDK_INFO["name"] = "sentry.python.mine"
profiling.start_profiler()
scheduler = continuous_profiler._scheduler
state = lambda: {
    "hook": repr(sys.excepthook), "client": id(sentry_sdk.get_client()), "sdk": client.SDK_INFO["name"],
    "scheduler": [id(continuous_profiler._scheduler), continuous_profiler._scheduler.running],
    "integrations": sorted(sentry_sdk.get_client().integrations), "event": sentry_sdk.last_event_id(),
}
crumbs = lambda: [c.get("data", {}).get("url") for c in sentry_sdk.get_isolation_scope()._breadcrumbs]
before = state()
from profiler import ArgumentTypeError, Telemetry
telemetry = Telemetry("digits", "1.2.3", crash_dsn=ours.replace("://", "://key@") + "/42")
with sentry_sdk.start_transaction(name="mine"):
    try:
        with telemetry.guard():
            raise KeyError("secret")
    except KeyError:
        pass
    for thread in telemetry._shipper.threads:
        thread.join()
    import urllib.request
    urllib.request.urlopen(urllib.request.Request(mine + "/requests%20made%20by%20mine", data=b""))
after = state()
sentry_sdk.capture_message("of mine")
profiling.stop_profiler()
sentry_sdk.flush(10)
print(json.dumps({"changed": {k: [before[k], after[k]] for k in before if before[k] != after[k]}, "crumbs": crumbs()}))
"""


@pytest.fixture
def second_sink(request: pytest.FixtureRequest) -> Sink:
    from support.sinks import serving

    found: Sink = request.getfixturevalue("sink")
    other = serving()
    request.addfinalizer(other[1])
    assert other[0].url != found.url
    return other[0]


@pytest.mark.parametrize("stream", [False, True])
def test_programs_own_sentry_is_untouched(sink: Sink, second_sink: Sink, home: Path, stream: bool) -> None:
    choose(home, crash_reports=True)
    script = TWO.replace("traces_sample_rate=1.0,", 'traces_sample_rate=1.0, trace_lifecycle="stream",') if stream else TWO
    answer = at_terminal("-c", script, sink.url, **{**OUTSIDE, "OURS": second_sink.url})
    assert answer.code == 0, answer.err
    # in the other mode, crumbs have no address, and there are no transactions
    assert answer.json == {"changed": {}, "crumbs": [None if stream else f"{sink.url}/requests%20made%20by%20mine"]}
    own = b"".join(received.content for received in sink.received)
    whole = () if stream else (b'"transaction":"mine"', b"requests%20made")
    for still_there in (b"of mine", b"sentry.python.mine", b"profile_chunk", *whole):
        assert still_there in own, still_there
    assert b"digits@1.2.3" not in own and second_sink.url.encode() not in own and b"KeyError" not in own
    (ours,) = second_sink.received
    assert ours.path == "/api/42/envelope/"
    assert not {"sentry-trace", "baggage"} & set(ours.headers)
    assert b"mine" not in ours.content


# ---- what is noted, and the check of the bytes -----------------------------------------------------------------------

DECLARED = Declared("digits", ("test_crash",))
NOW_S = int(time.time())
RECORD = {
    "id": "0123456789abcdef" * 2,
    "time_unix_ns": NOW_S * 10**9 + 123_456_789,
    "types": ["MyError", "ValueError", "Exception"],
    "frames": ["other", "other", "test_crash:fit:+3", "other", "test_crash:load.<locals>.inner:+0", "elsewhere:f:+1"],
    "facts": {"epochmeter.app.name": "digits", "epochmeter.app.version": "1.2.3", "os.type": "linux", "user": "canary"},
}
DSN = "https://key@sentry.example/42"


class MyError(ValueError):
    """One of the tests' own."""


def test_only_class_and_places_are_noted() -> None:
    class Telling(MyError):
        def __str__(self) -> str:
            raise AssertionError("its text was read")

        __repr__ = __str__

    def inner() -> None:
        raise Telling("canary")

    try:
        threading.Thread(target=inner).run()  # through code that is not the package's
    except ValueError as error:
        noted = scrubbed(error, ("test_crash",))
    assert set(noted) == {"id", "time_unix_ns", "types", "frames"}
    assert noted["types"] == ["ValueError", "Exception", "BaseException", "object"]
    name = "test_only_class_and_places_are_noted"
    within = f"{name}.<locals>.inner" if sys.version_info >= (3, 11) else "inner"
    assert noted["frames"] == [f"test_crash:{name}:+11", "other", f"test_crash:{within}:+1"]


def test_deep_traceback_keeps_innermost_frames() -> None:
    def down(depth: int) -> None:
        if not depth:
            raise RecursionError
        down(depth - 1)

    try:
        down(50)
    except RecursionError as error:
        told = crash_payload.rebuilt({**scrubbed(error, ("test_crash",)), "facts": {}}, DECLARED)
    assert len(told["frames"]) == MAX_FRAMES
    assert told["frames"][-1].endswith("down:+2")


def test_it_is_rebuilt_from_the_list() -> None:
    told = crash_payload.rebuilt(RECORD, DECLARED)
    assert told == {
        "id": RECORD["id"],
        "time_unix_ns": NOW_S * 10**9,
        "type": "ValueError",
        "frames": ["other", "test_crash:fit:+3", "other", "test_crash:load.<locals>.inner:+0", "other"],
        "facts": {"epochmeter.app.name": "digits", "epochmeter.app.version": "1.2.3", "os.type": "linux"},
    }


def test_both_forms_pass_their_check() -> None:
    told = crash_payload.rebuilt(RECORD, DECLARED)
    assert crash_payload.first_fault(crash_payload.envelope(told, DSN), declared=DECLARED) is None
    assert crash_log.first_fault(crash_log.encode(told), declared=DECLARED) is None
    assert crash_payload.first_fault(crash_payload.envelope(told, DSN)) is not None  # nobody has declared these frames
    assert crash_log.first_fault(crash_log.encode(told)) is not None


def spoilt(change: Any) -> bytes:
    """Return an envelope with a change in it and with correct lengths."""
    told = crash_payload.rebuilt(RECORD, DECLARED)
    lines = [json.loads(line) for line in crash_payload.envelope(told, DSN).splitlines()]
    change(*lines)
    content = compact(lines[2])
    lines[1]["length"] = len(content)
    return b"\n".join([compact(lines[0]), compact(lines[1]), content, b""])


def compact(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def frames_of(event: Any) -> Any:
    return event["exception"]["values"][0]["stacktrace"]["frames"]


SPOILS = {
    "a message": lambda h, i, e: e["exception"]["values"][0].update(value="canary"),
    "a server's name": lambda h, i, e: e.update(server_name="canary"),
    "modules": lambda h, i, e: e.update(modules={"canary": "1"}),
    "breadcrumbs": lambda h, i, e: e.update(breadcrumbs={"values": []}),
    "a user": lambda h, i, e: e.update(user={"id": "canary"}),
    "another class": lambda h, i, e: e["exception"]["values"][0].update(type="MyError"),
    "another module's frame": lambda h, i, e: frames_of(e)[0].update(function="canary:f:+1"),
    "a path in a frame": lambda h, i, e: frames_of(e)[0].update(function="test_crash:/home/canary:+1"),
    "a frame's source": lambda h, i, e: frames_of(e)[0].update(context_line="canary"),
    "a frame's variables": lambda h, i, e: frames_of(e)[0].update(vars={}),
    "too many frames": lambda h, i, e: frames_of(e).extend([{"function": "other", "in_app": False}] * MAX_FRAMES),
    "another tag": lambda h, i, e: e["tags"].update(canary="1"),
    "a tag's other value": lambda h, i, e: e["tags"].update({"os.type": "canary"}),
    "another release": lambda h, i, e: e.update(release="canary"),
    "another platform": lambda h, i, e: e.update(platform="canary"),
    "an exact time": lambda h, i, e: e.update(timestamp="2026-01-01T00:00:00.123456Z"),
    "another id": lambda h, i, e: e.update(event_id="canary"),
    "a moment of sending": lambda h, i, e: h.update(sent_at="2026-01-01T00:00:00Z"),
    "a trace": lambda h, i, e: h.update(trace={}),
    "a DSN with a path in it": lambda h, i, e: h.update(dsn="https://key:canary@host/1"),
    "an attachment's name": lambda h, i, e: i.update(filename="canary"),
    "another kind of item": lambda h, i, e: i.update(type="transaction"),
    "a second error": lambda h, i, e: e["exception"]["values"].append({}),
}


@pytest.mark.parametrize("change", SPOILS.values(), ids=SPOILS)
def test_check_finds_unlisted_parts(change: Any) -> None:
    assert crash_payload.first_fault(spoilt(lambda *lines: None), declared=DECLARED) is None
    assert crash_payload.first_fault(spoilt(change), declared=DECLARED) is not None


def test_the_check_finds_a_second_item() -> None:
    body = spoilt(lambda *lines: None)
    assert crash_payload.first_fault(body + b'{"type":"attachment","length":6}\ncanary\n', declared=DECLARED) is not None
    assert crash_payload.first_fault(b"", declared=DECLARED) == "it is not an envelope with one event"
    assert crash_payload.first_fault(b"{}\n[]\n{}", declared=DECLARED) == "it is not an envelope with one event"


LOG_SPOILS = {
    "a text": lambda r: setattr(r.body, "string_value", "canary"),
    "another attribute": lambda r: r.attributes.add(key="canary"),
    "another class": lambda r: setattr(r.attributes[0].value, "string_value", "MyError"),
    "another frame": lambda r: setattr(r.attributes[1].value, "string_value", "canary:f:+1"),
    "an attribute twice": lambda r: r.attributes.append(r.attributes[0]),
    "another event": lambda r: setattr(r, "event_name", "canary"),
    "another severity": lambda r: setattr(r, "severity_number", 1),
    "a trace": lambda r: setattr(r, "trace_id", b"canary"),
}


@pytest.mark.parametrize("change", LOG_SPOILS.values(), ids=LOG_SPOILS)
def test_log_check_finds_unlisted_parts(change: Any) -> None:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest.FromString(crash_log.encode(crash_payload.rebuilt(RECORD, DECLARED)))
    change(request.resource_logs[0].scope_logs[0].log_records[0])
    assert crash_log.first_fault(request.SerializeToString(), declared=DECLARED) is not None


@pytest.mark.parametrize(
    ("rule", "value", "told"),
    [
        (Version(), "1.2.3", "1.2.3"),
        (Version(), "2026.11", "2026.11"),
        (Version(), "1.0rc1", "1.0rc1"),
        (Version(), "1.0.post2", "1.0.post2"),
        (Version(), "1.2.3.dev4", "dev"),
        (Version(), "1.2.3+g1f2e3d4", "dev"),
        (Version(), "alice", "dev"),
        (Version(), 3, None),
        (Frame(("digits",)), "digits.cli:main:+3", "digits.cli:main:+3"),
        (Frame(("digits",)), "digits_of_alice:main:+3", "other"),
        (Frame(("digits",)), "digits:main", "other"),
        (Frame(("digits",)), "digits:main:+3:+4", "other"),
        (Frame(("digits",)), "digits:größe:+3", "other"),
        (Frame(), "digits:main:+3", "other"),
    ],
)
def test_coarsening(rule: Any, value: Any, told: Any) -> None:
    assert coarse(rule, value) == told


def test_the_known_classes_are_there_and_are_errors() -> None:
    import builtins

    known = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    missing = {name for name in known if not name.endswith("Warning")} - set(EXCEPTIONS)
    assert missing <= {
        "EnvironmentError",
        "IOError",
        "WindowsError",
        "UnicodeTranslateError",
        "IndentationError",
        "TabError",
        "StopIteration",
        "PythonFinalizationError",
        "_IncompleteInputError",
    }
    assert len(set(EXCEPTIONS)) == len(EXCEPTIONS)


def test_ends_of_programs_are_no_crashes() -> None:
    import click
    import typer

    for error in (
        KeyboardInterrupt(),
        SystemExit(1),
        GeneratorExit(),
        click.UsageError("x"),
        click.Abort(),
        typer.Exit(2),
        None,
    ):
        assert not is_crash(error)
    assert is_crash(ValueError()) and is_crash(MemoryError())


def test_a_crash_within_guards_within_guards_is_one(home: Path) -> None:
    telemetry = Telemetry("digits", "1", modules=("test_crash",))

    @telemetry.guard()
    def work() -> None:
        with telemetry.guard():
            raise MyError("secret")

    for _ in range(2):
        with pytest.raises(MyError), telemetry.guard():
            work()
    try:
        raise MyError
    except MyError:
        telemetry.capture_exception()
    telemetry.capture_exception()  # nothing is being handled
    assert len(list((home / "crashes").iterdir())) == 3
    for _ in range(20):
        telemetry.capture_exception(MyError())
    assert len(list((home / "crashes").iterdir())) == 10
    telemetry.close()
    assert [counted.notes for counted in UsageLedger(home / "usage" / "digits").kept()] == [{"more crashes than are noted": 13}]


def test_names_in_exec_code_are_not_sent() -> None:
    try:
        exec("def alice():\n    raise ValueError\nalice()", globals())  # noqa: S102
    except ValueError as error:
        noted = scrubbed(error, ("test_crash",))
    assert noted["frames"][1:] == ["other", "other"] and noted["frames"][0].startswith("test_crash:")


def test_a_guard_in_threads_tasks_and_generators(home: Path) -> None:
    telemetry = Telemetry("digits", "1", modules=("test_crash",))
    crashes = home / "crashes"

    def steps() -> Iterator[int]:
        with telemetry.guard():
            yield 1

    for end in (lambda one: one.close(), lambda one: one.throw(MyError("the host's"))):
        one = steps()
        next(one)
        found: list[BaseException] = []

        def leave(one: Any = one, end: Any = end, found: list[BaseException] = found) -> None:
            try:
                end(one)
            except Exception as thrown:
                found.append(thrown)

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert [type(error) for error in found] in ([], [MyError])
    assert len(list(crashes.iterdir())) == 1

    @telemetry.guard()
    async def slow() -> None:
        with telemetry.guard():
            try:
                raise MyError
            finally:
                await asyncio.sleep(0.05)

    @telemetry.guard()
    async def quick() -> None:
        await asyncio.sleep(0.01)
        raise KeyError

    async def both() -> None:
        await asyncio.gather(slow(), quick(), return_exceptions=True)

    asyncio.run(both())
    assert len(list(crashes.iterdir())) == 3

    @telemetry.guard()
    def numbers() -> Iterator[int]:
        yield 1
        raise MyError

    with pytest.raises(MyError):
        list(numbers())
    assert len(list(crashes.iterdir())) == 4
    with pytest.raises(ArgumentTypeError, match="a guard decorates a function"):

        @telemetry.guard()
        async def items() -> Any:
            yield 1

    telemetry.close()


def test_no_error_is_held_on_to(home: Path) -> None:
    telemetry = Telemetry("digits", "1")

    class Held(ValueError):
        """One that can be referred to weakly."""

    def fail() -> Any:
        error = Held()
        with suppress(Held), telemetry.guard():
            raise error
        return weakref.ref(error)

    with telemetry.guard():
        reference = fail()
        gc.collect()
        assert reference() is None
    telemetry.close()


def test_two_packages_note_the_same_error_each(home: Path) -> None:
    first, second = Telemetry("first", "1"), Telemetry("second", "1")
    with pytest.raises(MyError), first.guard(), second.guard(), second.guard():
        raise MyError
    names = [json.loads(path.read_text())["declared"]["app"] for path in sorted((home / "crashes").iterdir())]
    assert sorted(names) == ["first", "second"]
    first.close()
    second.close()


class Slotted(Exception):
    """With nothing that could be noted on it."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


def test_odd_errors(home: Path) -> None:
    telemetry = Telemetry("digits", "1", modules=("test_crash",))
    chained = ValueError()
    chained.__cause__ = chained
    odd = [Slotted(), type("Größe", (Exception,), {"__module__": None})(), chained, UnicodeDecodeError("utf-8", b"", 0, 1, "x")]
    if sys.version_info >= (3, 11):
        odd.append(ExceptionGroup("secret", [ValueError(), KeyError()]))  # noqa: F821
    for error in odd:
        with suppress(Exception), telemetry.guard():
            raise error
    kept = [json.loads(path.read_text()) for path in sorted((home / "crashes").iterdir())]
    assert len(kept) == len(odd) and telemetry._shipper.notes == {}
    assert not {"secret", "Größe"} & set(json.dumps(kept, ensure_ascii=False).split('"'))
    telemetry.close()


def test_an_address_and_what_is_public_of_it() -> None:
    assert address_of("https://key@host:9000/some/where/42") == "https://host:9000/some/where/api/42/envelope/"
    assert public("https://key:secret@host/42") == "https://key@host/42"
    for wrong in ("https://host/42", "ftp://key@host/42", "https://key@host/", "key"):
        with pytest.raises(ValueError, match="https://key@host/42"):
            address_of(wrong)


def test_counts_and_crashes_of_one_run_both_arrive(sink: Sink, home: Path) -> None:
    choose(home, crash_reports=True, exporter="otlp", otlp_endpoint=sink.url)
    assert host(sink, COUNT + CRASHES).code == 1
    assert sorted(received.path for received in sink.received) == ["/api/42/envelope/", "/v1/metrics"]
