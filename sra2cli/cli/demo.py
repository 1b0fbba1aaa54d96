"""sra2 demo."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli.app import Json, app, user_errors


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of both runs.", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[int, typer.Option(help="Training steps of each run.", min=2)] = 2400,
    json: Json = False,
) -> None:
    """The whole pipeline on real handwritten digits, on a laptop, in minutes."""
    with user_errors():
        from sra2cli import demo as room

        result = room.demo(out, seed=seed, steps=steps)
        if json:
            from sra2cli import console

            console.print_json(result)
