"""Prove a counterfactual: run the script again for some steps as it is and without the cause, in turns, and compare."""

from __future__ import annotations

import math
import subprocess  # the script that the user names
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from profiler.config.environment import environment_for_run
from profiler.errors import ProfilerError
from profiler.records.student import student
from profiler.report.accounts import Accounts
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


@dataclass(frozen=True)
class Proof:
    """A prediction beside its measurement: shares of the loop's time that are saved.

    Attributes:
        predicted: the counterfactual.
        measured: the mean of the rounds.
        low: the lower end of its 95 % interval.
        high: the upper end.
        steps: how many steps each run made.
    """

    predicted: WhatIf
    measured: float
    low: float
    high: float
    steps: int

    @property
    def outcome(self) -> str:
        """Say "as predicted", "not as predicted", or "cannot tell" if the runs differed too much among each other."""
        if self.high - self.low > max(self.predicted.saved, SHARPEST):
            return "cannot tell: the runs differ too much; try more --rounds on a quiet machine"
        return "as predicted" if self.is_kept else "not as predicted"

    @property
    def is_kept(self) -> bool:
        """True if the two intervals meet."""
        low = self.predicted.saved if self.predicted.low is None else self.predicted.low
        high = self.predicted.saved if self.predicted.high is None else self.predicted.high
        return low <= self.high and self.low <= high


def steps_of(run: Run) -> int:
    """Return how many steps of a run to make again: whole epochs if they are short, and a few seconds at most."""
    stage = run.whole().stages["train"]
    steps = min(stage.steps, MOST_STEPS)
    if stage.step.steady.count:
        each = stage.step.steady.sum_ns / stage.step.steady.count / 1e9
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
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        for change in ("none", *(one.key for one in predictions)):
            say(f"round {number + 1} of {rounds}: {steps} steps, {'as it is' if change == 'none' else 'without ' + change}")
            times.setdefault(change, []).append(_step_s(command, change, steps))
    return [_proof(one, times["none"], times[one.key], steps) for one in predictions]


def _proof(predicted: WhatIf, before: list[float], after: list[float], steps: int) -> Proof:
    saved = [1 - changed / usual for usual, changed in zip(before, after, strict=True)]
    error = student(len(saved) - 1) * stdev(saved) / math.sqrt(len(saved)) if len(saved) > 1 else 0.0
    middle = mean(saved)
    return Proof(predicted, middle, middle - error, middle + error, steps)


def _step_s(command: Sequence[str], change: str, steps: int) -> float:
    """Return the loop's time for each step (s), but for the first one, of the script with one change.

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
    loop_ns = Accounts(made, made.whole()).loop_ns - stage.step.cold.sum_ns
    return loop_ns / (stage.steps - stage.step.cold.count) / 1e9
