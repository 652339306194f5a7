"""``epochmeter bench``: the limits of this machine in training and inference, and how near models come to them."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from profiler.cli.options import percentage
from profiler.errors import ArgumentValueError, ProfilerError
from profiler.records.plain_text import printable_in

LINE_EVERY_S = 5.0  # where there is no terminal
PARTIAL, REGRESSION, INTERRUPTED = 3, 1, 130
STDOUT = Path("-")
WIDTH = 100  # where nobody says how wide
WHAT = "limits, models, loader; one of their cases, such as matmul or resnet50; or package.module:factory of your own."


def bench(
    what: Annotated[list[str] | None, typer.Argument(metavar="[SUITE]...", help=WHAT)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default the best there is.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float64, float32, tf32, bfloat16, float16; may be repeated.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, max=2**20, help="Samples in a step, of every stage.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller nets, fewer repeats: half a minute.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure the models through torch.compile.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="All of it, as JSON; - is stdout.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="A row for each case; - is stdout.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="The tables; - is stdout.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="FILE", help="A result written by --json, to compare with.")] = None,
    fail_on: Annotated[str | None, typer.Option(metavar="PERCENT", help="With --compare: slower by this exits with 1.")] = None,
    time_limit: Annotated[float | None, typer.Option(min=1, help="Seconds that a case may take in each launch.")] = None,
) -> None:
    """Measure the limits of this machine in training and inference. Nothing is installed or sent.

    Example: epochmeter bench --quick, or epochmeter bench resnet50 --dtype bfloat16 --json today.json
    """
    outputs = {"json": json_file, "csv": csv_file, "markdown": markdown_file}
    before = _before(compare)
    limit = _limit(fail_on, compare)
    _check_outputs(outputs)
    if importlib.util.find_spec("torch") is None:
        raise ProfilerError("bench needs torch, which is not installed: pip install 'epochmeter[torch]'")
    from profiler.bench import plan
    from profiler.bench.suite import Request
    from profiler.config.environment import variables
    from profiler.measure.ranks import place_from

    method = plan.QUICK if quick else plan.FULL
    if compiled or time_limit is not None:
        method = replace(method, limit_s=time_limit or plan.COMPILED_LIMIT_S)
    rank, ranks = place_from(variables(("RANK", "WORLD_SIZE"))) or (0, 1)
    request = Request(what or (), device, dtype or (), batch, compiled, method, ranks)
    plan.chosen(request.words)  # these say what is wrong with the words before anything is started
    plan.check_names(request.dtypes)
    if rank > 0:
        _follow(request)
        return
    try:
        document, interrupted = _measured(request)
    except KeyboardInterrupt:  # before there was anything to keep
        raise typer.Exit(INTERRUPTED) from None
    _show(document, outputs)
    regressed = before is not None and _compared(before, document, limit, STDOUT in outputs.values())
    cases = document.get("bench", {}).get("cases", [])
    partial = not cases or any(case["status"] not in ("ok", "skipped") for case in cases)
    code = INTERRUPTED if interrupted else PARTIAL if partial else REGRESSION if regressed else 0
    raise typer.Exit(code)


def _measured(request: Any) -> tuple[dict[str, Any], bool]:
    """Return the run's document, and True if Ctrl-C ended it."""
    from profiler.bench import runner, suite
    from profiler.report.document import document
    from profiler.session.profiler import Profiler

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    interrupted = False
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting torch", total=None)
        machine = runner.describe()
        suite.check(machine, request)
        prof = Profiler("bench", distributed=False)
        try:
            with prof:
                shown = _suite_progress(progress, task) if console.is_terminal else _line_progress(console)
                suite.measure(prof, machine, request, shown)
        except KeyboardInterrupt:
            interrupted = True
    return document(prof.summary.run), interrupted


def _suite_progress(progress: Progress, task: TaskID) -> Any:
    from profiler.bench.suite import Progress as SuiteProgress

    expected = 0

    def expect(steps: int) -> None:
        nonlocal expected
        expected += steps
        progress.update(task, total=expected)

    return SuiteProgress(expect, lambda case: progress.update(task, advance=1, description=case))


def _line_progress(console: Console) -> Any:
    """Return a progress that writes a line now and then, for a pipe or a file."""
    from profiler.bench.suite import Progress as SuiteProgress

    began = told = time.monotonic()
    done = expected = 0

    def expect(steps: int) -> None:
        nonlocal expected
        expected += steps

    def step(case: str) -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if now - told >= LINE_EVERY_S or done == expected:
            told = now
            console.print(
                f"bench: {done} of {expected} steps after {now - began:.0f} s: {case}", highlight=False, soft_wrap=True
            )

    return SuiteProgress(expect, step)


def _follow(request: Any) -> None:
    """Take the part of a rank behind the first one: its share of the all-reduce."""
    from profiler.bench import plan, runner
    from profiler.config.environment import variables

    names, _ = plan.chosen(request.words)
    if {"limits", "all_reduce"} & set(names):
        machine = runner.describe()
        local_rank = variables(("LOCAL_RANK",)).get("LOCAL_RANK", "")
        device = plan.rank_device(machine, request.device, int(local_rank) if local_rank.isdigit() else 0)
        runner.follow(plan.all_reduce(device, request.method.quick, request.ranks))


# ---- output --------------------------------------------------------------------------------------------------------


