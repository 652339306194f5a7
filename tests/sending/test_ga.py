"""Google Analytics: bodies under the protocol's rules, held against an independent set of them, and never a second copy."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporters import entropy, ga_payload
from exporters.allowlist import facts
from exporters.measurements import Outgoing, OutgoingMetric, Snapshot
from exporters.outbox import Outbox
from exporters.rebuild import rebuild
from exporters.rules import Declared
from profiler import Phase, Profiler, settings
from profiler.config.folder import Folder
from profiler.records.histogram import Histogram
from profiler.records.run import EpochRecord, Run
from profiler.records.timing import Timing
from profiler.sending.flush import flush
from profiler.sending.snapshot import run_snapshot
from support import ga_rules
from support.exports import a_run, data
from support.ga_rules import Google, google, messages
from support.processes import KILLED, epochmeter, python

GOLDEN = Path(__file__).parents[1] / "golden" / "ga"
FEATURE = "epochmeter.usage.feature"
STARTED = 1_790_000_000_000_000_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    monkeypatch.setenv("EPOCHMETER_GA_API_SECRET", "s3cret")
    with google() as found:
        settings.update(exporter="ga", ga_measurement_id="G-TEST", ga_endpoint=found.url)
        yield found


def train(epochs: int = 3, **more: Any) -> Profiler:
    with Profiler("secret-run", **more) as prof:
        for _ in prof.epochs(epochs):
            for _ in prof.train(range(10), samples=4):
                with prof.phase(Phase.FORWARD), prof.phase("secret-phase"):
                    pass
            list(prof.validate(range(3)))
    return prof


def box(home: Path) -> Outbox:
    return Outbox(Folder(home / "outbox"))


# ---- the payload ---------------------------------------------------------------------------------------------------


def timing(*milliseconds: float) -> Timing:
    found = Timing()
    found.steady.add([round(ms * 1e6) for ms in milliseconds])
    return found


def measured() -> Run:
    """Three epochs of training and validation, on a machine that is described."""
    run = Run("0123456789ab", "secret-run", STARTED)
    for index, seconds in enumerate((3, 5, 5)):
        epoch = EpochRecord(index, duration_ns=seconds * 10**9)
        for name, share in (("train", 0.75), ("val", 0.25)):
            stage = epoch.stage(name)
            stage.duration_ns, stage.steps, stage.passes = round(seconds * share * 1e9), 4, 1
            stage.step = timing(3, 5, 5, 90)
            stage.phases[("forward",)] = timing(1, 1, 2, 30)
            stage.phases[("forward", "secret")] = timing(1)
            stage.phases[("secret",)] = timing(7)
        run.epochs.append(epoch)
    run.duration_ns = 13 * 10**9
    run.hardware.cpu.update(family="AMD EPYC", logical_cores=24)
    run.hardware.memory.update(total_class_gib=256)
    run.hardware.runtime.update(os="linux", python="3.11", torch="2.13", container=True)
    run.hardware.gpus = {index: {"name": "NVIDIA H100 80GB HBM3", "memory_class_gb": 80} for index in range(2)}
    return run


def bodies(run: Run, usage: bool = True) -> list[bytes]:
    numbers = itertools.count(1_000_000_001)
    return ga_payload.bodies(rebuild(data(run), "ga"), usage, lambda: next(numbers))


@pytest.mark.parametrize("name", ["run", "run-without-usage"])
def test_the_bodies_are_those_that_were_reviewed(name: str) -> None:
    told = [json.loads(body) for body in bodies(measured(), usage=name == "run")]
    assert told == json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))


def test_reviewed_bodies_are_valid_and_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in GOLDEN.glob("*.json"):
        for body in json.loads(path.read_text("utf-8")):
            raw = json.dumps(body, separators=(",", ":")).encode()
            assert messages(raw, now=STARTED / 1e9) == []
            monkeypatch.setattr(ga_payload.time, "time_ns", lambda: STARTED)
            assert ga_payload.first_fault(raw) is None
            assert b"secret" not in raw and b"0123456789ab" not in raw


def test_run_without_events_sends_nothing() -> None:
    """Such as one that was killed in its first epoch, or a benchmark: its machine alone would have no time."""
    run = Run("a1b2c3d4e5f6", "short", time.time_ns(), duration_ns=10**9)
    run.hardware.runtime["python"] = "3.11"
    found = rebuild(run_snapshot(run, run.started_unix_ns + run.duration_ns), "ga")
    assert found.facts and not ga_payload.bodies(found)


def test_the_preview_of_such_a_run_says_so() -> None:
    with Profiler("nothing yet"):
        pass
    chosen = {"EPOCHMETER_EXPORTER": "ga", "EPOCHMETER_GA_MEASUREMENT_ID": "G-TEST", "EPOCHMETER_GA_API_SECRET": "x"}
    said = epochmeter("telemetry", "preview", **chosen)
    assert (said.code, said.out) == (0, "") and "measured nothing that is sent to ga" in said.err
    assert "body" not in epochmeter("telemetry", "preview", "--json", **chosen).json


def test_epochs_count_by_cell_steps_by_median() -> None:
    cells = [
        (p["metric"], p["cell"], p["n"]) for b in bodies(measured()) for p in (e["params"] for e in json.loads(b)["events"])
    ]
    assert ("epoch_duration", "2 to 4 s", 1) in cells and (
        "epoch_duration",
        "4 to 8 s",
        1,
    ) in cells
    assert ("stage_duration_train", "2 to 4 s", 1) in cells and ("stage_duration_val", "1 to 2 s", 1) in cells
    assert [cell for cell in cells if cell[0] == "step_duration_train"] == [("step_duration_train", "1/256 to 1/128 s", 1)]
    assert ("gpu_model", "H100", 1) in cells and ("cpu_logical_cores", "24", 1) in cells
    assert {cell for metric, cell, _ in cells if metric == "usage"} == {"train", "val", "forward", "custom"}
    assert not [metric for metric, _, _ in cells if "secret" in metric]


def histogram_of(*seconds: float) -> Histogram:
    found = Histogram()
    found.add([round(s * 1e9) for s in seconds])
    return found


@pytest.mark.parametrize(
    ("seconds", "cell"),
    [
        (0, "up to 1/1048576 s"),
        (9.5e-7, "up to 1/1048576 s"),
        (0.25, "1/8 to 1/4 s"),
        (0.2500001, "1/4 to 1/2 s"),
        (1, "1/2 to 1 s"),
        (1.001, "1 to 2 s"),
        (2.0**20, "524288 to 1048576 s"),
        (2.0**20 + 1, "above 1048576 s"),
    ],
)
def test_duration_lies_in_its_cell(seconds: float, cell: str) -> None:
    run = measured()
    run.epochs = [EpochRecord(0, duration_ns=round(seconds * 1e9))]
    told = [e["params"] for b in bodies(run) for e in json.loads(b)["events"] if e["params"]["metric"] == "epoch_duration"]
    assert [(params["cell"], params["n"]) for params in told] == [(cell, 1)]


def test_a_coarse_histogram_still_has_its_counts() -> None:
    run = measured()
    run.epochs = [EpochRecord(n, duration_ns=ns) for n, ns in enumerate((1, 10**3, 10**6, 10**9, 10**12, 10**15))]
    told = [e["params"]["n"] for b in bodies(run) for e in json.loads(b)["events"] if e["params"]["metric"] == "epoch_duration"]
    assert sum(told) == 6


# ---- limits --------------------------------------------------------------------------------------------------------


def test_each_request_has_one_cell_of_its_own() -> None:
    """Marginals only: no request, and no pair of them, says which facts are of the same machine."""
    run = measured()
    run.started_unix_ns = time.time_ns()
    made = [json.loads(body) for body in ga_payload.bodies(rebuild(data(run), "ga"))]
    assert len(made) > 20 and {len(body["events"]) for body in made} == {1}
    assert (
        len({body["client_id"] for body in made})
        == len({body["events"][0]["params"]["session_id"] for body in made})
        == len(made)
    )
    hours = {(run.started_unix_ns // 3_600_000_000_000) - body["timestamp_micros"] // 3_600_000_000 for body in made}
    assert len(hours) > 5 and min(hours) >= -1 and max(hours) <= ga_payload.JITTER_HOURS


@pytest.mark.parametrize(("exact", "told"), [(1, 1), (9, 1), (10, 10), (99, 10), (100, 100), (12_345, 1000), (0, 1)])
def test_how_often_is_a_class(exact: int, told: int) -> None:
    outgoing = Outgoing({}, (OutgoingMetric("epochmeter.usage.features", "", "", "sum", (({FEATURE: "a"}, exact),)),), 0, 1)
    assert list(ga_payload._cells(outgoing, True)) == [("usage_features", "a", told)]


def test_a_request_tells_twelve_bits_at_most() -> None:
    names = tuple(f"f{number}" for number in range(1000))
    largest = Declared("digits", (), names, tuple((name, ()) for name in names))
    for declared in (None, largest):
        assert max(entropy.request_bits(declared).values()) <= entropy.GA_GOAL
    assert entropy.budget()["ga"] <= entropy.GA_GOAL < entropy.budget()["otlp"]


def test_entropy_is_shannons() -> None:
    assert entropy.entropy_of({"a": 0.5, "b": 0.5}) == 1.0
    assert entropy.entropy_of({"a": 0.5, "b": 0.25}) == 1.5  # the rest is "other"
    assert entropy.entropy_of({"a": 1.0}) == 0.0
    assert {field.name for field in entropy.facts_of("otlp")} == set(facts("otlp"))
    shown = epochmeter("telemetry", "schema", "--entropy", "--json").json
    assert shown["payload"] == entropy.budget()
    assert "one request (goal: 12)" in epochmeter("telemetry", "schema", "--entropy").out


def event(**params: Any) -> dict[str, Any]:
    base = {"metric": "usage", "cell": "train", "n": 1, "session_id": 1, "engagement_time_msec": 1}
    return {"name": "m", "params": {**base, **params}}


def request(*events: dict[str, Any], **more: Any) -> bytes:
    hour = int(time.time()) // 3600 * 3_600_000_000
    base = {"client_id": "1.2", "timestamp_micros": hour, "consent": dict(ga_payload.CONSENT), "events": list(events)}
    return json.dumps({**base, **more}, separators=(",", ":")).encode()


def padded(size: int) -> bytes:
    body = request(event())
    return body + b" " * (size - len(body))


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (request(*[event()] * 25), request(*[event()] * 26)),
        (padded(129_999), padded(130_001)),
        (request({"name": "m" * 40}), request({"name": "m" * 41})),
        (request(event(**{"p" * 40: 1})), request(event(**{"p" * 41: 1}))),
        (request(event(cell="c" * 100)), request(event(cell="c" * 101))),
        (request(event(**{f"p{n}": 1 for n in range(20)})), request(event(**{f"p{n}": 1 for n in range(21)}))),
        (request(event()), request(event(ga_x=1))),
        (request(event()), request(event(n=True))),
        (request(event()), request({"name": "session_start"})),
        (request(event()), request(event(), client_id="0.1")),
        (request(event()), request(event(), timestamp_micros=int((time.time() - 73 * 3600) * 1e6))),
        (request(event()), request(event(), consent={"ad_user_data": "PERHAPS"})),
        (request(event()), request(event(), host="me")),
        (request(event()), request()),
    ],
)
def test_the_rules_of_the_test_are_strict(good: bytes, bad: bytes) -> None:
    assert messages(good) == []
    assert messages(bad) != []


@pytest.mark.parametrize(
    "spoilt",
    [
        request(*[event()] * 2),
        padded(130_001),
        request(event()) + b" ",
        request(),
        b'{"client_id":"alice",' + request(event())[1:],
        b'{"secret":1,' + request(event())[1:],
        request(event(n=10**300)),
        request(event(n=7)),
        request(event(session_id=10**80)),
        request(event(engagement_time_msec=0x616C696365)),
        request(event(metric="app_version", cell="9999.9999.9999.9999rc999")),
        request(event(), timestamp_micros=-3_600_000_000 * 5),
        request(event(), timestamp_micros=(int(time.time()) // 3600 - 73) * 3_600_000_000),
        request(event(metric="secret")),
        request(event(cell="secret")),
        request(event(n=0)),
        request(event(n=1.5)),
        request(event(more=1)),
        request({**event(), "name": "other"}),
        request(event(), client_id="me@home.1"),
        request(event(), user_id="me"),
        request(event(), timestamp_micros=1_790_000_000_123_456),
        request(event(), consent={"ad_user_data": "GRANTED", "ad_personalization": "DENIED"}),
        b"[]",
        b"\xff",
    ],
)
def test_own_check_finds_unlisted_events(spoilt: bytes) -> None:
    assert ga_payload.first_fault(request(event())) is None
    assert ga_payload.first_fault(spoilt) is not None


def test_vocabulary_is_within_limits() -> None:
    for metric, cells in ga_payload.vocabulary().items():
        for cell in cells:
            assert messages(request(event(metric=metric, cell=cell))) == []


def test_real_runs_are_valid(server: Google) -> None:
    run: Snapshot = data(a_run())
    for body in ga_payload.bodies(rebuild(run, "ga")):
        assert (messages(body), ga_payload.first_fault(body)) == ([], None)


# ---- delivery ------------------------------------------------------------------------------------------------------


def test_a_run_is_told_once_at_its_end(server: Google, home: Path) -> None:
    train(settings={"export_interval": 0.01}, interval=0.01)
    assert server.faults == []
    cells = server.cells()
    assert sum(metric == "epoch_duration" for metric, _, _ in cells) >= 1
    assert len(cells) == len({(metric, cell) for metric, cell, _ in cells})
    assert server.queries[0] == {"api_secret": ["s3cret"], "measurement_id": ["G-TEST"]}
    assert "secret" not in json.dumps(server.collected)
    assert len({body["client_id"] for body in server.collected}) == len(server.collected)
    assert box(home).waiting() == []


def test_request_headers_equal_printed_ones(server: Google) -> None:
    train()
    printed = epochmeter("telemetry", "schema", "--json").json["ga"]
    assert {name: server.headers[0][name] for name in printed["headers"]} == printed["headers"]
    assert set(server.headers[0]) - set(printed["headers"]) <= {"host", "content-length", "connection"}
    assert {(metric, cell) for metric, cell, _ in server.cells()} <= {
        (metric, cell) for metric, cells in printed["metrics"].items() for cell in cells
    }


def test_the_secret_is_not_kept_or_shown(server: Google, home: Path) -> None:
    train()
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert b"s3cret" not in kept
    logged = epochmeter("telemetry", "log")
    assert "s3cret" not in logged.out and f"{server.url}/mp/collect" in logged.out and "HTTP 204" in logged.out


@pytest.mark.parametrize("status", [204, 200, 400, 429, 500, 503])
def test_after_any_answer_nothing_is_sent_again(server: Google, home: Path, status: int) -> None:
    server.status = status
    train()
    known = len(server.collected)
    flush()
    flush(again=True)
    assert len(server.collected) == known
    assert len({body["client_id"] for body in server.collected}) == known
    assert (box(home).waiting(), box(home).aside()) == ([], [])
    assert box(home).dropped() == ({} if status < 400 else {"final": known})


def test_what_may_have_arrived_is_not_sent_again(server: Google, home: Path) -> None:
    server.hangs_up = True
    train()
    server.hangs_up = False
    assert (flush().left, len(server.cells())) == (0, len(set(server.cells())))
    assert list(box(home).dropped()) == ["final"]
    assert "not sent again, as it may have been counted" in epochmeter("telemetry", "log").out


def test_what_cannot_have_arrived_waits(server: Google, home: Path) -> None:
    settings.update(ga_endpoint="http://127.0.0.1:9")
    train()
    waiting = len(box(home).waiting())
    assert waiting >= 1
    settings.update(ga_endpoint=server.url)
    done = flush(adopt=True)
    assert (done.delivered, done.left, server.faults) == (waiting, 0, [])
    assert len(server.cells()) == len(set(server.cells()))


def test_what_waited_for_72_hours_is_given_up(server: Google, home: Path) -> None:
    settings.update(ga_endpoint="http://127.0.0.1:9")
    train()
    later = Outbox(Folder(home / "outbox"), clock=lambda: time.time() + 70.5 * 3600)
    waiting = len(later.waiting())
    later.expire()
    assert (later.waiting(), later.dropped()) == ([], {"expired": waiting})


LONG_AGO = """
import time
real = time.time_ns
time.time_ns = lambda: real() - 5 * 86_400 * 10**9
"""


def test_run_measured_days_ago_is_not_told(server: Google, home: Path) -> None:
    """The time of the measurement counts, not the time at which its log was found."""
    assert python("-c", LONG_AGO + KILLED).code == -9
    assert len(list((home / "outbox" / "open").iterdir())) == 1
    for path in (home / "runs").iterdir():  # the file system's clock was not set back
        os.utime(path, (time.time() - 5 * 86_400,) * 2)
    time.sleep(2.1)  # a run's note in the outbox is left alone for two seconds
    train()
    oldest = min(body["timestamp_micros"] for body in server.collected)
    assert time.time() - oldest / 1e6 < 72 * 3600 and server.faults == []
    assert box(home).dropped() == {"expired": 1} and list(box(home).open_runs()) == []


def test_without_usage_nothing_is_told_of_it(server: Google) -> None:
    train(settings={"usage": False})
    assert "usage" not in {metric for metric, _, _ in server.cells()}
    assert "epoch_duration" in {metric for metric, _, _ in server.cells()}


def test_the_eu_endpoint_and_a_proxys_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.config.resolve import resolve
    from profiler.sending.destination import destination

    monkeypatch.setenv("EPOCHMETER_GA_API_SECRET", "x")
    for endpoint, address in (
        (None, "https://www.google-analytics.com/mp/collect"),
        ("https://region1.google-analytics.com", "https://region1.google-analytics.com/mp/collect"),
        ("https://relay.example/ga", "https://relay.example/ga"),
    ):
        chosen = {"exporter": "ga", "ga_measurement_id": "G-1", "ga_endpoint": endpoint}
        assert destination(resolve(chosen))["address"] == address


# ---- the user's explicit word --------------------------------------------------------------------------------------


def test_check_asks_the_validation_server_and_counts_nothing(server: Google) -> None:
    with Profiler("x", exporter="none") as prof:
        for _ in prof.epochs(2):
            list(prof.train(range(3)))
    answer = epochmeter("telemetry", "preview", "--check")
    assert answer.code == 0, answer.err
    assert "HTTP 200, 0 messages" in answer.out
    assert server.collected == [] and server.validated[0]["validation_behavior"] == "ENFORCE_RECOMMENDATIONS"
    (entry, *_) = epochmeter("telemetry", "log", "--json").json
    assert (entry["destination"], entry["answer"]) == (f"{server.url}/debug/mp/collect (validation)", "HTTP 200")


def test_check_shows_messages_and_fails(server: Google, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ga_rules, "RESERVED_EVENTS", {"m"})
    train()
    answer = epochmeter("telemetry", "preview", "--check")
    assert answer.code == 1
    assert "NAME_RESERVED" in answer.out


def test_check_posts_nothing_to_a_relay(server: Google) -> None:
    train(exporter="none")
    answer = epochmeter("telemetry", "preview", "--check", EPOCHMETER_GA_ENDPOINT=f"{server.url}/relay")
    assert (answer.code, server.collected, server.validated) == (2, [], [])
    assert "no validation server is known" in answer.err


@pytest.mark.parametrize("environment", [{"DO_NOT_TRACK": "1"}, {"EPOCHMETER_EXPORTER": "none"}])
def test_off_is_off_for_check_too(server: Google, environment: dict[str, str]) -> None:
    train(exporter="none")
    answer = epochmeter("telemetry", "preview", "--check", **environment)
    assert (answer.code, server.validated) == (2, [])


def test_preview_shows_the_events(server: Google) -> None:
    prof = train()
    told = epochmeter("telemetry", "preview", "--json").json
    cells = [
        (e["params"]["metric"], e["params"]["cell"])
        for part in (told, *told.get("more", ()))
        for e in part["content"]["events"]
    ]
    assert set(cells) == {(metric, cell) for metric, cell, _ in server.cells()}
    assert told["destination"] == f"{server.url}/mp/collect" and told["run"] == prof.summary.id


def test_missing_secret_sends_nothing_with_reason(server: Google, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EPOCHMETER_GA_API_SECRET")
    notes = train().summary.to_dict()["notes"]
    assert server.collected == [] and "EPOCHMETER_GA_API_SECRET" in str(notes)
    assert "EPOCHMETER_GA_API_SECRET" in epochmeter("doctor").out
