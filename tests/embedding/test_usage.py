"""Usage counters: exact, from closed sets, summed up on this machine, sent as one summary, and only with consent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from profiler import ArgumentTypeError, ArgumentValueError, SettingsError, Telemetry
from profiler.config.environment import OTHERS_OFF
from profiler.config.folder import Folder
from profiler.config.resolve import EmbeddingApp, resolve
from profiler.embedding.counters import Counters
from profiler.embedding.shipper import ENDS_WITH_THREADS
from profiler.storage.usage_ledger import MERGED_FROM, Counted, Counts, UsageLedger
from support.package_author import COUNT, HOST, OUTSIDE, choose, counted, facts, host, metrics, single_facts
from support.processes import PATIENT, PATIENT_S, at_terminal, epochmeter, python
from support.sinks import Sink

SUMMARY = {("features", "export"): 10, ("features", "augment"): 1, ("commands", "fit"): 1, ("options", "fit", "epochs"): 1}


# ---- counting ------------------------------------------------------------------------------------------------------


def test_counts_are_exact_across_threads() -> None:
    counters = Counters(["a", "b"], {})
    found: Counter[str] = Counter()
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [counters.features["a"].add() for _ in range(20_000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            found.update(counters.take()[0])
    finally:
        sys.setswitchinterval(switch)
    found.update(counters.take()[0])
    assert found == {"a": 160_000}


def test_what_was_taken_is_not_taken_again() -> None:
    counters = Counters(["a"], {"fit": ["epochs"]})
    counters.features["a"].add()
    assert counters.count_known("fit", ["epochs"])
    assert counters.take() == ({"a": 1}, {"fit": 1}, {"fit": {"epochs": 1}}, {}, 0)
    assert counters.take() == ({}, {}, {}, {}, 0)


class Nasty:
    """A name that cannot even be looked at."""

    def __hash__(self) -> int:
        raise RuntimeError

    __repr__ = __hash__  # type: ignore[assignment]


def broken() -> Any:
    raise RuntimeError
    yield


def test_undeclared_name_is_counted_and_warned_once(home: Path) -> None:
    telemetry = Telemetry("digits", "1.2.3", features=("export",), commands=("fit",))
    with pytest.warns(ResourceWarning) as told:
        for name in ("secret-one", "secret-two", ["unhashable"], None, Nasty()):
            telemetry.feature(name)  # type: ignore[arg-type]
        telemetry.command("secret-command")
        telemetry.command("fit", ["secret-option"])
        telemetry.command("fit", broken())
        telemetry.command(Nasty())
    telemetry.close()
    (kept,) = UsageLedger(home / "usage" / "digits").kept()
    assert kept.notes == {"names that are not declared": 8}
    assert "secret" not in json.dumps([vars(kept.counts), kept.declared, kept.facts])
    assert [str(record.message) for record in told] == [
        "epochmeter, for digits: a feature 'secret-one' is not declared, and not counted"
    ]
    assert told[0].filename == __file__  # it points to the author's line
    assert "names that are not declared (8x)" in epochmeter("doctor").out


def test_its_users_see_nothing_of_that(home: Path) -> None:
    script = "from profiler import Telemetry\ntelemetry = Telemetry('digits', '1')\ntelemetry.feature('nope')"
    assert python("-c", script).err == ""
    assert "is not declared" in python("-X", "dev", "-c", script).err


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ArgumentTypeError, {"app": 7}),
        (ArgumentValueError, {"app": "/home/alice"}),
        (ArgumentValueError, {"app": ""}),
        (ArgumentValueError, {"version": ""}),
        (ArgumentTypeError, {"features": "export"}),
        (ArgumentTypeError, {"features": 7}),
        (ArgumentValueError, {"features": ["two words"]}),
        (ArgumentTypeError, {"commands": {"fit": "epochs"}}),
        (ArgumentValueError, {"commands": {"fit": ["--epochs"]}}),
        (ArgumentValueError, {"features": [f"f{n}" for n in range(1_001)]}),
        (ArgumentValueError, {"exporter": "prometheus"}),
        (ArgumentValueError, {"exporter": "smoke signals"}),
        (ArgumentTypeError, {"exporter": object()}),
        (ArgumentTypeError, {"settings": "sync=false"}),
        (ArgumentTypeError, {"joint_facts": 1}),
        (ArgumentValueError, {"crash_dsn": "https://host/42"}),
        (ArgumentValueError, {"crash_dsn": "https://key@evil\\\\@host/42"}),
        (ArgumentValueError, {"crash_dsn": "https://key@host/$(id)/42"}),
        (ArgumentValueError, {"crash_dsn": "https://key@host:99999/42"}),
        (ArgumentValueError, {"modules": "digits"}),
        (ArgumentTypeError, {"modules": 3}),
        (ArgumentValueError, {"settings": {"ga_endpoint": "https://host.example"}}),  # the user's secret would go there
        (ArgumentValueError, {"settings": {"retention_days": 1}}),  # it is the user's, and of all packages
        (ArgumentValueError, {"settings": {"otlp_endpont": "http://c:1"}}),
    ],
)
def test_bad_arguments_raise_at_once(error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error):
        Telemetry(**{"app": "digits", "version": "1.2.3", **arguments})


def test_bad_settings_show_in_check_and_end(home: Path) -> None:
    telemetry = Telemetry("digits", "1", features=("export",), exporter="otlp", settings={"otlp_endpoint": "c:1"})
    with pytest.raises(SettingsError, match="otlp_endpoint takes an address"):
        telemetry.check()
    telemetry.feature("export")
    with pytest.warns(ResourceWarning, match="otlp_endpoint takes an address"):
        telemetry.close()  # raises nothing into the program
    (kept,) = UsageLedger(home / "usage" / "digits").kept()
    assert kept.counts.features == {"export": 1}
    assert [note for note in kept.notes if "otlp_endpoint takes an address" in note]  # for `epochmeter doctor`
    assert telemetry.profiler("x").start().stop() is None


def test_host_keys_are_settings() -> None:
    from profiler.config.schema import CONSENT, KEYS, WHERE
    from profiler.embedding.arguments import HOST_KEYS

    assert {*CONSENT, *WHERE} - {"ga_endpoint"} < set(HOST_KEYS) < set(KEYS)


# ---- what is sent, and when ----------------------------------------------------------------------------------------


def test_first_time_shows_notice_then_sends_summary(sink: Sink, home: Path) -> None:
    first = host(sink)
    assert (first.code, sink.received) == (0, [])
    assert first.err.count("\n") == 1
    for told in (
        "digits wishes to send",
        sink.url,
        "nothing of that is sent",
        "epochmeter telemetry preview",
        "epochmeter settings sync=false",
    ):
        assert told in first.err
    second = host(sink)
    assert (second.code, second.err) == (0, "")
    assert [counted(received) for received in metrics(sink)] == [SUMMARY]  # the first run's counts stay here for good
    assert facts(metrics(sink)[0])["epochmeter.app.name"] == "digits"


def test_summaries_are_of_what_many_processes_counted(sink: Sink, home: Path) -> None:
    host(sink)
    for _ in range(4):
        assert host(sink).code == 0
    assert len(metrics(sink)) == 1  # the next one is not due before `export_interval` is over
    assert host(sink, COUNT + "telemetry.close()").code == 0  # who closes does not wait for that
    assert [counted(received) for received in metrics(sink)] == [SUMMARY, {name: 4 * times for name, times in SUMMARY.items()}]


def test_ten_calls_a_second_are_all_counted(sink: Sink, home: Path) -> None:
    host(sink)
    script = HOST + COUNT + "telemetry.close()"
    threads = [threading.Thread(target=python, args=("-c", script, sink.url), kwargs=OUTSIDE) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    host(sink, "telemetry.close()")  # for those that found another one at it
    total: Counter[tuple[str, ...]] = Counter()
    for received in metrics(sink):
        total.update(counted(received))
    assert total == {name: 6 * times for name, times in SUMMARY.items()}


def test_users_collector_replaces_packages(sink: Sink, home: Path) -> None:
    choose(home, exporter="otlp", otlp_endpoint=sink.url)
    script = HOST.replace("sys.argv[1]}", "'http://127.0.0.1:9'}") + COUNT
    answer = at_terminal("-c", script, sink.url, **OUTSIDE)
    assert [counted(received) for received in metrics(sink)] == [SUMMARY]  # from the first time on
    assert answer.err.count("\n") == 1 and f"goes to {sink.url}" in answer.err


@pytest.mark.parametrize(
    "off",
    [
        *({"DO_NOT_TRACK": "1"}, {"EPOCHMETER_SYNC": "0"}, {"OTEL_SDK_DISABLED": "true"}, {"EPOCHMETER_EXPORTER": "none"}),
        *({"EPOCHMETER_USAGE": "no"}, {"CI": "true"}, {"PYTEST_CURRENT_TEST": "x"}, {"HF_HUB_OFFLINE": "1"}),
        *({"sync": False}, {"exporter": "none"}, {"usage": False}),
    ],
    ids=str,
)
def test_any_off_of_the_users_wins(sink: Sink, home: Path, off: dict[str, Any]) -> None:
    host(sink)  # the user has been told
    environment = {name: value for name, value in off.items() if name.isupper()}
    if not environment:
        choose(home, **off)
    answer = host(sink, COUNT + "telemetry.close()", **environment)
    assert (answer.code, answer.err, sink.received) == (0, "", [])
    if not environment:
        (home / "settings.json").unlink()
    host(sink, "telemetry.close()")  # what was counted while it was off does not leave later
    assert sink.received == []


def test_no_notice_while_off(sink: Sink, home: Path) -> None:
    assert host(sink, CI="1").err == ""
    assert not (home / "told").exists()


def test_package_can_only_lower_consent(sink: Sink, home: Path) -> None:
    choose(home, sync=False, usage=False, crash_reports=False)
    wants = HOST.replace('"otlp_endpoint"', '"sync": True, "usage": True, "crash_reports": True, "otlp_endpoint"')
    for _ in range(2):
        at_terminal("-c", wants + COUNT, sink.url, **OUTSIDE)
    assert sink.received == []
    (home / "settings.json").unlink()
    lowers = HOST.replace('"otlp_endpoint"', '"usage": False, "otlp_endpoint"')
    for _ in range(2):
        assert at_terminal("-c", lowers + COUNT, sink.url, **OUTSIDE).err == ""
    assert sink.received == []


@pytest.mark.parametrize(
    ("user", "wish", "in_force"),
    [
        ({}, {"crash_reports": True}, {"crash_reports": False}),
        ({}, {"export_interval": 7.0}, {"export_interval": 7.0}),
        ({"export_interval": 9.0}, {"export_interval": 7.0}, {"export_interval": 9.0}),
        ({}, {"exit_timeout": 600.0}, {"exit_timeout": PATIENT_S}),  # it cannot have the program wait longer
        ({}, {"exit_timeout": 0.5}, {"exit_timeout": 0.5}),
        ({}, {"exporter": "otlp", "otlp_endpoint": "http://c:1"}, {"exporter": "otlp", "otlp_endpoint": "http://c:1"}),
        ({"exporter": "otlp"}, {"otlp_endpoint": "http://c:1"}, {"exporter": "otlp", "otlp_endpoint": None}),
        ({"exporter": "ga"}, {"exporter": "otlp", "otlp_endpoint": "http://c:1"}, {"exporter": "ga", "otlp_endpoint": None}),
        ({"exporter": "none"}, {"exporter": "otlp"}, {"exporter": "none"}),
        ({"exporter": "otlp"}, {"exporter": "none"}, {"exporter": "none"}),
        # who has named a collector gets it there, with what belongs to it
        (
            {"otlp_endpoint": "https://mine:1", "otlp_client_certificate": "mine.pem"},
            {"exporter": "otlp", "otlp_endpoint": "http://c:1", "otlp_certificate": "c.pem"},
            {"otlp_endpoint": "https://mine:1", "otlp_client_certificate": "mine.pem", "otlp_certificate": None},
        ),
        # and who has not, does not send a certificate of their own along
        (
            {"otlp_client_certificate": "mine.pem"},
            {"exporter": "otlp", "otlp_endpoint": "http://c:1"},
            {"otlp_endpoint": "http://c:1", "otlp_client_certificate": None},
        ),
        ({"otlp_endpoint": "https://mine:1"}, {"exporter": "otlp"}, {"exporter": "otlp", "otlp_endpoint": "https://mine:1"}),
    ],
)
def test_user_choice_outweighs_package_wish(
    home: Path, monkeypatch: pytest.MonkeyPatch, user: dict[str, Any], wish: dict[str, Any], in_force: dict[str, Any]
) -> None:
    for name in OUTSIDE:
        monkeypatch.setenv(name, "")
    choose(home, **user)
    resolved = resolve(app=EmbeddingApp("digits", wish))
    assert {key: resolved.values[key].value for key in in_force} == in_force
    assert resolved.host_chose == (wish.get("exporter") == "otlp" and "exporter" not in user)


@pytest.mark.parametrize("name", ["EPOCHMETER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_environment_collector_replaces_packages(sink: Sink, home: Path, name: str) -> None:
    script = HOST.replace("sys.argv[1]}", "'http://127.0.0.1:9'}") + COUNT
    first, _ = (at_terminal("-c", script, sink.url, **{**OUTSIDE, name: sink.url}) for _ in range(2))
    assert "nothing of that is sent" in first.err  # that it is sent at all was the package's wish
    assert [counted(received) for received in metrics(sink)] == [SUMMARY]


IDENTITY = {"service.name", "service.version", "service.instance.id", "epochmeter.app.name"}
JOINT = HOST.replace('exporter="otlp",', 'exporter="otlp", joint_facts=True,')


def test_author_gets_each_fact_apart(sink: Sink, home: Path) -> None:
    first = host(sink)
    assert "hardware and versions, each apart from the others" in first.err
    host(sink)
    (received,) = metrics(sink)
    assert set(facts(received)) == {*IDENTITY, "epochmeter.app.version"} and counted(received) == SUMMARY
    alone = single_facts(sink)
    assert len({one["service.instance.id"] for one in alone} | {facts(received)["service.instance.id"]}) == len(alone) + 1
    told = [set(one) - IDENTITY for one in alone]
    assert {len(names) for names in told} == {1} and len(told) == len({name for names in told for name in names}) >= 4
    assert {"os.type"} in told and {"process.runtime.version"} in told
    for each in sink.received:
        request = ExportMetricsServiceRequest.FromString(each.content)
        for metric in request.resource_metrics[0].scope_metrics[0].metrics:
            if metric.name == "epochmeter.usage.summaries":
                assert metric.sum.data_points[0].time_unix_nano % 3_600_000_000_000 == 0


def test_author_who_asks_gets_facts_together(sink: Sink, home: Path) -> None:
    first, _ = (at_terminal("-c", JOINT + COUNT, sink.url, **OUTSIDE) for _ in range(2))
    assert "hardware and versions, together, which may tell your machine from others" in first.err
    (received,) = metrics(sink)
    assert {"os.type", "process.runtime.name", "process.runtime.version"} <= set(facts(received)) and single_facts(sink) == []


def test_users_own_collector_gets_facts_together(sink: Sink, home: Path) -> None:
    choose(home, exporter="otlp", otlp_endpoint=sink.url)
    host(sink)
    (received,) = metrics(sink)
    assert {"os.type", "process.runtime.version"} <= set(facts(received)) and single_facts(sink) == []


@pytest.mark.parametrize("stderr", ["/dev/null", "/dev/full", "closed", "a pipe"])
def test_notice_that_nobody_saw_permits_nothing(home: Path, sink: Sink, stderr: str) -> None:
    for _ in range(3):
        with Path("/dev/full" if stderr == "/dev/full" else os.devnull).open("w") as nowhere:
            command = [sys.executable, "-c", HOST + COUNT, sink.url]
            if stderr == "closed":
                command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
            where = subprocess.PIPE if stderr == "a pipe" else nowhere
            done = subprocess.run(command, stderr=where, env={**os.environ, **PATIENT, **OUTSIDE}, timeout=60)
            assert done.returncode == 0 and not done.stderr
    assert sink.received == []
    assert len(UsageLedger(home / "usage" / "digits").kept()) == 3
    assert not (home / "told").exists() or not list((home / "told").iterdir())
    choose(home, exporter="otlp", otlp_endpoint=sink.url)  # the user's own word
    host(sink)
    assert len(metrics(sink)) == 1


@pytest.mark.parametrize("name", OTHERS_OFF)
def test_off_of_another_tool_bars_packages_destination(home: Path, sink: Sink, name: str) -> None:
    variable, _, value = name.partition("=")
    app = EmbeddingApp("digits", {"exporter": "otlp", "otlp_endpoint": sink.url})
    for name, may_send in ((variable, False), ("UNRELATED", True)):
        with pytest.MonkeyPatch.context() as patch:
            for known in OUTSIDE:
                patch.delenv(known, raising=False)
            patch.setenv(name, value or "1")
            assert resolve(app=app).may_send is may_send
            patch.setenv("EPOCHMETER_EXPORTER", "otlp")  # the user's own word outweighs it
            assert resolve(app=app).may_send is True


def test_first_run_and_forks_send_nothing(sink: Sink, home: Path) -> None:
    work = """