def _show(document: dict[str, Any], outputs: dict[str, Path | None]) -> None:
    from profiler.config.resolve import resolve
    from profiler.report.bench import as_csv, markdown, tables
    from profiler.report.text import spaced

    cases = document.get("bench", {}).get("cases", [])
    made = {
        "json": lambda: json.dumps(document, indent=2) + "\n",
        "csv": lambda: as_csv(cases),
        "markdown": lambda: markdown(cases),
    }
    console = _console(STDOUT in outputs.values())
    console.print(spaced(tables(cases)))
    kept = f"kept on this machine; show it again with: epochmeter report {document['run']['id']}"
    console.print(f"\n{_machine(document)}; {kept if resolve().settings.local else 'not kept (local is off)'}", soft_wrap=True)
    for form, path in outputs.items():
        if path == STDOUT:
            typer.echo(made[form](), nl=False)
    problems = [
        problem for form, path in outputs.items() if path not in (None, STDOUT) and (problem := _write(path, made[form]()))
    ]
    if problems:
        raise ProfilerError("; ".join(problems))


def _console(to_stderr: bool) -> Console:
    from profiler.report.layout import place_width

    return Console(stderr=to_stderr, width=None if sys.stdout.isatty() else place_width(WIDTH), highlight=False)


def _machine(document: dict[str, Any]) -> str:
    hardware = document["hardware"]
    names = [gpu["name"] for gpu in hardware["gpus"] if "name" in gpu]
    words = [*names, hardware["cpu"].get("family"), f"torch {hardware['runtime'].get('torch', '')}".strip()]
    return ", ".join(word for word in words if word)


def _write(path: Path, content: str) -> str:
    """Write a file, and return the error in words, or ""."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        return f"the result cannot be written to {path}: {error.strerror}"
    return ""


def _check_outputs(outputs: dict[str, Path | None]) -> None:
    """Check the output files before minutes of measuring, not after."""
    paths = [path for path in outputs.values() if path is not None]
    for path in paths:
        if paths.count(path) > 1:
            where = "to stdout (-)" if path == STDOUT else f"into {path}"
            raise ArgumentValueError(f"only one of --json, --csv and --markdown can go {where}")
        folder = path.resolve().parent
        if path != STDOUT and (path.is_dir() or not folder.is_dir()):
            raise ArgumentValueError(f"{path} cannot be written: it is a folder, or the folder it is to be in is not there")
        if path != STDOUT and not os.access(path if path.exists() else folder, os.W_OK):
            raise ArgumentValueError(f"{path} cannot be written: it, or the folder it is to be in, is read-only")


# ---- comparing -----------------------------------------------------------------------------------------------------


def _before(path: Path | None) -> Sequence[dict[str, Any]] | None:
    if path is None:
        return None
    what = "a result of 'epochmeter bench --json FILE'"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cases: list[dict[str, Any]] = printable_in(content["bench"]["cases"])
        for case in cases:
            _check_case(case)
    except OSError as error:
        raise ArgumentValueError(f"{path} cannot be read: {error.strerror}; --compare takes {what}") from None
    except (ValueError, TypeError, LookupError):
        raise ArgumentValueError(f"{path} is not {what}") from None
    return cases


def _check_case(case: Any) -> None:
    """Check a case of a file to compare with.

    Raises:
        ValueError, TypeError, LookupError: it is not one of ours.
    """
    from profiler.report.bench import KEY

    if not all(isinstance(case[key], str) for key in ("suite", "name", "status")):
        raise TypeError
    if not all(isinstance(case.get(key), (str, int, type(None))) for key in KEY):
        raise TypeError
    if "time_s" in case and not all(0 < float(case["time_s"][key]) < math.inf for key in ("low", "median", "high")):
        raise ValueError


def _limit(text: str | None, compare: Path | None) -> float | None:
    if text is None:
        return None
    if compare is None:
        raise ArgumentValueError("--fail-on needs --compare FILE: without a FILE there is nothing to compare")
    return percentage(text)


def _compared(before: Sequence[dict[str, Any]], document: dict[str, Any], limit: float | None, to_stderr: bool) -> bool:
    """Show both benchmarks side by side. Return True if a case became slower by more than the limit, and not by chance."""
    from profiler.bench.estimate import Estimate, difference
    from profiler.report.bench import compared, comparison, title

    def between(then: dict[str, Any], now: dict[str, Any]) -> Any:
        return difference(*(Estimate(*(case["time_s"][key] for key in ("median", "low", "high"))) for case in (then, now)))

    rows = compared(before, document.get("bench", {}).get("cases", []), between)  # type: ignore[arg-type]
    console = _console(to_stderr)
    console.print()
    console.print(comparison(rows))
    if any(row.change is not None and row.case["time_s"].get("launches") == 1 for row in rows):
        console.print("measured in one launch each: differences between launches are not in these intervals")
    found = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("slower", "faster", "noise")}
    others = len(rows) - sum(found.values())
    console.print(
        f"{found['slower']} slower, {found['faster']} faster, {found['noise']} within noise"
        + (f", {others} without a counterpart" if others else "")
    )
    regressed = [row for row in rows if limit is not None and row.verdict == "slower" and row.change.low > limit]
    for row in regressed:
        console.print(f"slower by more than {limit:.1%}: {title(row.case)} ({row.change.low:+.1%} at least)")
    return bool(regressed)
