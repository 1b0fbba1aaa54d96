"""sra2 train."""

from pathlib import Path
from typing import Annotated

from sra2cli.cli import options as o
from sra2cli.cli.app import app, pick_device, show, start_processes, user_errors


@app.command()
def train(
    recipe: Annotated[
        str,
        o.what("Name of a packaged recipe (`sra2 recipes`), or a YAML file.", complete=o.recipes),
    ],
    data: Annotated[Path, o.what("A latent store, from `sra2 extract`.")],
    out: Annotated[Path | None, o.where("The run folder. Default: runs/RECIPE.")] = None,
    overrides: o.Overrides = None,
    images: Annotated[
        Path | None, o.what("REPA: the store's images, to run the encoder while training.")
    ] = None,
    init: Annotated[
        Path | None,
        o.how("Start from these weights: a run, a checkpoint of SiT, REPA, SRA, or hf:ORG/NAME."),
    ] = None,
    num_heads: o.NumHeads = None,
    kind: o.Kind = None,
    dry_run: o.DryRun = False,
    processes: o.Processes = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
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
                device=pick_device(device, apple=True),
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
            device=pick_device(device, apple=True),
            images=images,
            init=init,
            num_heads=num_heads,
            kind=kind,
            offline=offline,
        )
        shown = result if json else {**result, **result["last"]}
        show(shown, json, f"train {wanted.name}")
