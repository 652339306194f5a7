"""Why a run has no training step to judge, and the next step."""

from __future__ import annotations

from profiler.report import rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run
    from profiler.records.timing import StageRecord


OWN = "if it has a Profiler of its own, that one recorded the run: epochmeter runs"


def why_no_steps(run: Run, whole: EpochRecord, stage: StageRecord | None) -> tuple[str, str]:
    """Return why too few steps were timed to judge a run, and the next step.

    Args:
        run: the run.
        whole: its sums.
        stage: its training stage, or its only one, or None.
    """
    steps = stage.steps if stage is not None else 0
    timed = f"{steps} steps were timed; at least {rules.MIN_STEPS} are needed"
    if steps:
        return timed, f"train for at least {rules.MIN_STEPS} steps"
    if run.state in ("crashed", "interrupted"):
        what = "failed" if run.state == "crashed" else "was ended"
        who = "the script" if run.way == "script" else "the program"
        return f"{timed}: {who} {what} before its first step", "see its own error message, and run it again"
    if run.state == "running" and not (run.started_unix_ns or run.duration_ns):
        return f"{timed}: the run has not begun", "begin it: with Profiler(...) as prof: around the loop, or prof.start()"
    if run.state == "running":
        return f"{timed}: the first one has not ended yet", "wait for it: epochmeter watch"
    if run.way == "script":
        return _of_script(run, timed)
    if run.epochs or whole.phases:
        return (
            f"{timed}: nothing was handed to prof.train, prof.validate or prof.infer, and nothing attached",
            "iterate over the loader with: for x, y in prof.train(loader)",
        )
    return (
        f"{timed}: no epoch, no pass and no phase was seen",
        "put the loop inside the with: for epoch in prof.epochs(10): for x, y in prof.train(loader): ...",
    )


def _of_script(run: Run, timed: str) -> tuple[str, str]:
    if "torch" not in run.hardware.runtime:
        return (
            f"{timed}: the script did not import torch, so there was nothing to follow",
            f"{OWN}; if it trains in another process, measure that one: epochmeter run -- torchrun ... or run -m MODULE",
        )
    return (
        f"{timed}: the script imported torch, but neither a DataLoader nor an optimizer's step was seen",
        f"{OWN}; if it trains in another process or with other optimizers, name the loop: for x, y in prof.train(loader)",
    )
