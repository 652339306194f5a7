"""Claim C5: what was measured before consent, or while it was off, does not leave later; and "off" works at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from exporters import outbox
from profiler import Profiler, settings
from profiler.config import file as config_file
from profiler.config.resolve import resolve
from profiler.sending.flush import flush
from profiler.testing import RecordingExporter
from support.processes import epochmeter, wait_for, wait_for_ticks
from support.sinks import Sink


def epoch(prof: Profiler) -> None:
    list(prof.train(range(5)))


def on(sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url, sync=True)


def decided() -> str | None:
    return resolve().decided


def test_a_run_that_began_with_consent_is_sent(sink: Sink) -> None:
    on(sink)
    with Profiler("x") as prof:
        epoch(prof)
    assert len(sink.received) == 1


def test_run_begun_before_consent_is_not_sent(sink: Sink) -> None:
    with Profiler("x") as prof:
        epoch(prof)
        on(sink)
        epoch(prof)
    assert sink.received == []
    with Profiler("y") as prof:
        epoch(prof)
    assert len(sink.received) == 1


def test_run_begun_with_sync_off_is_not_sent(sink: Sink) -> None:
    on(sink)
    settings.update(sync=False)
    exporter = RecordingExporter()
    for chosen in (None, exporter):
        with Profiler("x", exporter=chosen) as prof:
            settings.update(sync=True)
            epoch(prof)
        settings.update(sync=False)
    assert (sink.received, exporter.exports) == ([], [])


def test_off_and_on_between_readings_ends_sending(sink: Sink) -> None:
    on(sink)
    exporter = RecordingExporter()
    for chosen in (None, exporter):
        with Profiler("x", exporter=chosen, interval=60) as prof:
            epoch(prof)
            looked = prof.session.sampler.threads[0]
            wait_for(lambda looked=looked: looked.cpu_ns is not None)  # the first look is past, the next one far away
            settings.update(sync=False)
            epoch(prof)
            settings.update(sync=True)
            epoch(prof)
    assert (sink.received, exporter.exports) == ([], [])


def test_off_and_on_again_in_another_process(sink: Sink) -> None:
    on(sink)
    with Profiler("x", interval=60) as prof:
        epoch(prof)
        # The sampling thread looks every few seconds. Without that it cannot see the "off" itself, only its date.
        prof.session.sampler.each_tick.remove(prof.session.sending.consent)
        epochmeter("settings", "sync=false")
        epochmeter("settings", "sync=true")
    assert sink.received == []


def test_off_by_hand_counts_at_next_reading(sink: Sink, home: Path) -> None:
    on(sink)
    path = home / "settings.json"
    before = path.read_text()
    with Profiler("x", interval=0.02) as prof:
        epoch(prof)
        wait_for_ticks(prof, 2)  # the checks at the run's begin are past: from now on, the sampling thread asks
        path.write_text(json.dumps({**json.loads(before), "sync": False}))
        wait_for(lambda: prof.session.sending.is_withdrawn)
        path.write_text(before)
        epoch(prof)
    assert sink.received == []


def test_off_in_the_environment_of_the_process(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    on(sink)
    with Profiler("x", interval=0.02) as prof:
        monkeypatch.setenv("DO_NOT_TRACK", "1")
        wait_for(lambda: prof.session.sending.is_withdrawn)
        monkeypatch.delenv("DO_NOT_TRACK")
        epoch(prof)
    assert sink.received == []


def test_off_at_the_end_keeps_the_run_here(sink: Sink, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Also when somebody later looks after the runs whose last word is to come."""
    on(sink)
    with Profiler("x", interval=60) as prof:
        epoch(prof)
        wait_for(lambda: prof.session.sampler.threads[0].cpu_ns is not None)
        monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.delenv("DO_NOT_TRACK")
    monkeypatch.setattr(outbox, "OPEN_GRACE_S", 0.0)
    assert list((home / "outbox" / "open").iterdir()) == []
    assert flush().delivered == 0
    assert sink.received == []


def test_another_destination_needs_a_run_of_its_own(sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint="http://127.0.0.1:9")
    with Profiler("x", interval=60) as prof:
        epoch(prof)
        settings.update(otlp_endpoint=sink.url)
    assert sink.received == []


def test_other_settings_change_nothing_about_it(sink: Sink) -> None:
    on(sink)
    before = decided()
    with Profiler("x") as prof:
        settings.update(retention_days=5, sync=True)
        epoch(prof)
    assert len(sink.received) == 1
    assert decided() == before


def test_each_change_of_choice_has_own_date(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    class Standing(config_file.datetime):  # type: ignore[name-defined,misc]
        hours = iter((12, 11, 10, 9, 8))  # a clock that goes backwards

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 1, next(cls.hours), tzinfo=tz)

    monkeypatch.setattr(config_file, "datetime", Standing)
    seen = [decided()]
    for changes in ({"exporter": "otlp"}, {"sync": False}, {"sync": True}, {"otlp_endpoint": "http://other:1"}):
        settings.update(changes)
        seen.append(decided())
    assert seen[0] is None
    assert len(set(seen)) == len(seen)
    assert "the destination was chosen: 20" in epochmeter("settings", "--explain").out


def test_switched_off_between_two_exports_of_a_run(sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url, export_interval=0.05)
    with Profiler("x", interval=0.02) as prof:
        epoch(prof)
        wait_for(lambda: len(sink.received) >= 2)
        settings.update(sync=False)
        time.sleep(0.1)  # an export that was under way has arrived
        known = len(sink.received)
        for _ in range(5):
            epoch(prof)
            time.sleep(0.1)
    assert len(sink.received) == known


def test_switched_off_while_a_delivery_is_tried_again(sink: Sink) -> None:
    """The stock exporter tries again after a 503, up to ten seconds long: each attempt asks."""
    settings.update(exporter="otlp", otlp_endpoint=sink.url, export_interval=0.01)
    sink.status = 503
    with Profiler("x", interval=0.01) as prof:
        wait_for(lambda: sink.received)
        settings.update(sync=False)
        known = len(sink.received)
        time.sleep(2.5)  # the second attempt would come a second after the first
        epoch(prof)
    assert len(sink.received) == known


def test_unchanged_consent_retries_delivery(sink: Sink) -> None:
    settings.update(exporter="otlp", otlp_endpoint=sink.url, export_interval=0.01)
    sink.status = 503
    with Profiler("x", interval=0.01):
        wait_for(lambda: len(sink.received) >= 2)


def test_explicit_none_stops_own_exporter() -> None:
    settings.update(exporter="none")
    exporter = RecordingExporter()
    with Profiler("x", exporter=exporter) as prof:
        epoch(prof)
    assert exporter.exports == []


def test_what_cannot_be_noted_is_not_sent(sink: Sink, home: Path) -> None:
    on(sink)
    (home / "sent").write_text("in the way")
    with Profiler("x") as prof:
        epoch(prof)
    assert sink.received == []
    assert "no copy of it can be kept" in str(prof.summary.to_dict()["notes"])
