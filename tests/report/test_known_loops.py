"""The verdict on real training loops whose bottleneck is known, measured in two ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.processes import Answer, epochmeter, python

SCRIPT = str(Path(__file__).parents[1] / "support" / "known_loops.py")
EXPECTED: dict[str, tuple[str, str, str]] = {  # kind: the verdict, the first finding's cause, and a part of its line
    "collate": ("input-bound", "data_wait", "collate -> sleep"),
    "waiting loader": ("input-bound", "data_wait", "__getitem__ -> sleep"),
    "busy loader": ("input-bound", "data_wait", "spin"),
    "slow file": ("input-bound", "data_wait", "__getitem__ -> sleep"),
    "waiting workers": ("input-bound", "data_wait", ""),
    "busy workers": ("input-bound", "data_wait", ""),
    "small batch": ("launch-bound", "launch", ""),
    "many layers": ("launch-bound", "launch", ""),
    "host before": ("host-bound", "host", "spin"),
    "clipping": ("host-bound", "host", "clip"),
    "logging": ("host-bound", "host", "log"),
    "copies": ("host-bound", "host", "copy_state"),
    "collections": ("collection-bound", "collection", "collect"),
    "leak": ("memory-bound", "growth", "leak -> ones"),
    "rhythm": ("host-bound", "tail", "sleep_now_and_then -> sleep"),
    "slow epoch": ("host-bound", "tail", "sleep_now_and_then -> sleep"),
    "rare steps": ("host-bound", "tail", "sleep_now_and_then -> sleep"),
    "checkpoints": ("checkpoint-bound", "checkpoint", "after_epoch"),
    "step checkpoints": ("checkpoint-bound", "checkpoint", "save_now_and_then"),
    "validation": ("compute-bound", "validation", ""),
    "compile": ("host-bound", "compilation", ""),
    "starved": ("starved", "starved", ""),
    "healthy": ("compute-bound", "compute", ""),
    "healthy with validation": ("compute-bound", "compute", ""),
}


def measured(kind: str, way: str, folder: Path) -> dict[str, Any]:
    environment = {"EPOCHMETER_HOME": str(folder / way)}
    if way == "plain":
        answer = epochmeter("run", "--quiet", SCRIPT, kind, "plain", **environment)
    else:
        answer = python(SCRIPT, kind, way, timeout=120, **environment)
    assert answer.code == 0, answer.err
    reported: Answer = epochmeter("report", "--format", "json", **environment)
    document: dict[str, Any] = reported.json
    return document


def undisturbed(kind: str, way: str, folder: Path) -> dict[str, Any]:
    """Return the verdict of a loop; again, if other programs had the CPUs and the verdict says so, which is then the truth."""
    for attempt in range(3):
        told: dict[str, Any] = measured(kind, way, folder / f"{way}{attempt}")["verdict"]
        if told["kind"] != "starved" or EXPECTED[kind][0] == "starved":
            break
    return told


@pytest.mark.proof
@pytest.mark.parametrize("kind", EXPECTED)
def test_first_finding_names_the_cause(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verdict, cause, line = EXPECTED[kind]
    for way in ("plain", "named"):
        told = undisturbed(kind, way, tmp_path)
        first = told["findings"][0]
        assert (told["kind"], first["cause"]) == (verdict, cause), (way, told)
        assert line.partition(" ->")[0] in first.get("line", ""), (way, first)
        assert first["next"] and told["next"] == first["next"]
        if kind.startswith("healthy"):
            assert len(told["findings"]) == 1, (way, told)


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["collate", "logging", "collections", "rhythm", "healthy"])
def test_loop_that_names_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = undisturbed(kind, "bare", tmp_path)
    assert (told["kind"], told["findings"][0]["cause"]) == EXPECTED[kind][:2], told


@pytest.mark.proof
def test_ledger_adds_up_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for way in ("plain", "named"):
        document = measured("collections", way, tmp_path)
        assert sum(document["ledger"].values()) == pytest.approx(document["run"]["duration_s"], rel=1e-6)
        assert document["ledger"]["collections_s"] > 0.2 * document["stages"]["train"]["duration_s"]
