"""The questions that a fleet is asked: each one SQL text, a file in `sql/`, which runs unchanged in both engines."""

from __future__ import annotations

import re
from datetime import date
from typing import NamedTuple

from profiler.errors import ArgumentValueError, did_you_mean
from profiler.fleet.columns import COLUMNS, DERIVED, PLACE, TABLE, USAGE, filled, text_of

PLAIN = re.compile(r"[^\\\x00-\x1f\x7f]{1,200}")
GROUPS = frozenset(one.name for one in COLUMNS if one.kind in ("text", "word")) | {one.name for one in DERIVED}


class Question(NamedTuple):
    """A question.

    Attributes:
        name: its name.
        none: the text where nothing answers it.
        needs: the condition, as SQL, on a row that helps to answer it.
        lacks: the text where no row does: it says which metrics to send.
        table: the table with these rows.
    """

    name: str
    none: str
    needs: str
    lacks: str
    table: str = TABLE

    @property
    def sql(self) -> str:
        """Its text, with examples in the places of the arguments."""
        return text_of(self.name)

    @property
    def help(self) -> str:
        """The question in words: the first line of its file."""
        return self.sql.splitlines()[0].removeprefix("-- ")


TRAINING = (
    "stage = 'train' AND steps > 0",
    "no row has steps of training: a collector must keep epochmeter.stage.time, .steps and .samples",
)
CAUSES = (
    "length(mapKeys(ledger_s)) > 0",
    "no row tells what time was spent on: a collector must keep epochmeter.phase.duration",
)
QUESTIONS = {
    question.name: question
    for question in (
        Question("trend", "no training is in it", *TRAINING),
        Question(
            *("regression", "no workload ran with both versions on the same hardware", f"{TRAINING[0]} AND workload <> ''"),
            "no row of training tells its workload: give runs a label such as task, and name it where the fleet is made"
            " (--workload task)",
        ),
        Question(
            *("stragglers", "no rank holds its job back", "job <> '' AND rank IS NOT NULL"),
            "no row tells of ranks: jobs of torch.distributed do; a collector must keep epochmeter.distributed.job and .rank",
        ),
        Question(
            *("slow-nodes", "no machine is slower than the others", "machine <> ''"),
            "no row tells its machine: give runs a label (EPOCHMETER_LABELS=node:n17), or let a collector add k8s.node.name"
            " or host.name",
        ),
        Question("waste", "no time is in it", *CAUSES),
        Question(
            *("energy", "no energy of a GPU is in it", "energy_j IS NOT NULL"),
            "no row has the energy of a GPU: its driver must tell it, and a collector keep epochmeter.gpu.energy.used",
        ),
        Question("waiting", "no training is in it", *CAUSES),
        Question(
            *("steps", "no steps are in it", "step_zeros > 0 OR length(step_counts) > 0"),
            "no row has durations of steps: a collector must keep epochmeter.step.duration, an exponential histogram",
        ),
        Question(
            *("features", "no count of a package is in it", "times > 0"),
            "counts of a package's features arrive at a collector: 'epochmeter fleet collector' shows its tables as a fleet",
            USAGE,
        ),
    )
}


def question(name: str) -> Question:
    """Return the question of that name.

    Raises:
        ArgumentValueError: there is none.
    """
    if name not in QUESTIONS:
        raise ArgumentValueError(f"a fleet is asked for {', '.join(QUESTIONS)}, not {name!r}.{did_you_mean(name, QUESTIONS)}")
    return QUESTIONS[name]


def sql_of(name: str, *, by: str = "", old: str = "", new: str = "", since: date | None = None) -> str:
    """Return the SQL of a question.

    Args:
        name: the question.
        by: a column of words, or one of the user's own labels, to group by instead of the question's own column.
        old: the version to compare with, where versions are compared.
        new: the version that is compared.
        since: leave out rows that began before this day.

    Raises:
        ArgumentValueError: there is no such question, or it does not ask for one of these.
    """
    text = question(name).sql
    given = {"BY": by and grouped(by), "OLD": old and _quoted(old), "NEW": new and _quoted(new)}
    given["SINCE"] = _quoted(since.isoformat()) if since is not None else ""
    asked = set(PLACE.findall(text))
    for place, value in given.items():
        if value and place not in asked:
            raise ArgumentValueError(f"the question {name} does not ask for {place.lower()}")
        if not value and place in asked and place in ("OLD", "NEW"):
            raise ArgumentValueError(f"the question {name} compares two versions: name the old one and the new one")
    if old and old == new:
        raise ArgumentValueError(f"the question {name} compares two versions, not {old!r} with itself")
    return filled(text, given)


def grouped(by: str) -> str:
    """Return the SQL of a column of words, or of one of the user's own labels.

    Raises:
        ArgumentValueError: it cannot be a name.
    """
    return by if by in GROUPS else f"coalesce(labels[{_quoted(by)}], '')"


def _quoted(text: str) -> str:
    if not PLAIN.fullmatch(text):
        raise ArgumentValueError(f"{text!r} is no name: it has 1 to 200 letters, without a backslash")
    return "'" + text.replace("'", "''") + "'"
