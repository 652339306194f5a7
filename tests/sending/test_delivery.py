"""Delivery, seen from a run: what arrives, what waits, what is set aside, and how long the end of a run takes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from exporters.config import Config
from exporters.otlp import Otlp
from exporters.outbox import Outbox
from exporters.transport import retry_after
from profiler import Profiler, settings
from profiler.config import schema as config_schema
from profiler.sending.flush import flush
from support.deliveries import EXIT, box, epochs_in
from support.processes import epochmeter, python, wait_for
from support.sinks import Sink

DEAD = "http://127.0.0.1:9"
HANG_S = 8.0


def run(endpoint: str | None = None, epochs: int = 2, **chosen: Any) -> Any:
    """Make a run of so many epochs; return its notes, and the seconds its end took."""
    if endpoint is not None:
        chosen["otlp_endpoint"] = endpoint
    prof = Profiler("x", exporter="otlp", settings=chosen).start()
    for _ in prof.epochs(epochs):
        list(prof.train(range(5)))
    began = time.monotonic()
    prof.stop()
    return prof.summary.to_dict() | {"end_s": time.monotonic() - began}


# ---- a destination that takes nothing ------------------------------------------------------------------------------


def test_next_run_delivers_after_dead_collector(home: Path, sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    sink.status = 503
    first = run()
    assert len(box(home).waiting()) == 1
    assert list(first["notes"]) == ["not delivered at once: HTTP 503"]
    sink.status = 200
    second = run()
    assert box(home).waiting() == []
    assert epochs_in(sink) == {first["run"]["id"]: 2, second["run"]["id"]: 2}
    assert "notes" not in second


def test_flush_delivers_and_says_what_remains(home: Path, sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    sink.status = 503
    told = run()
    answer = epochmeter("telemetry", "flush")
    assert (answer.code, answer.out) == (3, "0 delivered, 0 refused and set aside, 1 still waiting\n")
    assert "epochmeter: HTTP 503" in answer.err
    doctor = {check["name"]: check for check in epochmeter("doctor", "--json").json["checks"]}
    assert doctor["outbox: waiting"]["state"] == "problem"
    assert doctor["outbox: waiting"]["detail"] == f"1 for {sink.url}/v1/metrics; the last time: HTTP 503"
    sink.status = 200
    answer = epochmeter("telemetry", "flush", "--json")
    assert (answer.code, answer.json) == (
        0,
        {"schema": 1, "delivered": 1, "aside": 0, "left": 0, "refused_before": 0, "reasons": []},
    )
    assert epochs_in(sink) == {told["run"]["id"]: 2}
    assert epochmeter("telemetry", "flush").out == "0 delivered, 0 refused and set aside, 0 still waiting\n"


def test_a_destination_given_in_code_is_flushed_too(home: Path, sink: Sink) -> None:
    sink.status = 500
    told = run(sink.url)
    sink.status = 200
    forgotten = epochmeter("telemetry", "flush")  # an entry cannot vouch for its own address
    assert forgotten.code == 3 and "is not the one that is chosen here now" in forgotten.err
    again = {"EPOCHMETER_EXPORTER": "otlp", "EPOCHMETER_OTLP_ENDPOINT": sink.url}
    assert epochmeter("telemetry", "flush", **again).code == 0
    assert epochs_in(sink) == {told["run"]["id"]: 2}


@pytest.mark.slow
def test_back_off_grows(sink: Sink) -> None:
    sink.status = 503
    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sink.url, "export_interval": 0.01}, interval=0.01):
        began = time.monotonic()
        wait_for(lambda: len(sink.received) >= 3)
        assert time.monotonic() - began > 1.4  # less the time that the first attempt came before
    assert 3 <= len(sink.received) <= 6  # at once, after 0.5 to 1 s, after another 1 to 2 s, and at the end


def test_next_process_honours_retry_after(home: Path, sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    sink.status, sink.headers = 429, {"retry-after": "3600"}
    run()
    assert len(sink.received) == 1
    sink.status, sink.headers = 200, {}
    run()
    answer = epochmeter("telemetry", "flush")
    assert (answer.code, len(sink.received)) == (3, 1)
    assert "HTTP 429; it asks to be left alone for another 3" in answer.err
    assert len(box(home).waiting()) == 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0", 0.0), ("-3", 0.0), ("99999999", 3600.0), ("soon", None), ("", None), ("nan", None), (None, None)],
)
def test_what_retry_after_can_say(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds
    later = retry_after(formatdate(time.time() + 60, usegmt=True))
    assert later is not None and 50 <= later <= 61


@pytest.mark.parametrize("status", [401, 403, 407])
def test_failing_token_makes_all_wait(home: Path, sink: Sink, status: int) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    sink.status = status
    for _ in range(3):
        run()
    # One attempt at a time, for the other entries would fail, too: six if each were tried. A slow machine's run makes two.
    assert 3 <= len(sink.received) <= 5
    assert (len(box(home).waiting()), box(home).aside()) == (3, [])
    (waiting,) = [check for check in epochmeter("doctor", "--json").json["checks"] if check["name"] == "outbox: waiting"]
    assert waiting["state"] == "problem" and f"HTTP {status}: the headers" in waiting["detail"]
    sink.status = 200
    assert epochmeter("telemetry", "flush", EPOCHMETER_OTLP_HEADERS="authorization=mended").code == 0
    assert len(epochs_in(sink)) == 3 and sink.received[-1].headers["authorization"] == "mended"


@pytest.mark.parametrize("status", [400, 404, 413])
def test_permanent_refusal_is_set_aside_with_reason(home: Path, sink: Sink, status: int) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    sink.status = status
    told = run()
    assert list(told["notes"]) == [f"refused by the destination and set aside: HTTP {status}"]
    assert ([why for _, why in box(home).aside()], box(home).waiting()) == ([f"HTTP {status}"], [])
    doctor = {check["name"]: check for check in epochmeter("doctor", "--json").json["checks"]}
    assert doctor["outbox: refused by the destination"]["detail"] == f"1: HTTP {status}"
    run()
    assert len(sink.received) == 2  # it is not tried again by itself
    sink.status = 200
    assert epochmeter("telemetry", "flush", "--again").code == 0
    assert len(epochs_in(sink)) == 2


def test_reason_of_refusal_is_kept(home: Path, sink: Sink) -> None:
    status_pb2 = pytest.importorskip("google.rpc.status_pb2")
    sink.status = 400
    for content, kind in (
        (status_pb2.Status(code=3, message="too old").SerializeToString(), "application/x-protobuf"),
        (b'{"code": 3, "message": "too new", "more": 1}', "application/json"),
        (b"no \x1b[31mtenant\n" + b"x" * 10_000, "text/plain"),
        (b"<html>", "text/html"),
        (b"\xff\xff", "application/x-protobuf"),
    ):
        sink.content, sink.headers = content, {"content-type": kind}
        run(sink.url)
    reasons = [why for _, why in box(home).aside()]
    assert reasons[:2] == ["HTTP 400: too old", "HTTP 400: too new"]
    assert reasons[2].startswith("HTTP 400: no [31mtenant xxx") and len(reasons[2]) < 200
    assert reasons[3] == "HTTP 400" and reasons[4].startswith("HTTP 400")
    assert "5 set aside" in epochmeter("telemetry", "flush").err


def test_doctor_says_what_helps_each_time(home: Path, sink: Sink) -> None:
    def waiting() -> Any:
        checks = epochmeter("doctor", "--json").json["checks"]
        return next(check for check in checks if check["name"] == "outbox: waiting")

    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    sink.status = 503
    told = run()
    assert waiting()["cure"] == "epochmeter telemetry flush"
    sink.headers = {"retry-after": "900"}
    epochmeter("telemetry", "flush")
    assert (waiting()["cure"], "left alone for another" in waiting()["detail"]) == ("", True)
    settings.update(otlp_endpoint="http://127.0.0.1:9")
    (home / "outbox" / "trouble").rename(home / "trouble")
    assert "--adopt" in waiting()["cure"]
    sink.status, sink.headers = 200, {}
    settings.update(otlp_endpoint=sink.url)
    assert epochmeter("telemetry", "flush", "--adopt").code == 0
    notes = [check for check in epochmeter("doctor", "--json").json["checks"] if check["name"] == f"run {told['run']['id']}"]
    assert [check["state"] for check in notes] == ["ok"]  # it has been delivered since


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 301, 307])
def test_what_may_pass_waits(home: Path, sink: Sink, status: int) -> None:
    sink.status = status
    run(sink.url)
    assert (len(box(home).waiting()), box(home).aside()) == (1, [])


def test_partial_success_is_recorded(home: Path, sink: Sink) -> None:
    told = ExportMetricsServiceResponse(
        partial_success=ExportMetricsPartialSuccess(rejected_data_points=3, error_message="too old")
    )
    sink.content, sink.headers = told.SerializeToString(), {"content-type": "application/x-protobuf"}
    notes = run(sink.url)["notes"]
    assert notes == {"taken in part: HTTP 200, but 3 data points were not taken: too old": 1}
    assert (box(home).waiting(), box(home).dropped()) == ([], {"partly": 1})
    (entry,) = epochmeter("telemetry", "log", "--json").json
    assert entry["answer"] == "HTTP 200, but 3 data points were not taken: too old"


def test_a_web_page_is_no_delivery(home: Path, sink: Sink) -> None:
    """A hotel's network answers everything with 200 and a page to log in."""
    sink.content, sink.headers = b"<html>log in</html>", {"content-type": "text/html"}
    notes = run(sink.url)["notes"]
    assert list(notes) == ["not delivered at once: HTTP 200, with a web page: that is no collector"]
    assert len(box(home).waiting()) == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a delivery at a run's end for one second, as for users."""
    monkeypatch.setitem(config_schema.KEYS, "exit_timeout", 1.0)


