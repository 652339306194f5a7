"""``epochmeter whatif``: the cost of each cause of a run, with an interval, and the proof by running steps again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from profiler.cli.options import AsJson, run_ids
from profiler.cli.output import complain, say, say_json
from profiler.errors import ArgumentValueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.report.whatif import WhatIf
    from profiler.session.proof import Proof

CONTEXT = {"allow_interspersed_args": True}
WIDTH = 120  # where nobody says how wide
RUN_ID = re.compile("last|[0-9a-fA-F]{1,12}")


def whatif(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [-- SCRIPT ARGS...]", help="A run; with --prove also its script.", autocompletion=run_ids
        ),
    ] = None,
    proves: Annotated[bool, typer.Option("--prove", help="Run the script again for some steps, and measure it.")] = False,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module's name, as for python -m.")] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=20, help="How often each proof is run.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show the time that a run would have taken without each of its causes.

    Example: epochmeter whatif last --prove -- train.py --lr 0.1
    """
    from profiler.config.paths import runs_path
    from profiler.report.whatif import whatifs
    from profiler.storage.run_reader import believed, find, load

    named, command = _split(words or [], proves)
    recorded = load(find(runs_path(), named))
    with believed(recorded):
        rows = whatifs(recorded)
    if not rows:
        complain(f"run {recorded.id} shows nothing to do without: see 'epochmeter report {recorded.id}'")
    proofs: list[Proof] = []
    if proves:
        proofs = _proofs(recorded, rows, command, module, rounds)
    elif command:
        raise ArgumentValueError(f"{command[0]!r} is run again with --prove alone; {_example(recorded.id)}")
    if as_json:
        say_json(_document(recorded.id, rows, proofs))
        return
    if rows:
        for line in _table(rows):
            say(line)
    for line in map(_proof_line, proofs):
        say(line)


def _split(words: list[str], proves: bool) -> tuple[str, list[str]]:
    """Return the run that is named, "last" for none, and the script with its arguments; only a proof may begin with one."""
    if not words or (proves and not RUN_ID.fullmatch(words[0])):
        return "last", words
    return words[0], words[1:]


def _example(run: str) -> str:
    return f"such as: epochmeter whatif {run} --prove -- train.py --lr 0.1"


def _proofs(recorded: Any, rows: list[WhatIf], command: list[str], module: bool, rounds: int) -> list[Proof]:
    from profiler.cli.run import python_command
    from profiler.session.proof import is_provable, prove

    if recorded.way != "script":
        what = f"run {recorded.id} was not recorded by 'epochmeter run', so its steps cannot be run again"
        raise ArgumentValueError(f"{what}; record the script with it first")
    if not command:
        raise ArgumentValueError(f"arguments are not kept, so --prove needs the script and its own: {_example(recorded.id)}")
    if "train" not in recorded.whole().stages:
        raise ArgumentValueError(f"run {recorded.id} has no training step to run again")
    provable = [row for row in rows if is_provable(row)]
    if not provable:
        complain(
            "nothing here can be proved by running steps again: "
            "only waiting for data, collections, checkpoints and logging, each from 5 % of the loop on"
        )
        return []
    return prove(
        recorded, provable, python_command(command[0], command[1:], module), lambda line: say(line, err=True), rounds=rounds
    )


def _table(rows: list[WhatIf]) -> Iterator[str]:
    from profiler.report.layout import Column, lines, place_width, shares, times, words

    spans = ["" if row.low is None or row.high is None else f"{row.low:.1%} to {row.high:.1%}" for row in rows]
    columns = (
        words("what if", [row.what for row in rows]),
        shares("saves", [row.saved for row in rows]),
        Column("95 % interval", spans, rank=1),
        times("an epoch takes", [row.then_s for row in rows], rank=2),
        times("instead of", [row.now_s for row in rows], rank=3),
        words("", [row.bound for row in rows], rank=4),
    )
    yield from lines(columns, place_width(WIDTH))


def _proof_line(proof: Proof) -> str:
    predicted = proof.predicted
    span = "" if predicted.low is None or predicted.high is None else f" ({predicted.low:.1%} to {predicted.high:.1%})"
    found = proof.measured
    measured = f"measured {found.mean:.1%} ({found.low:.1%} to {found.high:.1%}) in {proof.steps} steps"
    return f"{predicted.what}: predicted {predicted.saved:.1%}{span}, {measured}: {proof.outcome}"


def _document(run: str, rows: list[WhatIf], proofs: list[Proof]) -> dict[str, Any]:
    told: dict[str, Any] = {"run": run, "whatif": [row.to_dict() for row in rows]}
    if proofs:
        told["proofs"] = [
            {
                "key": proof.predicted.key,
                "predicted": proof.predicted.saved,
                "measured": proof.measured.mean,
                "interval": [proof.measured.low, proof.measured.high],
                "again": proof.again.mean,
                "again_interval": [proof.again.low, proof.again.high],
                "steps": proof.steps,
                "outcome": proof.outcome.partition(":")[0],
            }
            for proof in proofs
        ]
    return told