import os, time
for _ in range(4):
    telemetry._look_at = 0  # a minute later
    telemetry.feature("export")
    for thread in telemetry._shipper.threads:
        thread.join()
    if hasattr(os, "fork") and os.fork() == 0:
        telemetry.feature("augment")
        telemetry.close()
        os._exit(0)
with telemetry.profiler("x") as prof:
    list(prof.train(range(3)))
"""
    answer = host(sink, work)
    assert (answer.code, answer.err.count("nothing of that is sent"), sink.received) == (0, 1, [])


def test_what_is_counted_after_close_is_counted(sink: Sink, home: Path) -> None:
    host(sink)
    host(sink, "telemetry.feature('export')\ntelemetry.close()\ntelemetry.close()\ntelemetry.feature('augment')")
    host(sink, "telemetry.close()")
    assert [counted(received) for received in metrics(sink)] == [{("features", "export"): 1}, {("features", "augment"): 1}]


def test_a_clock_that_was_set_back_stops_nothing(sink: Sink, home: Path) -> None:
    host(sink)
    (home / "usage" / "digits" / "exported").touch()
    os.utime(home / "usage" / "digits" / "exported", (4e9, 4e9))
    host(sink)
    assert len(metrics(sink)) == 1


@pytest.mark.skipif(os.name != "posix", reason="this system has no such signal")
def test_interrupt_at_exit_shows_no_traceback(home: Path, sink: Sink) -> None:
    import signal
    import socket
    import subprocess

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and answers nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        choose(home, exporter="otlp", otlp_endpoint=url, exit_timeout=60.0)
        environment = {**os.environ, **OUTSIDE}
        command = [sys.executable, "-c", HOST + COUNT + "print('over', flush=True)", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None and process.stdout.readline() == "over\n"
            silent.settimeout(20)
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
            connection.close()
    assert "Traceback" not in errors and "Exception ignored" not in errors
    assert errors.count("\n") == 1  # the first time


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_count_too(home: Path, tmp_path: Path, method: str) -> None:
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    (tmp_path / "program.py").write_text(f"""
import multiprocessing, warnings
from profiler import Telemetry
warnings.simplefilter("ignore")
telemetry = Telemetry("digits", "1", features=("a",))
def work(times):
    for _ in range(times):
        telemetry.feature("a")
