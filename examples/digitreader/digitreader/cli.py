"""The command line: ``train`` and ``predict``, and Epochmeter's ``settings`` and ``telemetry``."""

from pathlib import Path
from typing import Annotated

import typer

from digitreader.telemetry import telemetry
from epochmeter import mount

app = typer.Typer(help="Reads handwritten digits.", no_args_is_help=True, pretty_exceptions_enable=False)
mount.settings(app)
mount.telemetry(app, telemetry)
MODEL = Path("digits.pt")


@app.command()
def train(
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    augment: Annotated[bool, typer.Option("--augment", help="Shift the images by a pixel at random.")] = False,
    output: Path = MODEL,
) -> None:
    """Train on 1,437 images and say how many of 360 others are read rightly."""
    from digitreader import model

    typer.echo(f"accuracy {model.train(epochs, augment, output):.1%}, saved in {output}")


@app.command()
def predict(index: Annotated[int, typer.Argument(min=0, max=1796)], model: Path = MODEL) -> None:
    """Read one of the images."""
    from digitreader import model as reader

    seen, shown = reader.predict(index, model)
    typer.echo(f"image {index} looks like a {seen}, and shows a {shown}")


def main() -> None:
    telemetry.watch(app)()
