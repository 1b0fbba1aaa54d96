"""sra2 eval."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli.app import Json, app, show, user_errors


@app.command(name="eval")
def evaluate(
    samples: Annotated[Path, typer.Argument(help="A samples folder, from `sra2 sample`.")],
    metric: Annotated[str, typer.Option(help="fd-digits.")] = "fd-digits",
    ref: Annotated[
        str | None, typer.Option(help="Folder of reference images; default: the metric's own.")
    ] = None,
    json: Json = False,
) -> None:
    """Judge samples."""
    with user_errors():
        from sra2cli import evaluate as room

        show(room.evaluate(samples, metric=metric, ref=ref), json, "eval")
