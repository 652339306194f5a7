"""Facts of a package's runs: closed words and classes, told with how a run ended, and nothing else of it."""

from __future__ import annotations

import json
import os
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exporters import entropy
from exporters.allowlist import OUTCOMES
from exporters.rules import declared_from
from profiler import ArgumentTypeError, ArgumentValueError, Telemetry
from profiler.embedding import told_run
from support.collector import collector_with, to_clickhouse
from support.package_author import OUTSIDE, choose, counted
from support.processes import at_terminal, epochmeter, python, wait_for
from support.sinks import Sink

FACTS: dict[str, Any] = {"task": ("detect", "segment"), "batch": (8, 16, 32), "amp": bool, "map50": (0.25, 0.5, 0.75)}


class Task(str, Enum):
    segment = "segment"


class Code(IntEnum):
    fine = 0
    killed = 137


class OddExit(SystemExit):
    @property
    def code(self) -> int:  # type: ignore[override]
        raise RuntimeError


HOST = """
import sys
from profiler import Telemetry
telemetry = Telemetry(
    "digits", "1.2.3", facts={"task": ("detect", "segment"), "batch": (8, 16, 32), "amp": bool, "map50": (0.25, 0.5, 0.75)},
    exporter="otlp", settings={"otlp_endpoint": sys.argv[1]},
)
"""
RUNS = """
with telemetry.run(task="detect", batch=12, amp=True) as run:
    run.tell(map50=0.61, epochs=40)
try:
    with telemetry.run(task="segment", data="canary-data.yaml", batch="canary"):
        raise ValueError("canary-text")
except ValueError:
    pass
with telemetry.run(task="canary-task", batch=64):
    pass
"""
BOTH = ("device.cuda", "batch.16", "amp.true", "duration.60")
TOLD = {
    **{
        ("facts", word, "finished"): 1
        for word in ("task.detect", "batch.16", "amp.true", "map50.0.75", "epochs.100", "batch.more")
    },
    ("facts", "task.segment", "crashed"): 1,
    ("facts", "duration.60", "crashed"): 1,
    ("facts", "duration.60", "finished"): 2,
}


def taken(telemetry: Telemetry) -> dict[str, dict[str, int]]:
    return telemetry._counters.take().told


class TestWords:
    @pytest.mark.parametrize(
        ("given", "word"),
        [
            ({"task": "detect"}, "task.detect"),
            ({"task": "Detect"}, None),
            ({"task": Task.segment}, "task.segment"),
            ({"self": 1}, None),
            ({"task": 8}, None),
            ({"batch": 8}, "batch.8"),
            ({"batch": 8.5}, "batch.16"),
            ({"batch": -1}, "batch.8"),
            ({"batch": 33}, "batch.more"),
            ({"batch": float("inf")}, "batch.more"),
            ({"batch": float("nan")}, None),
            ({"batch": "8"}, None),
            ({"batch": True}, None),
            ({"batch": None}, None),
            ({"amp": False}, "amp.false"),
            ({"amp": 1}, None),
            ({"amp": "true"}, None),
            ({"map50": 0.5}, "map50.0.5"),
            ({"epochs": 100}, "epochs.100"),
            ({"unknown": 1}, None),
        ],
    )
    def test_a_value_is_a_declared_word_or_nothing(self, given: dict[str, Any], word: str | None) -> None:
        telemetry = Telemetry("digits", "1", facts=FACTS)
        with telemetry.run(**given):
            pass
        assert taken(telemetry).keys() - {"duration.60"} == ({word} if word else set())

    @pytest.mark.parametrize(
        ("facts", "error", "says"),
        [
            ([], None, ""),
            ("x", ArgumentTypeError, "facts is a mapping"),
            ({"Task": ("a",)}, ArgumentValueError, "lower-case"),
            ({"duration": ("a",)}, ArgumentValueError, "told of every run"),
            ({"a": "word"}, ArgumentTypeError, "rising numbers, or bool"),
            ({"a": ()}, ArgumentTypeError, "rising numbers, or bool"),
            ({"a": (3, 2)}, ArgumentValueError, "limits of the fact 'a' are finite and rise"),
            ({"a": (1, float("nan"))}, ArgumentValueError, "are finite and rise"),
            ({"a": (10**400,)}, ArgumentValueError, "are finite and rise"),
            ({"a": ("x", 2)}, ArgumentValueError, "words of the fact 'a'"),
            ({"a": ("no way",)}, ArgumentValueError, "words of the fact 'a'"),
            ({"a": ("x", "x")}, ArgumentValueError, "not told apart"),
            ({"a": (1.00000001, 1.00000002)}, ArgumentValueError, "not told apart"),
            ({f"a{place}": bool for place in range(21)}, ArgumentValueError, "at most 20 facts"),
        ],
    )
    def test_declarations_are_checked(self, facts: Any, error: type[Exception] | None, says: str) -> None:
        if error is None:
            Telemetry("digits", "1", facts=facts)
            return
        with pytest.raises(error, match=says):
            Telemetry("digits", "1", facts=facts)

    def test_every_word_is_declared(self) -> None:
        declared = declared_from(Telemetry("digits", "1", facts=FACTS).declared())
        assert {"task.detect", "batch.more", "amp.false", "map50.0.25", "duration.604800", "epochs.more"} <= set(declared.told)
        assert len(declared.told) == 2 + 4 + 2 + 4 + 7 + 8


