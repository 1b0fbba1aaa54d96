"""sra2 export."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, one_of, show, user_errors
from sra2cli.core.errors import SetupError


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run; RUN@STEP: its checkpoint of that step.")
    ],
    to: Annotated[Path, o.where("The folder: model.safetensors, config.json, README.md.", "--to")],
    weights: Annotated[str, o.what("ema or model.")] = "ema",
    head: Annotated[bool, o.what("With the head that can guide its sampling.", "--head")] = False,
    push: Annotated[
        str | None, o.where("Upload the folder to this repository of the hub: ORG/NAME.")
    ] = None,
    private: Annotated[bool, o.where("Of a repository that --push makes.", "--private")] = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
) -> None:
    """A run's network and its model card, for others. Run again to go on."""
    with user_errors():
        one_of("--weights", weights, ("ema", "model"))
        if private and push is None:
            raise SetupError("--private is of what --push makes")
        from sra2cli.core import console
        from sra2cli.publish.export import export as room

        found = room(
            source,
            to,
            weights=weights,  # type: ignore[arg-type]
            head=head,
            push=push,
            private=private,
            dry_run=dry_run,
        )
        show(found, json, "export")
        if not json and not dry_run:
            console.say(f"say the licence in {to / 'README.md'}: it is written once, and kept")
