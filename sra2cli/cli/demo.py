"""sra2 demo."""

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from sra2cli.cli import options as o
from sra2cli.cli.app import app, user_errors


@app.command()
def demo(
    out: Annotated[
        Path | None, o.where("Where everything goes. [default: runs/demo, runs/demo-text]")
    ] = None,
    text: Annotated[
        bool, o.what("Emoji and their names: text to image, instead of digits.", "--text")
    ] = False,
    seed: Annotated[int, o.how("Of both runs.", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[int, o.how("Training steps of each run.", min=2)] = 2400,
    json: o.Json = False,
) -> None:
    """The whole pipeline on a laptop, in minutes: on handwritten digits, or on captions."""
    with user_errors():
        if text:
            from sra2cli.demo.text import demo as carry_out
        else:
            from sra2cli.demo.digits import demo as carry_out
        from sra2cli.core import console

        out = out or Path("runs", "demo-text" if text else "demo")
        with console.no_results() if json else nullcontext():
            result = carry_out(out, in_process, seed=seed, steps=steps)
        if json:
            console.print_json(result)


def in_process(arguments: list[str]) -> None:
    """Print a command line that a user can repeat, and run it here: torch is imported already."""
    from sra2cli.core import console

    console.say("$ sra2 " + shlex.join(arguments))
    with console.no_results():
        app(arguments, standalone_mode=False)
