"""The courier alone: what it asks before it sends, and what it does with each answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import exporters
from exporters import ga_payload
from exporters.bounds import OTHER_TIME
from exporters.config import Answer, Config
from exporters.courier import Courier, Round
from exporters.entry import DestinationKey, Head
from exporters.outbox import Outbox
from exporters.payload import encode
from exporters.rebuild import rebuild
from profiler.config.folder import Folder
from support.exports import a_run, answers, data

KEY = DestinationKey("otlp", "http/protobuf", "http://collector", None)


class Scripted:
    """A transport that answers as told, and keeps what it was given."""

    where = "http://collector"

    def __init__(self, *told: Answer) -> None:
        self.told = list(told)
        self.sent: list[bytes] = []

    def send(self, body: bytes) -> Answer:
        self.sent.append(body)
        return self.told.pop(0) if self.told else Answer("taken", "HTTP 200")

    def close(self) -> None:
        pass


class NoLock:
    def acquire(self, timeout: float) -> None:
        raise NotImplementedError

    def release(self) -> None:
        pass


class Held(NoLock):
    def acquire(self, timeout: float) -> None:
        raise TimeoutError


def courier(
    box: Outbox, transport: Any, consent: Callable[[], bool] = lambda: True, lock: Any = NoLock, **more: Any
) -> Courier:
    config = Config("otlp")
    gate = exporters.gate_for(config, consent)
    more.setdefault("record", lambda where, body: lambda answer: None)
    make = transport if callable(transport) else lambda: transport
    return Courier(box, KEY, gate, make, consent, lock=lambda name: lock(), **more)


def filled(folder: Path, *bodies: bytes) -> Outbox:
    box = Outbox(Folder(folder))
    for number, body in enumerate(bodies):
        box.put(Head(KEY, "aa", box.now()), 1, f"{number:08d}", body)
    return box


def forever() -> float:
    return math.inf


@pytest.fixture(scope="module")
def body() -> bytes:
    return encode(rebuild(data(a_run())))


def test_what_waits_is_delivered_oldest_first(tmp_path: Path, body: bytes) -> None:
    bodies = [encode(rebuild(data(a_run()))) for _ in range(3)]
    transport = Scripted()
    box = filled(tmp_path, *bodies)
    assert courier(box, transport).deliver(forever) == Round(delivered=3)
    assert (transport.sent, box.waiting()) == (bodies, [])


def test_transport_is_made_only_when_needed(tmp_path: Path, body: bytes) -> None:
    def make() -> Any:
        raise AssertionError("made")

    courier(filled(tmp_path / "empty"), make).deliver(forever)
    courier(filled(tmp_path / "full", body), make, lambda: False).deliver(forever)
    with pytest.raises(AssertionError, match="made"):
        courier(filled(tmp_path / "full", body), make).deliver(forever)


def test_no_attempt_begins_that_may_be_cut(tmp_path: Path) -> None:
    """What Google may have got is not sent again, so the program's end must not fall into an attempt."""
    key = DestinationKey("ga", "ga4", "http://collector", None)
    made = ga_payload.bodies(rebuild(data(a_run()), "ga"))
    box = Outbox(Folder(tmp_path))
    for number, each in enumerate(made):
        box.put(Head(key, "aa", box.now()), 1, f"ga{number:03d}", each)

    class Slow(Scripted):
        def send(self, body: bytes) -> Answer:
            time.sleep(0.1)
            return super().send(body)

    transport, config = Slow(), Config("ga", "ga4")
    gate = exporters.gate_for(config, lambda: True)
    until = time.monotonic() + 0.35
    one = Courier(
        box, key, gate, lambda: transport, lambda: True, lambda where, body: lambda answer: None, lambda name: NoLock()
    )
    done = one.deliver(lambda: until)
    assert 1 <= done.delivered <= 3 and done.reason == "the time for delivery was over" and box.under_way() == []
    assert time.monotonic() < until + 0.05
    assert [made.index(body) for body in transport.sent] != [0, 1, 2] or done.delivered < 3


def test_own_fault_before_sending_leaves_nothing_claimed(tmp_path: Path, body: bytes) -> None:
    """An entry that looks as if it were being sent would be given up, or sent twice."""
    transport, box = Scripted(), filled(tmp_path, body)

    def record(where: str, body: bytes) -> Any:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        courier(box, transport, record=record).deliver(forever)
    assert (transport.sent, len(box.waiting()), box.under_way()) == ([], 1, [])


