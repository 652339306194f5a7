"""The words for stages and phases."""

from __future__ import annotations

from enum import Enum

from profiler.errors import ArgumentTypeError, ArgumentValueError


class Stage(str, Enum):
    """The purpose of a pass over a loader."""

    TRAIN = "train"
    VAL = "val"
    INFERENCE = "inference"


ORDER = (*Stage, None)  # of stages in a report
STAGES = tuple(stage.value for stage in Stage)  # the same, as text


class Phase(str, Enum):
    """The words for parts of a step that an exporter may send. Any other word of yours stays on this machine."""

    DATA_WAIT = "data_wait"
    TRANSFER = "transfer"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    METRICS = "metrics"
    CHECKPOINT = "checkpoint"
    LOGGING = "logging"


def printable(name: str) -> str:
    """Return the name as text that every encoder takes. Half characters, as in undecodable file names, become "?"."""
    return name.encode("utf-8", "replace").decode("utf-8")


def phase_name(name: str | Phase) -> str:
    """Return the name of a phase as text.

    Raises:
        ArgumentTypeError: it is neither a `Phase` nor a string.
        ArgumentValueError: it is empty, longer than 100 characters, or "other", the name of the time without a phase.
    """
    if isinstance(name, Phase):
        return name.value
    if not isinstance(name, str):
        raise ArgumentTypeError(f"a phase needs a name, a string or a Phase such as Phase.FORWARD, not {name!r}")
    if not name.strip() or len(name) > 100:
        raise ArgumentValueError(f"a phase's name has 1 to 100 characters, unlike {name[:120]!r}")
    if name == "other":
        raise ArgumentValueError("'other' is the time that no phase covers; give the phase another name")
    return printable(name)