class TestOutcomes:
    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (None, "finished"),
            (SystemExit(0), "finished"),
            (SystemExit(1), "crashed"),
            (SystemExit("text"), "crashed"),
            (SystemExit(143), "interrupted"),
            (SystemExit(), "finished"),
            (SystemExit(Code.fine), "finished"),
            (SystemExit(Code.killed), "interrupted"),
            (SystemExit((0, 1)), "crashed"),
            (OddExit(0), "crashed"),
            (ValueError(), "crashed"),
            (KeyboardInterrupt(), "interrupted"),
            (GeneratorExit(), "interrupted"),
        ],
    )
    def test_the_end_is_told(self, error: BaseException | None, outcome: str) -> None:
        telemetry = Telemetry("digits", "1", facts=FACTS)

        def work() -> None:
            with telemetry.run(task="detect"):
                if error is not None:
                    raise error

        if error is None:
            work()
        else:
            with pytest.raises(type(error)):
                work()
        assert taken(telemetry) == {word: {outcome: 1} for word in ("task.detect", "duration.60")}
        assert outcome in OUTCOMES

    def test_time_is_told_as_a_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        telemetry, clock = Telemetry("digits", "1", facts=FACTS), SimpleNamespace(now=0.0)
        monkeypatch.setattr(told_run, "now", lambda: clock.now)
        for spent in (0, 60, 61, 86_400, 10**7):
            with telemetry.run():
                clock.now += spent
        assert taken(telemetry) == {
            f"duration.{word}": {"finished": times} for word, times in (("60", 2), ("600", 1), ("86400", 1), ("more", 1))
        }

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    def test_a_forked_child_is_not_the_run(self) -> None:
        work = """
import os, json, sys
from profiler import Telemetry
telemetry = Telemetry("digits", "1", facts={"task": ("detect", "segment")})
try:
    with telemetry.run(task="detect"):
        child = os.fork()
        if child == 0:
            with telemetry.run(task="segment"):
                pass
            raise ValueError
except ValueError:
    pass
if child:
    os.waitpid(child, 0)
print(json.dumps(telemetry._counters.take().told), flush=True)
os._exit(0)
"""
        of_child, of_run = map(json.loads, python("-c", work).out.splitlines())
        assert of_child == {word: {"finished": 1} for word in ("task.segment", "duration.60")}
        assert of_run == {word: {"finished": 1} for word in ("task.detect", "duration.60")}

    def test_nothing_is_raised_or_told_twice(self) -> None:
        class Odd:
            def __float__(self) -> float:
                raise RuntimeError("mine")

        class Equal(str):
            def __eq__(self, other: object) -> bool:
                return True

            __hash__ = str.__hash__

        telemetry = Telemetry("digits", "1", facts=FACTS)
        run = telemetry.run(batch=Odd(), task=Equal("canary"))
        for _ in range(2):
            with run:
                run.tell(task="segment")
        assert taken(telemetry) == {word: {"finished": 1} for word in ("task.segment", "duration.60")}
        with Telemetry("digits", "1").run(task="detect") as without:
            without.tell(anything=1)


