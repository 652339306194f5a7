"""The report in a terminal: it fits, no number is cut, and the epochs that matter are in it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.cells import cell_len

from profiler import Profiler
from profiler.report.epoch_rows import SHOWN, epoch_rows
from profiler.report.layout import Column, Fitted, lines, number, numbers, share_bar, times, words
from profiler.report.text import plain, text
from support.processes import at_terminal, epochmeter

NUMBER = re.compile(r"[<+-]?\d[\d,]*(?:\.\d+)?%?")


def shown(table: Fitted, width: int) -> list[str]:
    return plain(table, width).splitlines()


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_number_is_ever_cut(seed: int, width: int) -> None:
    """Of the columns that are shown, each cell is whole; the ones that may not be left out are there."""
    rng = random.Random(f"{seed} {width}")
    names = ["x" * rng.randint(1, 40) + " word" * rng.randint(0, 4) for _ in range(5)]
    columns = [words("name", names)]
    for place in range(rng.randint(1, 12)):
        values = [None if rng.random() < 0.1 else 10 ** rng.uniform(-9, 5) for _ in names]
        columns.append(times(f"h{place}", values, rank=0 if place < 2 else rng.randint(1, 9)))
    said = shown(Fitted(*columns), width)
    assert all(cell_len(line) <= width for line in said)
    heads = said[0].split()
    kept = [column for column in columns if column.head.split()[0] in heads]
    assert {column.head for column in kept} >= {column.head for column in columns if not column.rank and any(column.cells)}
    body = "\n".join(said[2:])
    found = NUMBER.findall(body)
    for column in kept[1:]:
        for cell in filter(None, map(str.strip, column.cells)):
            found.remove(cell)
    assert not found
    for letters in ("x", "word"):
        assert body.count(letters) == "".join(names).count(letters)


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (0.0004, "<0.001"), (0.0126, "0.013"), (1.236, "1.24"), (12.36, "12.4"), (123.6, "124"), (12_345.6, "12,346")],
)
def test_numbers_have_three_digits(value: float, told: str) -> None:
    assert number(value) == told


def test_a_column_has_one_unit() -> None:
    column = times("mean", [0.0123, 1.5, None, 0.00004])
    assert (column.head, [cell.strip() for cell in column.cells]) == ("mean ms", ["12.3", "1,500", "", "0.040"])
    assert times("mean", [3.0, 200.0]).head == "mean s"
    assert times("mean", []).head == "mean ns"
    dots = {len(cell) - cell.index(".") for cell in numbers("n", [1.25, 12.5, 0.125]).cells}
    assert len(dots) == 1


def test_bars_show_shares() -> None:
    assert [share_bar(share) for share in (0.0, 0.04, 0.05, 0.5, 1.0, 1.2)] == ["", "▌", "▌", "█████", "█" * 10, "█" * 10]


def test_a_list_cuts_words_alone() -> None:
    columns = [words("id", ["abc"]), numbers("n", [1234.0]), Column("command", ["train.py " * 20], is_words=True, room=12)]
    head, row = lines(columns, 40)
    assert cell_len(row) == 40 and row.startswith("abc  1,234  train.py") and row.endswith("…") and head.startswith("id ")


def epoch(index: int, seconds: float, wait: float = 0.1) -> dict[str, Any]:
    phases = {"data_wait": {"total_s": wait * seconds}, "other": {"total_s": (1 - wait) * seconds}}
    stage = {"stage": "train", "duration_s": seconds, "steps": 100, "phases": phases, "partial": False}
    return {"index": index, "duration_s": seconds, "stages": [stage]}


def test_a_long_run_keeps_its_special_epochs() -> None:
    rng = random.Random(1)
    epochs = [epoch(index, rng.uniform(9.9, 10.1)) for index in range(300)]
    epochs[170], epochs[50] = epoch(170, 31.0), epoch(50, 10.0, wait=0.6)
    rows = list(epoch_rows(epochs))
    assert len([row for row in rows if row.epoch]) <= SHOWN
    assert sum(row.left_out for row in rows) + len([row for row in rows if row.epoch]) == 300
    why = {row.epoch["index"]: row.why for row in rows if row.epoch}
    assert why[170] == "3.1 x the usual step" and why[50] == "60% in data_wait"
    assert set(why) == {0, 1, 50, 170, 298, 299} and not any(why[index] for index in (0, 1, 298, 299))


def test_a_short_run_shows_every_epoch() -> None:
    epochs = [epoch(index, 1.0 if index != 2 else 3.0) for index in range(SHOWN)]
    rows = list(epoch_rows(epochs))
    assert [row.epoch["index"] for row in rows if row.epoch] == list(range(SHOWN))
    assert [bool(row.why) for row in rows] == [index == 2 for index in range(SHOWN)]
    assert list(epoch_rows([])) == []


def recorded() -> Profiler:
    with Profiler(
        "a run with a name that is longer than a terminal is wide, which nobody should have, but somebody will"
    ) as prof:
        for _ in prof.epochs(20):
            for _ in prof.train(range(5)):
                with prof.phase("forward"), prof.phase("a phase of mine with a very long name, longer than any column"):
                    pass
            for _ in prof.validate(range(3)):
                pass
    return prof


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_the_report_fits_its_terminal(width: int) -> None:
    said = text(recorded().summary.run, width).splitlines()
    assert max(map(cell_len, said)) <= width
    rules = [place for place, line in enumerate(said) if set(line) == {"─"}]
    assert len(rules) >= 3 and all(not said[place - 2] for place in rules)  # an empty line above each table


AT_WIDTH = """
import fcntl, os, struct, sys, termios
os.dup2(2, 1)
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, {width}, 0, 0))
os.environ.pop("COLUMNS", None)
sys.argv[1:] = {words}
from profiler.cli import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pty")
@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", ["report", "runs", "whatif"])
def test_what_a_terminal_shows_fits_it(command: str, width: int) -> None:
    recorded()
    answer = at_terminal("-c", AT_WIDTH.format(width=width, words=[command]), TERM="xterm", NO_COLOR="1")
    shown_lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in answer.err.splitlines()]
    assert answer.code == 0 and len(shown_lines) > 1
    assert max(map(cell_len, shown_lines)) <= width


def test_a_pipe_follows_columns() -> None:
    recorded()
    assert max(map(len, epochmeter("report", COLUMNS="60").out.splitlines())) <= 60
    wide = epochmeter("report", COLUMNS="").out
    assert 60 < max(map(len, wide.splitlines())) <= 100
    assert "\x1b" not in wide


@pytest.mark.parametrize(("encoding", "bar"), [("latin-1", "#"), ("cp437", "█"), ("utf-8", "█")])
def test_plain_letters_stand_for_lines_and_bars(encoding: str, bar: str) -> None:
    recorded()
    done = subprocess.run(
        [sys.executable, "-m", "profiler.cli", "report"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        timeout=60,
        check=True,
    )
    said = done.stdout.decode(encoding)
    assert bar in said and "\\u" not in said and max(map(len, said.splitlines())) <= 80


def test_words_like_markup_stay() -> None:
    said = shown(Fitted(words("[red]head", ["[bold]x[/bold]"]), Column("n", ["1"])), 40)
    assert "[red]head" in said[0] and "[bold]x[/bold]" in said[2]
