"""sra2 demo."""

import shlex
from pathlib import Path
from typing import Annotated

from sra2cli.cli import options as o
from sra2cli.cli.app import app, user_errors


@app.command()
def demo(
    out: Annotated[Path, o.where("Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, o.how("Of both runs.", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[int, o.how("Training steps of each run.", min=2)] = 2400,
    json: o.Json = False,
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