@pytest.mark.slow
class TestDelivery:
    def told(self, sink: Sink) -> list[dict[tuple[str, ...], int]]:
        found = [counted(received) for received in sink.received if b"epochmeter.usage.facts" in received.content]
        assert not any(b"canary" in received.content for received in sink.received)
        return found

    def test_each_fact_is_told_apart(self, home: Path, sink: Sink) -> None:
        """An author whom the user has not chosen gets each fact alone: not which of them go together."""
        for _ in range(2):
            answer = at_terminal("-c", HOST + RUNS, sink.url, **OUTSIDE)
            assert answer.code == 0
        wait_for(lambda: self.told(sink))
        payloads = self.told(sink)
        assert {key: times for one in payloads for key, times in one.items()} == TOLD
        assert all(len({word.partition(".")[0] for _, word, _ in one}) == 1 for one in payloads) and len(payloads) == 6

    def test_the_user_sees_it_before(self, home: Path, sink: Sink) -> None:
        choose(home, exporter="otlp", otlp_endpoint="http://127.0.0.1:9", exit_timeout=0.1)
        at_terminal("-c", HOST + RUNS, sink.url, **OUTSIDE)
        shown = epochmeter("telemetry", "preview").out
        assert "task.detect" in shown and "duration.60" in shown and "canary" not in shown
        schema = json.loads(epochmeter("telemetry", "schema", "--json").out)
        assert any(entry["name"] == "epochmeter.usage.facts" for entry in schema["metrics"])

    def test_off_wins(self, home: Path, sink: Sink) -> None:
        for number in range(2):
            at_terminal(
                "-c", HOST + RUNS, sink.url, **OUTSIDE, **({"DO_NOT_TRACK": "1"} if number else {"EPOCHMETER_USAGE": "false"})
            )
        assert not sink.received


def test_the_bits_of_facts_are_counted() -> None:
    declared = declared_from(Telemetry("digits", "1", facts={"model": tuple(f"m{n}" for n in range(20))}).declared())
    assert entropy.told_bits(declared)["model"] == pytest.approx(5.977, abs=0.001)  # log2(21 * 3)
    assert entropy.budget(declared)["author"] >= entropy.told_bits(declared)["model"]


@pytest.mark.slow
def test_events_of_a_package_moved(home: Path, tmp_path: Path, clickhouse: str) -> None:
    """The example's runs, through a real collector into its tables, are asked by week."""
    pytest.importorskip("duckdb")
    from profiler.fleet.clickhouse import ClickHouseFleet
    from support.collector_tables import statements

    server, database = ClickHouseFleet(clickhouse), clickhouse.rpartition("/")[0] + "/events"
    server.command(*statements("events"))
    work = """
import sys; sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace as Cfg
from events import events
for model, task, mode in (("yolo11n.pt", "detect", "train"), ("/data/canary-model.pt", "segment", "val")):
    try:
        with events(Cfg(mode=mode, task=task, model=model, batch=16, amp=True, data="canary.yaml"), "cuda:0", is_cli=True):
            if mode == "val":
                raise ValueError("canary")
    except ValueError:
        pass
"""
    folder = Path(__file__).parents[2] / "examples" / "events"
    with collector_with(tmp_path, *to_clickhouse(database)) as (http, _):
        choose(home, exporter="otlp", otlp_endpoint=f"http://127.0.0.1:{http}")
        answer = at_terminal("-c", work, str(folder), **OUTSIDE)
        assert answer.code == 0
        wait_for(lambda: server.ask("SELECT count() AS n FROM events.otel_metrics_sum")["n"].to_pylist() != [0])
    assert epochmeter("fleet", "collector", "--to", database).code == 0
    rows = json.loads(epochmeter("fleet", "ask", "features", "--from", database, "--json").out)
    told = {(row["kind"], row["name"], row["outcome"]): row["times"] for row in rows}
    assert told == {
        **{("commands", mode, ""): 1 for mode in ("train", "val")},
        ("features", "cli", ""): 2,
        **{("facts", word, "finished"): 1 for word in ("mode.train", "task.detect", "size.n")},
        **{("facts", word, "crashed"): 1 for word in ("mode.val", "task.segment", "size.custom")},
        **{
            ("facts", word, end): 1
            for word in ("device.cuda", "batch.16", "amp.true", "duration.60")
            for end in ("finished", "crashed")
        },
    }
    assert {row["package"] for row in rows} == {"vision"} and "canary" not in str(rows)
