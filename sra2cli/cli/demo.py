"""sra2 demo."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli.app import app, user_errors
from sra2cli.cli.options import HOW, WHERE, Json


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.", rich_help_panel=WHERE)] = Path(
        "runs/demo"
    ),
    seed: Annotated[
        int, typer.Option(help="Of both runs.", min=0, max=2**63 - 1, rich_help_panel=HOW)
    ] = 0,
    steps: Annotated[
        int, typer.Option(help="Training steps of each run.", min=2, rich_help_panel=HOW)
    ] = 2400,
    json: Json = False,
) -> None:
    """The whole pipeline on real handwritten digits, on a laptop, in minutes."""
    with user_errors():
        from sra2cli import demo as room

        result = room.demo(out, in_process, seed=seed, steps=steps)
        if json:
            from sra2cli.core import console

            console.print_json(result)


def in_process(arguments: list[str]) -> None:
    """Print a command line that a user can repeat, and run it here: torch is imported already."""
    from sra2cli.core import console

    console.say("$ sra2 " + shlex.join(arguments))
    with console.no_results():
        app(arguments, standalone_mode=False)