def test_end_of_run_waits_one_second() -> None:
    assert epochmeter("settings", "--json").json["exit_timeout"] == 1.0


# ---- the end of a run ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Listen on a port, and serve each connection with this function; yield the address."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        over = threading.Event()

        def loop() -> None:
            server.settimeout(0.1)
            while not over.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        serve(connection, over)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            thread.join(HANG_S + 1)


def never_answers(connection: socket.socket, over: threading.Event) -> None:
    over.wait(HANG_S)


def hangs_up(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(10)


def garbage(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    connection.sendall(b"\x00\xff garbage \r\n\r\n" * 100)


def a_gigabyte(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 500 no\r\ncontent-length: 1000000000\r\n\r\n")
    block = b"x" * 1_000_000
    for _ in range(1_000):
        connection.sendall(block)


def a_byte_a_second(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    for byte in b"HTTP/1.1 200 OK":
        connection.sendall(bytes([byte]))
        over.wait(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("serve", [never_answers, hangs_up, garbage, a_gigabyte, a_byte_a_second])
def test_end_of_run_is_bounded_by_timeout(home: Path, impatient: None, serve: Any) -> None:
    with listening(serve) as address:
        told = run(address)
        assert told["end_s"] < 1.5
        entries = [*box(home).waiting(), *box(home).under_way()]
        assert len(entries) == 1, told.get("notes")


def drips_its_answer(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    with contextlib.suppress(OSError):
        while not over.wait(0.2):
            connection.sendall(b"x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("serve", "verdict"), [(drips_its_answer, "later"), (a_byte_a_second, "later"), (never_answers, "later")]
)
def test_slow_answer_is_cut_off(serve: Any, verdict: str) -> None:
    """A socket's timeout starts anew with each byte; an attempt's does not."""
    with listening(serve) as address:
        transport = Otlp(Config("otlp", address=f"{address}/v1/metrics", timeout=0.6))
        began = time.monotonic()
        answer = transport.send(b"bytes")
        assert time.monotonic() - began < 2.5
        assert answer.verdict == verdict, answer


PARTIAL_JSON = b'{"partialSuccess":{"rejectedDataPoints":"3","errorMessage":"x"}}'


@pytest.mark.parametrize(
    ("answer", "verdict", "says"),
    [
        (b"Content-Length: 50\r\n\r\nabc", "later", "whose rest did not come"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", "later", "whose rest did not come"),
        (b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "later", "whose rest did not come"),
        (b"Content-Length: 0\r\n\r\n", "taken", "HTTP 200"),
        (b"Content-Type: application/x-protobuf\r\nContent-Length: 3\r\n\r\n\xff\xff\xff", "taken", "cannot be read"),
        (
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(PARTIAL_JSON), PARTIAL_JSON),
            *("taken", "3 data points were not taken"),
        ),
    ],
)
def test_cut_answer_is_no_delivery(answer: bytes, verdict: str, says: str) -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + answer)

    with listening(serve) as address:
        told = Otlp(Config("otlp", address=f"{address}/v1/metrics", timeout=5)).send(b"bytes")
    assert told.verdict == verdict and says in told.text


def test_missing_collector_takes_no_time(home: Path) -> None:
    assert run(DEAD)["end_s"] < 2
    assert len(box(home).waiting()) == 1


@pytest.mark.slow
def test_zero_timeout_loses_nothing(home: Path) -> None:
    with listening(never_answers) as address:
        assert run(address, exit_timeout=0)["end_s"] < 2
    assert len([*box(home).waiting(), *box(home).under_way()]) == 1


def test_zero_is_a_setting_like_any_other() -> None:
    assert epochmeter("settings", "exit_timeout=0").code == 0
    assert settings["exit_timeout"] == 0
    assert epochmeter("settings", "exit_timeout=-1").code == 2


@pytest.mark.slow
def test_process_with_hanging_collector_ends_silently(home: Path) -> None:
    with listening(never_answers) as address:
        python("-c", "import profiler.session")
        began = time.monotonic()
        bare = python("-c", EXIT, DEAD, EPOCHMETER_EXIT_TIMEOUT="")
        bare_s = time.monotonic() - began
        answer = python("-c", EXIT, address, EPOCHMETER_EXIT_TIMEOUT="")
        took = time.monotonic() - began - bare_s
    assert (bare.code, answer.code, answer.out, len(answer.err.splitlines())) == (0, 0, "", 1)
    assert took - bare_s < 1.5
    assert len([*box(home).waiting(), *box(home).under_way()]) == 2


# ---- consent and the outbox ----------------------------------------------------------------------------------------


def test_switching_off_empties_and_counts_outbox(home: Path, sink: Sink) -> None:
    run(DEAD)
    sink.status = 400
    run(sink.url)
    assert (len(box(home).waiting()), len(box(home).aside())) == (1, 1)
    settings.update(sync=False)
    assert (box(home).waiting(), box(home).aside()) == ([], [])
    assert box(home).dropped() == {"withdrawn": 2}
    settings.update(sync=True)
    assert epochmeter("telemetry", "flush", "--again").out.startswith("0 delivered")
    assert len(sink.received) == 1


def test_an_explicit_none_empties_it_too(home: Path) -> None:
    run(DEAD)
    settings.update(exporter="none")
    assert (box(home).waiting(), box(home).dropped()) == ([], {"withdrawn": 1})


def test_off_by_hand_empties_outbox(home: Path) -> None:
    run(DEAD)
    (home / "settings.json").write_text('{"version": 2, "sync": false}')
    answer = epochmeter("telemetry", "flush")
    assert (answer.code, box(home).waiting()) == (0, [])
    assert box(home).dropped() == {"withdrawn": 1}


def test_off_for_one_process_keeps_what_waits(home: Path) -> None:
    run(DEAD)
    answer = epochmeter("telemetry", "flush", DO_NOT_TRACK="1")
    assert (answer.code, len(box(home).waiting())) == (3, 1)
    assert "nothing leaves this machine: sync is off (DO_NOT_TRACK)" in answer.err


def test_entries_for_another_destination_wait(home: Path, sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint="http://127.0.0.1:9")  # a typing error
    told = run()
    settings.update(otlp_endpoint=sink.url)
    answer = epochmeter("telemetry", "flush")
    assert (answer.code, sink.received) == (3, [])
    assert "--adopt" in answer.err
    second = run()
    assert set(epochs_in(sink)) == {second["run"]["id"]}
    assert epochmeter("telemetry", "flush", "--adopt").code == 0
    assert set(epochs_in(sink)) == {told["run"]["id"], second["run"]["id"]}


def test_headers_stay_with_their_destination(home: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    sink.status = 503
    run(sink.url)
    sink.status = 200
    monkeypatch.setenv("EPOCHMETER_OTLP_HEADERS", "authorization=Bearer%20token")
    assert epochmeter("telemetry", "flush", EPOCHMETER_OTLP_ENDPOINT=DEAD, EPOCHMETER_EXPORTER="otlp").code == 3
    assert len(sink.received) == 1 and "authorization" not in sink.received[-1].headers


def test_own_failure_does_not_end_deliveries(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = Outbox.expire, [RuntimeError("ours"), OSError(5, "Input/output error")]

    def expire(self: Outbox, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        real(self, *arguments)

    monkeypatch.setattr(Outbox, "expire", expire)
    monkeypatch.setattr("profiler.sending.outlet.LOOK_AGAIN_S", 0.05)
    with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sink.url, "export_interval": 0.05}, interval=0.02) as prof:
        wait_for(lambda: sink.received)
    notes = prof.summary.to_dict()["notes"]
    assert notes == {"a delivery failed: Input/output error": 1, "a delivery failed: RuntimeError": 1}


# ---- headers and addresses -----------------------------------------------------------------------------------------


def test_own_headers_go_to_own_endpoint(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHMETER_OTLP_HEADERS", "authorization=Bearer%20secret, x-scope=a%3Db")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-foreign=1")
    run(sink.url)
    headers = sink.received[0].headers
    assert (headers["authorization"], headers["x-scope"]) == ("Bearer secret", "a=b")
    assert "x-foreign" not in headers
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    run()
    assert sink.received[1].headers["x-foreign"] == "1" and "authorization" not in sink.received[1].headers


def test_secrets_are_not_shown() -> None:
    shown = repr(Config("otlp", address=DEAD, headers={"authorization": "secret"}, secret="secret", client_key="secret"))
    assert "secret" not in shown


def test_without_compression_the_bytes_go_as_they_are(sink: Sink) -> None:
    answer = Otlp(Config("otlp", address=f"{sink.url}/v1/metrics", compression="none")).send(b"bytes")
    assert (answer.verdict, sink.received[0].body) == ("taken", b"bytes")
    assert "content-encoding" not in sink.received[0].headers


def test_missing_certificate_file_is_reported(home: Path) -> None:
    notes = run("https://127.0.0.1:9", otlp_certificate="nowhere.pem")["notes"]
    assert "nowhere.pem" in str(notes)
    assert len(box(home).waiting()) == 1


def test_runs_of_one_process_share_only_outbox(sink: Sink) -> None:
    """Two at once, in threads: neither waits for the other, and both arrive."""
    threads = [threading.Thread(target=run, args=(sink.url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: flush().left == 0)
    assert len(epochs_in(sink)) == 4


# ---- what a process that is gone was sending -----------------------------------------------------------------------


def test_entry_left_under_way_is_adopted(home: Path, sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=DEAD)
    told = run(epochs=2)
    (entry,) = box(home).waiting()
    assert box(home).claim(entry) is not None  # and the process that claimed it is gone
    settings.update(otlp_endpoint=sink.url)
    answer = flush()
    assert (answer.delivered, answer.left) == (0, 1)
    (reason,) = answer.reasons
    assert DEAD in reason and "--adopt" in reason
    answer = flush(adopt=True)
    assert (answer.delivered, answer.left, answer.reasons) == (1, 0, ())
    assert epochs_in(sink) == {told["run"]["id"]: 2}


def test_one_entry_of_a_run_waits(home: Path) -> None:
    settings.update(exporter="otlp", otlp_endpoint=DEAD, export_interval=0.05)
    with Profiler("x", interval=0.02) as prof:
        for _ in prof.epochs(6):
            list(prof.train(range(3)))
            time.sleep(0.06)
        assert len(box(home).waiting()) + len(box(home).under_way()) == 1
    assert [entry.name.split("-")[2] for entry in box(home).waiting()] == ["final"]
    assert box(home).dropped() == {}


LIVES = """
import time
from profiler import Profiler
with Profiler("lives", interval=0.02) as prof:
    for epoch in prof.epochs(3):
        for step in prof.train(range(5)):
            time.sleep(0.01)
        if epoch == 1:
            print("in the second epoch", flush=True)
            time.sleep(60)
"""


def test_recovered_last_word_is_the_latest(home: Path, sink: Sink) -> None:
    """The run sent something after the last line of its log, and was killed then."""
    settings.update(exporter="otlp", otlp_endpoint=sink.url, export_interval=0.05)
    with subprocess.Popen([sys.executable, "-c", LIVES], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline()
        known = len(sink.received)
        wait_for(lambda: len(sink.received) > known + 3)
        process.kill()
    time.sleep(2.1)  # a run that has just begun may have no line in its log yet
    known = len(sink.received)
    assert flush().delivered >= 1
    times = [
        point.time_unix_nano
        for received in sink.received
        for resource in ExportMetricsServiceRequest.FromString(received.content).resource_metrics
        for metric in resource.scope_metrics[0].metrics
        for point in metric.sum.data_points
        if metric.name == "epochmeter.epoch.count"
    ]
    assert len(times) == len(sink.received) > known and times == sorted(times)
    assert list(epochs_in(sink).values()) == [1]
