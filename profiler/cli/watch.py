"""``epochmeter watch``: a run of this machine while it goes on, from its log alone. The run notices nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from profiler.cli.options import OneRun
from profiler.cli.output import SCHEMA, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import Run
    from profiler.storage.follower import LogFollower


def watch(
    run: OneRun = "last",
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Each look as JSON, one line on stdout.")] = False,
) -> None:
    """Show a run while it goes on: how far it is, where the last minute went, and in which phase it hangs.

    Ends with the run, or with Ctrl-C. In a pipe, and on a terminal that cannot move its cursor, each look is one line.

    Example: epochmeter watch last --every 5
    """
    from profiler.config.paths import runs_path
    from profiler.report.progress import one_line
    from profiler.storage.follower import LogFollower
    from profiler.storage.run_reader import find

    follower = LogFollower(find(runs_path(), run))
    if as_json:
        _follow(follower, every, lambda seen: say(json.dumps(_as_data(seen))), once=once)
        return
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        from rich.live import Live

        from profiler.report.watch import screen

        with Live(console=console, auto_refresh=False, transient=False) as live:
            _follow(follower, every, lambda seen: live.update(screen(seen), refresh=True), once=once)
        return
    _follow(
        *(follower, every, lambda seen: say(f"{time.strftime('%H:%M:%SZ', time.gmtime())} {seen.id} {one_line(seen)}")),
        once=once,
    )


def _as_data(run: Run) -> dict[str, Any]:
    """Return a look as data; unknown values are left out."""
    from dataclasses import asdict

    from profiler.report.progress import progress

    known = {key: value for key, value in asdict(progress(run)).items() if value not in (None, "", {})}
    return {
        "schema": SCHEMA,
        "run": run.id,
        "state": run.state,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **known,
    }


def _follow(follower: LogFollower, every: float, show: Callable[[Run], None], *, once: bool) -> None:
    """Show the run at each look, until it has ended."""
    from profiler.storage.run_reader import believed

    while True:
        seen = follower.look()
        with believed(seen):
            show(seen)
        if once or seen.state != "running":
            return
        _wait(every)


def _wait(seconds: float) -> None:
    """Wait for the next look.

    Raises:
        Exit: Ctrl-C was pressed, which is how one stops to watch.
    """
    sys.stdout.flush()
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
