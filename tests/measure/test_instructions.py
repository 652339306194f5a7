"""The hot path takes no more instructions than when its limits were written down."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

from profiler.measure import hot_path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MOST = 1.05  # two counts of the same code differ by at most 1.5 %


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not on this machine")
@pytest.mark.skipif(hot_path.COMPILED is None, reason="the compiled hot path is not in use")
def test_no_case_takes_more_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    counting = importlib.import_module("count_instructions")
    limits = json.loads((BENCHMARKS / "results" / "instructions.json").read_text(encoding="utf-8"))
    if limits["where"] != counting.where():
        pytest.skip(f"the limits are of {limits['where']}, and this is {counting.where()}")
    found = counting.counted()
    over = {name: (limits["instructions"][name], number) for name, number in found.items()}
    assert {name: pair for name, pair in over.items() if pair[1] > MOST * pair[0]} == {}
