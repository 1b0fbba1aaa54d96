"""sra2 train."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli import options
from sra2cli.cli.app import app, pick_device, show, start_processes, user_errors
from sra2cli.cli.options import (
    HOW,
    WHAT,
    WHERE,
    Device,
    DryRun,
    Json,
    Kind,
    NumHeads,
    Offline,
    Overrides,
    Processes,
)


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Option(
            help="Name of a packaged recipe (`sra2 recipes`), or a YAML file.",
            rich_help_panel=WHAT,
            autocompletion=options.recipes,
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="A latent store, from `sra2 extract`.", rich_help_panel=WHAT)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder. Default: runs/RECIPE.", rich_help_panel=WHERE),
    ] = None,
    overrides: Overrides = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="REPA: the store's images, to run the encoder while training.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start from these weights: a run, or a checkpoint of SiT, REPA, SRA.",
            rich_help_panel=HOW,
        ),
    ] = None,
    num_heads: NumHeads = None,
    kind: Kind = None,
    dry_run: DryRun = False,
    processes: Processes = None,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Train a recipe. Run again to go on."""
    with user_errors():
        from sra2cli.config import recipe as recipes

        wanted = recipes.load(recipe, overrides or [])
        if dry_run:
            from sra2cli.training import plan

            planned = plan.plan(
                wanted,
                data,
                processes=processes,
                device=pick_device(device),
                images=images,
                init=init,
                num_heads=num_heads,
                kind=kind,
                offline=offline,
            )
            show(planned, json, f"train {wanted.name}")
            return
        start_processes(processes, device)
        from sra2cli.training import train as room

        result = room.train(
            wanted,
            data,
            out or Path("runs") / wanted.name,
            device=pick_device(device),
            images=images,
            init=init,
            num_heads=num_heads,
            kind=kind,
            offline=offline,
        )
        show({**result, **result["last"]}, json, f"train {wanted.name}")
