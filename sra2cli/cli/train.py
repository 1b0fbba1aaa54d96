"""sra2 train."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli.app import (
    Device,
    Json,
    Offline,
    Processes,
    app,
    pick_device,
    show,
    start_processes,
    user_errors,
)


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="Name of a packaged recipe, or a YAML file.")],
    data: Annotated[Path, typer.Option(help="A latent store, from `sra2 extract`.")],
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/RECIPE.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: key.sub=value. Repeatable.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="REPA: the store's images, to run the encoder while training."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from these weights: a run, or a checkpoint of SiT, REPA, SRA."),
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="Of --init, where its size is not in the table.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what it will take.")
    ] = False,
    processes: Processes = None,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Train a recipe. Run again to go on."""
    with user_errors():
        from sra2cli import recipe as recipes

        wanted = recipes.load(recipe, overrides or [])
        if dry_run:
            from sra2cli import plan

            show(
                plan.plan(
                    wanted,
                    data,
                    processes=processes,
                    device=pick_device(device),
                    images=images,
                    init=init,
                    num_heads=num_heads,
                ),
                json,
                f"train {wanted.name}",
            )
            return
        start_processes(processes, device)
        from sra2cli import train as room

        result = room.train(
            wanted,
            data,
            out or Path("runs") / wanted.name,
            device=pick_device(device),
            images=images,
            init=init,
            num_heads=num_heads,
            offline=offline,
        )
        show({**result, **result["last"]}, json, f"train {wanted.name}")
