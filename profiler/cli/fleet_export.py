"""``epochmeter fleet export``: the cells of a fleet that may be published."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from profiler.cli.fleet_ask import From, fleet_at
from profiler.cli.options import AsJson
from profiler.cli.output import say, say_json
from profiler.errors import ArgumentValueError, ProfilerError
from profiler.fleet import NEEDS
from profiler.records.plain_text import printable


def baseline(
    folder: Annotated[Path, typer.Argument(help="The folder that 'fleet export' has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to be given to others.")],
    key: Annotated[Path, typer.Option("--key", help="Your private key (Ed25519, PEM); made if it is not there.")],
    note: Annotated[str, typer.Option(help="What its jobs are, in your words; every comparison shows it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make one signed file of an export, for 'epochmeter report --baseline': how jobs of each class usually are.

    Example: epochmeter fleet baseline public --key baseline.pem -o baseline.json
    """
    try:
        from profiler.fleet.baseline import make_baseline
    except ImportError:
        raise ProfilerError(NEEDS) from None
    classes, public = make_baseline(folder, output, key, note)
    if as_json:
        say_json({"classes": classes, "signed_by": public})
        return
    say(f"{printable(output)}: {classes:,} {'class' if classes == 1 else 'classes'}, signed by {public}")


def export(
    folder: Annotated[Path, typer.Argument(help="The folder to publish: it keeps what was published before.")],
    place: From = "",
    k: Annotated[int, typer.Option("--k", help="The jobs that a cell must have at least; smaller cells stay out.")] = 20,
    by: Annotated[str, typer.Option(help="The columns, or your labels, that make a cell.")] = "hardware,version",
    unit: Annotated[str, typer.Option(metavar="LABEL", help="Count the values of this label, such as team, not jobs.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write cells of a fleet that are large enough to be published: JSON files by week, and a page of trends.

    Example: epochmeter fleet export public --k 20 --from fleet
    """
    names = tuple(name.strip() for name in by.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ArgumentValueError(f"--by takes different columns, such as hardware,version, not {by!r}")
    found = fleet_at(place)
    from profiler.fleet.export import SETTLED_DAYS, Rules, put_text, weeks_in
    from profiler.fleet.export import export as export_to
    from profiler.fleet.trends_page import trends_page

    told = export_to(found, folder, Rules(k, names, unit))
    put_text(folder / "index.html", trends_page(list(weeks_in(folder))))
    if as_json:
        say_json(asdict(told), str)
        return
    say(
        f"{len(told.weeks):,} weeks written with {told.cells:,} cells; {told.frozen:,} were published before and stay,"
        f" {told.unsettled:,} are not over for {SETTLED_DAYS} days yet"
    )
    small = {week: sizes for week, sizes in told.suppressed.items() if sizes}
    if small:
        say("for you alone, cells that stay out, with their jobs:", err=True)
        for week, sizes in small.items():
            say(f"  {week}: {', '.join(map(str, sizes))}", err=True)