if __name__ == "__main__":
    telemetry.feature("a")
    context = multiprocessing.get_context("{method}")
    processes = [context.Process(target=work, args=(1_000,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    pool = context.Pool(1)
    pool.map(work, [1_000])
    pool.close()
    pool.join()
""")
    answer = python(str(tmp_path / "program.py"))
    assert (answer.code, answer.err) == (0, "")
    assert sum(kept.counts.total for kept in UsageLedger(home / "usage" / "digits").kept()) == 3_001


def test_users_headers_stay_with_users_collector(sink: Sink, home: Path) -> None:
    for _ in range(2):
        host(sink, EPOCHMETER_OTLP_HEADERS="authorization=Bearer secret", OTEL_EXPORTER_OTLP_HEADERS="x-token=secret")
    (received,) = metrics(sink)
    assert "secret" not in str(received.headers) and "authorization" not in received.headers


def test_switching_off_stops_waiting_summary(sink: Sink, home: Path) -> None:
    host(sink)
    host(sink)
    host(sink)  # counted, and to be summed up with the next ones
    ledger = UsageLedger(home / "usage" / "digits")
    assert len(ledger.pending()) == 1
    assert epochmeter("settings", "sync=false").code == 0
    assert ledger.pending() == []
    assert epochmeter("settings", "sync=true").code == 0
    host(sink, "telemetry.close()")
    assert len(metrics(sink)) == 1


def test_usage_off_stops_waiting_summary(sink: Sink, home: Path) -> None:
    """Neither by the command, nor written into the file by hand, nor by the courier of a run to the same collector."""
    waiting = home / "outbox" / "waiting"
    mine = {"exporter": "otlp", "otlp_endpoint": sink.url}
    choose(home, **mine)
    sink.status = 503
    host(sink)
    assert len(list(waiting.iterdir())) == 1
    sink.received.clear()
    choose(home, **mine, usage=False)
    python("-c", "from profiler import Profiler\nwith Profiler('x') as p: list(p.train(range(3)))")
    assert [counted(received) for received in metrics(sink)] == [{}]  # the run alone was tried
    sink.received.clear()
    assert epochmeter("telemetry", "flush", EPOCHMETER_USAGE="0").code == 3
    sink.status = 200
    assert epochmeter("telemetry", "flush").code == 0
    assert [counted(received) for received in metrics(sink)] == [{}] * len(metrics(sink))
    sink.received.clear()
    choose(home, **mine)
    sink.status = 503
    host(sink, COUNT + "telemetry.close()")
    assert epochmeter("settings", "usage=false").code == 0
    assert list(waiting.iterdir()) == []


def test_doctor_says_where_packages_send(sink: Sink, home: Path) -> None:
    host(sink)
    told = f"export of digits: digits sends to {sink.url}/v1/metrics, which its author chose; a notice was shown"
    assert told in epochmeter("doctor", **OUTSIDE).out
    assert f"{told}; but not now: CI" in epochmeter("doctor", **{**OUTSIDE, "CI": "1"}).out
    assert f"{told}; but not now: sync is off" in epochmeter("doctor", **{**OUTSIDE, "DO_NOT_TRACK": "1"}).out
    (kept,) = epochmeter("telemetry", "preview", "usage", "--json", **OUTSIDE).json
    assert kept["why_not"] == "it was counted when it could not be sent, or it has been sent"


def test_without_usage_what_was_counted_stays(sink: Sink, home: Path) -> None:
    for _ in range(3):
        host(sink)
    assert epochmeter("settings", "usage=false").code == 0
    assert epochmeter("settings", "usage=true").code == 0
    host(sink, "telemetry.close()")
    assert len(metrics(sink)) == 1
    assert sum(kept.counts.features["export"] for kept in UsageLedger(home / "usage" / "digits").kept()) == 30


def test_summary_waits_for_dead_collector(home: Path, sink: Sink) -> None:
    url, sink.url = sink.url, "http://127.0.0.1:9"
    host(sink)
    answer = host(sink, COUNT + "telemetry.close()", EPOCHMETER_EXIT_TIMEOUT="5")
    assert (answer.code, answer.err) == (0, "")
    choose(home, exporter="otlp", otlp_endpoint=url)
    assert epochmeter("telemetry", "flush", "--adopt").code == 0
    assert [counted(received) for received in metrics(sink)] == [SUMMARY]


def test_flush_sums_up_what_waits(sink: Sink, home: Path) -> None:
    choose(home, exporter="otlp", otlp_endpoint=sink.url)
    for _ in range(3):
        host(sink)
    assert len(metrics(sink)) == 1
    assert epochmeter("telemetry", "flush").code == 0
    assert counted(metrics(sink)[1]) == {name: 2 * times for name, times in SUMMARY.items()}


def test_usage_preview_and_log_equal_sent(sink: Sink, home: Path) -> None:
    choose(home, exporter="otlp", otlp_endpoint=sink.url)
    host(sink)
    host(sink)
    (told,) = epochmeter("telemetry", "preview", "usage", "--json").json
    assert (told["app"], told["what"], told["may_leave"], told["destination"]) == ("digits", "usage", True, sink.url)
    epochmeter("telemetry", "flush")
    assert hashlib.sha256(metrics(sink)[1].content).hexdigest() == told["sha256"]
    assert [entry["sha256"] for entry in epochmeter("telemetry", "log", "--json").json][1] == told["sha256"]
    (kept,) = epochmeter("telemetry", "preview", "usage", "--json").json
    assert kept["may_leave"] is False
    assert "epochmeter.usage.feature" in epochmeter("telemetry", "preview").out


def test_same_use_sends_same_bytes(sink: Sink, tmp_path: Path) -> None:
    """But for ids that are drawn at random, and times."""
    crashing = f"""
import sys
sys.path.insert(0, sys.argv[2])
{HOST}{COUNT}
import digits
with telemetry.guard():
    digits.fail(sys.argv[3])
"""
    bodies = []
    for user in ("alice", "bob"):
        place = tmp_path / user / "home of " / user
        place.mkdir(parents=True)
        (place / "digits.py").write_text("def fail(text):\n    text = text * 2\n    raise KeyError(text)\n")
        choose(place / "settings", exporter="otlp", otlp_endpoint=sink.url, crash_reports=True)
        theirs = {"HOME": str(place), "USER": user, "LOGNAME": user, "EPOCHMETER_HOME": str(place / "settings"), "SECRET": user}
        at_terminal("-c", crashing, sink.url, str(place), f"--token={user}", **{**OUTSIDE, **theirs})
        sent = {received.path: received.content for received in sink.received}
        sink.received.clear()
        summary = ExportMetricsServiceRequest.FromString(sent["/v1/metrics"])
        for metric in summary.resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.sum.data_points:
                point.start_time_unix_nano = point.time_unix_nano = 0
        id_ = next(a for a in summary.resource_metrics[0].resource.attributes if a.key == "service.instance.id")
        id_.value.string_value = ""
        event = json.loads(sent["/api/42/envelope/"].splitlines()[2])
        assert event["exception"]["values"][0]["stacktrace"]["frames"][-1]["function"] == "digits:fail:+2"
        bodies.append((summary.SerializeToString(), {**event, "event_id": "", "timestamp": ""}))
    assert bodies[0] == bodies[1]


def test_summary_texts_are_on_the_list(sink: Sink, home: Path) -> None:
    from exporters import Declared
    from exporters.schema import vocabulary
    from support.messages import texts

    for _ in range(2):
        host(sink)
    declared = Declared("digits", ("digits",), ("export", "augment"), (("fit", ("epochs", "data")), ("predict", ())))
    request = metrics(sink)[0].content
    found = set(texts(ExportMetricsServiceRequest.FromString(request)))
    random = facts(metrics(sink)[0])["service.instance.id"]
    assert found - {*vocabulary(declared), random, "1.2.3"} == set()
    assert {"export", "augment", "fit", "epochs"} <= found


def test_to_google_analytics_as_counts_of_cells(sink: Sink, home: Path) -> None:
    from support.ga_rules import messages

    choose(home, exporter="ga", ga_measurement_id="G-ABC123DEF4", ga_endpoint=sink.url)
    host(sink, EPOCHMETER_GA_API_SECRET="secret")
    assert [messages(received.content) for received in sink.received] == [[]] * len(sink.received)
    events = [event for received in sink.received for event in json.loads(received.content)["events"]]
    cells = {(event["params"]["metric"], event["params"]["cell"]): event["params"]["n"] for event in events}
    assert cells["usage_features", "export"] == 10
    assert cells["usage_options", "fit.epochs"] == 1
    assert cells["app_version", "1.2.3"] == 1


def test_to_an_exporter_of_the_packages_own(home: Path, sink: Sink) -> None:
    script = """
import sys
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
from profiler import Telemetry
telemetry = Telemetry("digits", "1.2.3", features=("export",), exporter=ConsoleMetricExporter())
telemetry.feature("export")
telemetry.close()
"""
    first, second = (at_terminal("-c", script, **OUTSIDE) for _ in range(2))
    assert first.out == "" and "an exporter of its own" in first.err
    assert '"epochmeter.usage.features"' in second.out and second.err == ""
    assert at_terminal("-c", script, **{**OUTSIDE, "CI": "1"}).out == ""


def test_unreleased_version_is_not_sent(sink: Sink, home: Path) -> None:
    script = HOST.replace("1.2.3", "1.3.dev4+g1f2e3d4") + COUNT
    for _ in range(2):
        at_terminal("-c", script, sink.url, **OUTSIDE)
    assert facts(metrics(sink)[0])["epochmeter.app.version"] == "dev"
    assert b"1f2e3d4" not in metrics(sink)[0].content


def test_what_kind_of_place_it_is_is_told(sink: Sink, home: Path) -> None:
    choose(home, exporter="otlp", otlp_endpoint=sink.url)
    host(sink, CI="canary", KAGGLE_KERNEL_RUN_TYPE="canary", COLAB_RELEASE_TAG="canary", KUBERNETES_SERVICE_HOST="canary")
    found = {name for name, value in facts(metrics(sink)[0]).items() if value is True}
    assert found == {f"epochmeter.runtime.{place}" for place in ("ci", "kaggle", "colab", "container")}
    assert b"canary" not in metrics(sink)[0].content


def test_how_it_is_installed_is_told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Telemetry("nobody-has-this", "1").facts() == {"name": "nobody-has-this", "version": "1", "install": "source"}
    sources = str(Path(__file__).parents[2])  # its build has left metadata there, too
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", sources)])
    assert Telemetry("epochmeter", "1").facts()["install"] == "direct"  # from this folder
    (tmp_path / "of_sources.egg-info").mkdir()
    (tmp_path / "of_sources.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: of-sources\nVersion: 1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # syspath_prepend would put the path above back in the end
    assert Telemetry("of-sources", "1").facts()["install"] == "source"  # a folder that something was built in
    assert Telemetry("pytest", "1").facts() == {"name": "pytest", "version": "1", "install": "index", "installer": "pip"}


# ---- the host goes first -------------------------------------------------------------------------------------------


def test_making_one_loads_nothing_and_starts_no_thread() -> None:
    script = """
import sys, threading
from profiler import Telemetry
before = set(sys.modules)
telemetry = Telemetry("digits", "1", features=("a",), commands={"fit": ("b",)}, exporter="otlp", crash_dsn="https://k@h/1",
                      settings={"otlp_endpoint": "http://127.0.0.1:1"})
telemetry.feature("a")
print(set(sys.modules) - before, threading.active_count(), " ".join(sys.modules), sep="|")
"""
    loaded, threads, *modules = python("-c", script).out.split("|")
    assert (loaded if sys.version_info >= (3, 11) else "set()", threads) == ("set()", "1" if ENDS_WITH_THREADS else "2")
    ours = {name for name in modules[0].split() if name.startswith(("profiler", "exporters"))}
    assert ours == {
        "profiler",
        "profiler.embedding",
        "profiler.embedding.telemetry",
        "profiler.embedding.arguments",
        "profiler.embedding.guard",
        "profiler.embedding.command_counter",
        "profiler.embedding.counters",
        "profiler.embedding.shipper",
        "profiler.errors",
        "profiler.records",
        "profiler.records.faults",
    }
    assert not {"torch", "opentelemetry", "requests", "sentry_sdk", "psutil", "typer", "rich"} & set(modules[0].split())


def test_exporters_are_not_loaded_while_off(home: Path) -> None:
    script = """
import sys
from profiler import Telemetry
telemetry = Telemetry("digits", "1", features=("a",))
telemetry.feature("a")
telemetry.close()
print(*[name for name in sys.modules if name.startswith(("exporters", "opentelemetry", "requests", "urllib3"))])
"""
    assert python("-c", script).out.strip() == ""
    (kept,) = UsageLedger(home / "usage" / "digits").kept()
    assert kept.counts.features == {"a": 1}


def test_with_local_off_nothing_is_kept(home: Path) -> None:
    choose(home, local=False)
    telemetry = Telemetry("digits", "1", features=("a",))
    telemetry.feature("a")
    telemetry.capture_exception(ValueError())
    telemetry.close()
    assert sorted(path.name for path in home.iterdir()) == ["settings.json"]


def test_a_disk_that_takes_nothing_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EPOCHMETER_HOME", str(tmp_path / "file" / "home"))
    telemetry = Telemetry("digits", "1", features=("a",))
    telemetry.feature("a")
    telemetry.capture_exception(ValueError())
    telemetry.close()
    assert telemetry._shipper.notes == {
        "a crash could not be noted: Not a directory": 1,
        "counts could not be kept: Not a directory": 1,
    }


def test_a_long_run_sends_on_its_way(sink: Sink, home: Path) -> None:
    choose(home, exporter="otlp", otlp_endpoint=sink.url, export_interval=0.2)
    work = """
import threading, time
telemetry.run()  # Python 3.12.1 starts the thread of the end first
telemetry._look_at = 0  # a minute later
telemetry.feature("export")
assert [t.name for t in threading.enumerate() if t.name.startswith("epochmeter")], "a thread sends it"
assert all(t.daemon for t in threading.enumerate() if t is not threading.main_thread())
deadline = time.monotonic() + 20
while any(t.name == "epochmeter-telemetry" for t in threading.enumerate()) and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.3)
telemetry.feature("export")
telemetry.feature("export")
"""
    answer = host(sink, work)
    assert answer.code == 0, answer.err
    assert metrics(sink), "nothing was sent on the way"
    host(sink, "telemetry.close()")  # for what came so late that the next summary was not due
    total: Counter[tuple[str, ...]] = Counter()
    for received in metrics(sink):
        total.update(counted(received))
    assert total == {("features", "export"): 3} and len(metrics(sink)) >= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_counts_for_itself(sink: Sink, home: Path) -> None:
    work = """
import os
telemetry.feature("export")
child = os.fork()
telemetry.feature("augment" if child == 0 else "export")
if child:
    os.waitpid(child, 0)
"""
    host(sink)
    host(sink, work + "    telemetry.close()\n")
    host(sink, "telemetry.close()")
    total: Counter[tuple[str, ...]] = Counter()
    for received in metrics(sink):
        total.update(counted(received))
    assert total == {("features", "export"): 2, ("features", "augment"): 1}


# ---- the ledger ----------------------------------------------------------------------------------------------------

DECLARED = {"app": "digits", "modules": ["digits"], "features": ["a"], "commands": []}


def one(times: int = 1, choice: list[Any] | None = None, version: str = "1", at: int = 1) -> Counted:
    return Counted(at, at + 1, version, DECLARED, Counts({"a": times}), choice=choice)


def test_summary_keeps_id_until_in_outbox(tmp_path: Path) -> None:
    ledger = UsageLedger(tmp_path)
    for times in (1, 2, 3):
        ledger.add(one(times, ["then"], at=times))
    ((previewed, _),) = ledger.pending()
    ((summary, counted_),) = ledger.summaries(["then"])
    assert (previewed, counted_.counts.features) == (summary, {"a": 6})
    ledger.add(one(10, ["then"], at=9))  # and here the process is killed
    found = dict(UsageLedger(tmp_path).summaries(["then"]))
    assert found[summary].counts.features == {"a": 6}
    assert sorted(entry.counts.features["a"] for entry in found.values()) == [6, 10]
    for name in found:
        ledger.sent(name, keep=True)
    assert ledger.summaries(["then"]) == []
    assert sum(entry.counts.features["a"] for entry in ledger.kept()) == 16


def test_counts_of_another_choice_stay_here(tmp_path: Path) -> None:
    ledger = UsageLedger(tmp_path)
    ledger.add(one(1, ["then"]))
    assert ledger.summaries(["now"]) == []
    assert [entry.counts.features for entry in ledger.kept()] == [{"a": 1}]
    ledger.add(one(2, ["then"]))
    ledger.summaries(["then"])  # being summed up when the choice changes
    assert ledger.summaries(["now"]) == []
    assert len(ledger.kept()) == 2


def test_versions_are_told_apart(tmp_path: Path) -> None:
    ledger = UsageLedger(tmp_path)
    ledger.add(one(1, ["then"], "1", 1))
    ledger.add(one(2, ["then"], "2", 2))
    assert {entry.version: entry.counts.features["a"] for _, entry in ledger.summaries(["then"])} == {"1": 1, "2": 2}


def test_files_merge_without_double_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = UsageLedger(tmp_path)
    for _ in range(MERGED_FROM + 10):
        ledger.add(one())
    remove = Folder.remove
    removed: list[str] = []

    def killed(self: Folder, name: str) -> None:
        if len(removed) == 5:
            raise KeyboardInterrupt
        removed.append(name)
        remove(self, name)

    monkeypatch.setattr(Folder, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        ledger.tidy(1e6)
    monkeypatch.undo()
    assert sum(entry.counts.features["a"] for entry in ledger.kept()) == MERGED_FROM + 10
    ledger.tidy(1e6)
    ledger.tidy(1e6)
    assert [entry.counts.features["a"] for entry in ledger.kept()] == [MERGED_FROM + 10]
    assert len(list((tmp_path / "kept").iterdir())) == 1
    ledger.tidy(1.0)  # it is of 1970
    assert ledger.kept() == []


def test_kept_files_are_tidied(home: Path) -> None:
    ledger = UsageLedger(home / "usage" / "digits")
    for _ in range(MERGED_FROM):
        ledger.add(one(at=time.time_ns()))
    ledger.add(one(5))  # of 1970
    telemetry = Telemetry("digits", "1", features=("a",))
    telemetry.feature("a")
    telemetry.close()
    assert sum(entry.counts.features["a"] for entry in ledger.kept()) == MERGED_FROM + 1
    assert len(list((home / "usage" / "digits" / "kept").iterdir())) == 1


def test_kept_crashes_are_bounded(home: Path) -> None:
    old = home / "crashes" / f"{1:020d}-000000000000.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    os.utime(old, (1, 1))
    for _ in range(6):
        telemetry = Telemetry("digits", "1")
        for _ in range(10):
            telemetry.capture_exception(ValueError())
    assert not old.exists()
    assert len(list(old.parent.iterdir())) == 50


def test_faulty_body_is_dropped_and_reported(sink: Sink, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporters import payload

    for name in OUTSIDE:
        monkeypatch.setenv(name, "")
    choose(home, exporter="otlp", otlp_endpoint=sink.url)
    telemetry = Telemetry("digits", "1", features=("a",))
    made = payload.bodies
    monkeypatch.setattr(payload, "bodies", lambda data, usage: [made(data, usage)[0].replace(b"digits", b"canary")])
    telemetry.feature("a")
    telemetry.close()
    assert sink.received == []
    ledger = UsageLedger(home / "usage" / "digits")
    assert (ledger.pending(), ledger.kept()[0].counts.features) == ([], {"a": 1})
    assert [note for entry in ledger.kept() for note in entry.notes if "epochmeter.app.name" in note]


def test_spoilt_files_are_passed_over(tmp_path: Path) -> None:
    ledger = UsageLedger(tmp_path)
    ledger.add(one(1, ["then"]))
    for name in ("x-1.json", "x-2.json"):
        (tmp_path / "pending" / name).write_text("{" if name == "x-1.json" else "[]")
    assert len(ledger.summaries(["then"])) == 1
