"""Prove a counterfactual: run the script again for some steps as it is and without the cause, in turns, and compare."""

from __future__ import annotations

import math
import subprocess  # the script that the user names
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from profiler.config.environment import environment_for_run
from profiler.errors import ProfilerError
from profiler.records.histogram import NS
from profiler.records.student import student
from profiler.report.accounts import Accounts
from profiler.report.whatif import highest, whatifs
from profiler.session.proof_changes import CHANGES
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run
    from profiler.report.whatif import WhatIf


MOST_STEPS, LONGEST_S = 200, 20.0
FEWEST_STEPS = 8
PROVABLE = tuple(change for change in CHANGES if change != "none")
SHARPEST = 0.1  # an interval wider than that, and than the saving, decides nothing
LEAST_PROVED = 0.05  # of the loop: a smaller saving is lost in how much two runs of a script differ


class Share(NamedTuple):
    """A share of the loop's time that is saved, as the mean of some runs, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def meets(self, low: float, high: float) -> bool:
        """Return True if the interval has a number in common with another one."""
        return low <= self.high and self.low <= high


@dataclass(frozen=True)
class Proof:
    """A prediction beside its measurement.

    Attributes:
        predicted: the counterfactual, from the record.
        again: the same prediction, from the runs that were made now as the script is.
        measured: the saving that the runs without the cause show.
        steps: how many steps each run made.
    """

    predicted: WhatIf
    again: Share
    measured: Share
    steps: int

    @property
    def outcome(self) -> str:
        """Say if the measurement meets the prediction.

        "changed since the record" means that it meets the prediction from the runs made now, but not that from the record: a
        disk or a machine may be faster at one time than at another.
        """
        if self.measured.high - self.measured.low > max(self.predicted.saved, SHARPEST):
            return "cannot tell: the runs differ too much; try more --rounds on a quiet machine"
        saved = self.predicted.saved
        ends = (end if end is not None else saved for end in (self.predicted.low, self.predicted.high))
        if self.measured.meets(*ends):
            return "as predicted"
        if self.measured.meets(self.again.low, self.again.high):
            return f"changed since the record: the script as it runs now would save {self.again.mean:.1%}"
        return "not as predicted"


def steps_of(run: Run) -> int:
    """Return how many steps of a run to make again: whole epochs if they are short, and a few seconds at most."""
    stage = run.whole().stages["train"]
    steps = min(stage.steps, MOST_STEPS)
    if stage.step.steady.count:
        each = stage.step.steady.sum_ns / stage.step.steady.count / NS
        steps = min(steps, math.floor(LONGEST_S / each) if each else steps)
    per_epoch = stage.steps // max(len(run.epochs), 1)
    if per_epoch and steps > per_epoch:
        steps = steps // per_epoch * per_epoch  # what happens once an epoch happens as often as it did
    return max(steps, FEWEST_STEPS)


def is_provable(prediction: WhatIf) -> bool:
    """Return True if running steps again can show this saving."""
    return prediction.key in PROVABLE and prediction.saved >= LEAST_PROVED


def prove(
    run: Run,
    predictions: Sequence[WhatIf],
    command: Sequence[str],
    say: Callable[[str], None],
    *,
    rounds: int,
) -> list[Proof]:
    """Return the proofs of these counterfactuals.

    Args:
        run: the recorded run.
        predictions: from `whatif.whatifs`, those that `is_provable`.
        command: the script and its arguments, as Python is to run them.
        say: takes a line on each run that is made.
        rounds: how often each run is made.

    Raises:
        ProfilerError: the script could not be run, or made no step.
    """
    steps = steps_of(run)
    made: dict[str, list[Run]] = {}
    for number in range(rounds):
        for change in ("none", *(one.key for one in predictions)):
            say(f"round {number + 1} of {rounds}: {steps} steps, {'as it is' if change == 'none' else 'without ' + change}")
            made.setdefault(change, []).append(_run_again(command, change, steps))
    usual = [_step_s(run) for run in made["none"]]
    saved_again = [{one.key: one.saved for one in whatifs(run)} for run in made["none"]]
    proofs = []
    for one in predictions:
        measured = _share([1 - _step_s(run) / before for run, before in zip(made[one.key], usual, strict=True)])
        again = _share([saved.get(one.key, 0.0) for saved in saved_again])
        proofs.append(Proof(one, again._replace(high=highest(again.mean, again.high)), measured, steps))
    return proofs


def _share(found: list[float]) -> Share:
    error = student(len(found) - 1) * stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    middle = mean(found)
    return Share(middle, middle - error, middle + error)


def _step_s(run: Run) -> float:
    """Return the loop's time for each training step (s), but for the first one."""
    whole = run.whole()
    stage = whole.stages["train"]
    loop_ns = Accounts(run, whole).loop_ns - stage.step.cold.sum_ns
    return loop_ns / (stage.steps - stage.step.cold.count) / NS


def _run_again(command: Sequence[str], change: str, steps: int) -> Run:
    """Return the record of the script's run with one change.

    Raises:
        ProfilerError: it made no step.
    """
    with tempfile.TemporaryDirectory(prefix="epochmeter-") as folder:
        request = {"name": "proof", "quiet": True, "live": False, "proof": {"change": change, "steps": steps}}
        apart = {"EPOCHMETER_HOME": folder, "EPOCHMETER_SYNC": "0"}
        environment = {**environment_for_run(request), **apart}
        ended = subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # noqa: S603
        logs = run_paths(Path(folder) / "runs")
        made = load(logs[0]) if logs else None
    stage = None if made is None else made.whole().stages.get("train")
    if made is None or stage is None or stage.steps <= stage.step.cold.count:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
        words = f": {last[0]}" if last else ""
        raise ProfilerError(f"the script made no training step that could be followed (exit code {ended.returncode}){words}")
    return made
