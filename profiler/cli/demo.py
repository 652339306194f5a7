"""``epochmeter demo``: train a small net on bundled real data, profiled, and show the report."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from profiler.cli.options import AsJson
from profiler.cli.output import say_json


def demo(
    epochs: Annotated[int, typer.Option(min=1, max=1000, help="How many epochs to train.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Train a small net on 1,797 real images, profiled, and show the report.

    Example: epochmeter demo
    """
    from profiler.report.text import renderable
    from profiler.session.demo import BATCH, TRAIN_IMAGES, prepare, train
    from profiler.session.profiler import Profiler

    setup = prepare()
    steps = -(-TRAIN_IMAGES // BATCH) * epochs
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        task = progress.add_task("training", total=steps)
        with Profiler("demo", epochs=epochs, interval=0.25) as prof:
            losses, accuracies = train(
                setup,
                epochs,
                prof,
                lambda epoch, done: progress.update(task, completed=done, description=f"epoch {epoch + 1} of {epochs}"),
            )
    if as_json:
        say_json(prof.summary.to_dict())
        return
    console = Console()
    console.print(f"training loss {losses[0]:.3f} to {losses[-1]:.3f}, validation accuracy {accuracies[-1]:.1%}\n")
    console.print(renderable(prof.summary.run))
    console.print(f"\nkept on this machine; show it again with: epochmeter report {prof.summary.id}", highlight=False)
