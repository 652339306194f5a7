"""The suite that measures ours beside its peers: its arithmetic, its runs, and the tables that are made from its results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "benchmarks" / "suite"
RESULTS = ROOT / "benchmarks" / "results" / "suite.json"
CHECKED = """
import json, sys
sys.path.insert(0, sys.argv[1])
{code}
"""


def in_suite(code: str) -> Any:
    """Run code beside the suite's modules, whose names are too common to be imported here, and return what it prints."""
    program = [sys.executable, "-c", CHECKED.format(code=code), str(SUITE)]
    return json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], [3.0, 3.0]),
        ([1.0, 2.0, 9.0], [1.0, 9.0]),  # too few for 95 %: the whole range
        (list(range(1, 10)), [2, 8]),  # 1 - 2 (1 + 9) / 512 = 96.1 %
        (list(range(1, 21)), [6, 15]),  # 1 - 2 P(X < 6) = 95.9 %, X binomial (20, 1/2)
    ],
)
def test_interval_holds_the_median(values: list[float], expected: list[float]) -> None:
    assert in_suite(f"import medians; print(json.dumps(medians.interval({values})))") == expected


WAYS = """
from case import FLOOR, OURS, Case, Figure, Way
import runner
case = Case("case", "some work", (
    Way("nothing", "told(s=2.0, kb=10)", FLOOR),
    Way("ours", "told(s=3.0, kb=12)", OURS),
    Way("by its own floor", "told(s=3.0, floor_s=1.0, kb=12)", OURS),
    Way("broken", "raise SystemExit(3)", OURS),
    Way("absent", "import nothing_of_this_name", needs="nothing_of_this_name"),
), (Figure("s", "", "s"), Figure("kb", "", "kB", against="difference")), at_once={at_once})
print(json.dumps(runner.measure(case, True, 2)))
"""


@pytest.mark.parametrize("at_once", [False, True])
def test_ways_stand_beside_their_floor(at_once: bool) -> None:
    found = in_suite(WAYS.replace("{at_once}", str(at_once)))
    seconds, size = found["figures"]["s"], found["figures"]["kb"]
    assert seconds["ours"]["median"] == 3.0 and seconds["ours"]["ratio"]["median"] == 1.5
    assert seconds["by its own floor"]["ratio"]["values"] == [3.0, 3.0]
    assert size["ours"]["difference"]["interval"] == [2, 2]
    assert found["absent"] == {"broken": "it failed", "absent": "nothing_of_this_name is not installed"}
    assert set(seconds) == {"nothing", "ours", "by its own floor"}


def test_a_phase_beside_its_floor() -> None:
    program = [sys.executable, str(SUITE), "--case", "phase", "--repeats", "1"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert "| a phase around nothing, within a step |" in done.stdout and "in Python alone (goal 4)" in done.stdout
    assert "SimpleProfiler" not in done.stdout  # a peer


PAGES = """
import table
main = __import__("runpy").run_path(sys.argv[1] + "/__main__.py")
results = json.loads(main["RESULTS"].read_text("utf-8"))
print(json.dumps({
    "table": table.machine(results) + "\\n" + table.markdown(main["CASES"], results),
    "short": table.short(main["CASES"], results),
    "cases": {case.key: [way.name for way in case.ways] for case in main["CASES"]},
}))
"""


def test_tables_are_those_of_the_results() -> None:
    made = in_suite(PAGES)
    for page, name, part in (("docs/overhead.md", "suite", "table"), ("README.md", "cost", "short")):
        text = (ROOT / page).read_text("utf-8").partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]
        assert text.strip() == made[part].strip(), (
            f"{page} has other figures than {RESULTS.name}: python benchmarks/suite --pages"
        )


def test_results_have_every_way() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    for case, ways in in_suite(PAGES)["cases"].items():
        found = results["cases"][case]
        assert not found["absent"], f"{case}: {found['absent']}"
        for figure, rows in found["figures"].items():
            assert set(rows) == set(ways), f"{case}, {figure}: other ways were measured than the suite has"