def test_the_bytes_are_checked_again_before_they_go(tmp_path: Path, body: bytes) -> None:
    """An entry may be of another version's list, or have been changed on disk."""
    spoilt = body.replace(b"epochmeter.stage.steps", b"epochmeter.stage.shoes")
    assert spoilt != body
    transport = Scripted()
    box = filled(tmp_path, spoilt, body)
    done = courier(box, transport).deliver(forever)
    assert (transport.sent, done.delivered, box.dropped()) == ([body], 1, {"fault": 1})
    assert "epochmeter.stage.shoes" in done.notes[0]


@pytest.mark.parametrize("days", [-400, 400])
def test_data_of_a_wrong_clock_is_set_aside(tmp_path: Path, body: bytes, days: int) -> None:
    """The clock was set while the entry waited. The entry is neither sent nor lost."""
    here, there = data(a_run()), days * 86_400 * 10**9
    transport = Scripted()
    box = filled(tmp_path, encode(rebuild(here._replace(began=here.began + there, now=here.now + there))), body)
    done = courier(box, transport).deliver(forever)
    assert (transport.sent, done.delivered, done.aside, box.dropped()) == ([body], 1, 1, {})
    assert [why for _, why in box.aside()] == [OTHER_TIME]
    assert box.take_up_again() == 1 and len(box.waiting()) == 1


def test_consent_is_asked_with_the_bytes_in_hand(tmp_path: Path, body: bytes) -> None:
    transport = Scripted()
    box = filled(tmp_path, body)
    done = courier(box, transport, answers(True, True, False)).deliver(forever)
    assert (transport.sent, done.reason, len(box.waiting())) == ([], "there is no consent to send", 1)


def test_body_is_noted_before_answer_after(tmp_path: Path, body: bytes) -> None:
    noted: list[Any] = []
    transport = Scripted(Answer("taken", "HTTP 200"))

    def record(where: str, sent: bytes) -> Callable[[str], None]:
        assert transport.sent == []
        noted.append((where, sent))
        return noted.append

    courier(filled(tmp_path, body), transport, record=record).deliver(forever)
    assert noted == [("http://collector", body), "HTTP 200"]


def test_what_cannot_be_noted_waits(tmp_path: Path, body: bytes) -> None:
    def record(where: str, sent: bytes) -> Callable[[str], None]:
        raise OSError(28, "No space left on device")

    transport = Scripted()
    box = filled(tmp_path, body, body)
    done = courier(box, transport, record=record).deliver(forever)
    assert (transport.sent, len(box.waiting()), done.left) == ([], 2, 2)
    assert "No space left on device" in done.reason


def test_failure_leaves_entries_and_backs_off(tmp_path: Path, body: bytes) -> None:
    transport = Scripted(Answer("later", "HTTP 503"))
    box = filled(tmp_path, body, body)
    found = courier(box, transport)
    done = found.deliver(forever)
    assert (len(transport.sent), done.left, done.reason) == (1, 2, "HTTP 503")
    assert 0.3 < found.backoff_s <= 1.0
    assert box.troubles.of(KEY.digest) == ("HTTP 503", 0.0)
    assert found.deliver(forever) == Round(delivered=2)
    assert (found.backoff_s, box.troubles.of(KEY.digest)) == (0.0, ("", 0.0))


def test_the_rest_doubles_up_to_five_minutes(tmp_path: Path, body: bytes) -> None:
    transport = Scripted(*[Answer("later", "HTTP 503")] * 12)
    found = courier(filled(tmp_path, body), transport)
    rests = []
    for _ in range(12):
        found.deliver(forever)
        rests.append(found.backoff_s)
    assert all(0.45 * min(2**n, 300) < rest <= min(2**n, 300) for n, rest in enumerate(rests))


def test_after_its_time_no_attempt_begins(tmp_path: Path, body: bytes) -> None:
    transport = Scripted()
    box = filled(tmp_path, body)
    done = courier(box, transport).deliver(lambda: time.monotonic() - 0.001)
    assert (transport.sent, done.left) == ([], 1)


def test_where_another_process_delivers_nothing_is_done(tmp_path: Path, body: bytes) -> None:
    transport = Scripted()
    done = courier(filled(tmp_path, body), transport, lock=Held).deliver(forever)
    assert (transport.sent, done.reason, done.left) == ([], "another process is delivering", 1)


def test_another_destinations_entries_are_left_alone(tmp_path: Path, body: bytes) -> None:
    box = filled(tmp_path, body)
    for number, key in enumerate(
        (
            DestinationKey("otlp", "grpc", KEY.address),
            DestinationKey(*vars(KEY).values()),
            DestinationKey("otlp", KEY.protocol, KEY.address, "2026-01-01"),
        )
    ):
        box.put(Head(key, "bb", box.now()), 2, f"{number:08d}", body)
    transport = Scripted()
    courier(box, transport).deliver(forever)
    assert (len(transport.sent), len(box.waiting())) == (2, 2)
