"""sra2 recipes."""

from typing import Annotated

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, user_errors


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A recipe to print, with everything it inherits; or a YAML file.",
            autocompletion=o.recipes,
        ),
    ] = None,
    overrides: o.Overrides = None,
    json: o.Json = False,
) -> None:
    """The packaged recipes, a line each; or one of them, resolved."""
    with user_errors():
        from sra2cli.config import recipe as room
        from sra2cli.core import console

        if name is None:
            rows = [(found, room.headline(found)) for found in room.names()]
            if json:
                console.print_json(dict(rows))
            else:
                width = max(len(found) for found, _ in rows)
                print("\n".join(f"{found:<{width}}  {line}" for found, line in rows))
            return
        tree = room.load(name, overrides or []).to_dict()
        if json:
            console.print_json(tree)
        else:
            print(room.text_of(tree), end="")
