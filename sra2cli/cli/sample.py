"""sra2 sample."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli.app import Device, Json, Offline, app, one_of, pick_device, show, user_errors
from sra2cli.errors import SetupError


@app.command()
def sample(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            help="A run folder, or a checkpoint of SiT, REPA, SRA or ours.",
        ),
    ],
    num: Annotated[int, typer.Option(help="How many images.")] = 100,
    seed: Annotated[
        int, typer.Option(help="Image i depends on (seed, i) alone.", min=0, max=2**63 - 1)
    ] = 0,
    labels: Annotated[str, typer.Option(help="random, balanced, or classes as 0,1,2.")] = "random",
    solver: Annotated[str, typer.Option(help="em (SDE), euler or heun (ODE).")] = "em",
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 250,
    last_step: Annotated[
        float, typer.Option(help="em: length of its noise-free last step.")
    ] = 0.04,
    cfg: Annotated[float, typer.Option(help="Guidance scale; 1 is none.")] = 1.0,
    interval: Annotated[str, typer.Option(help="Times a:b in which guidance applies.")] = "0:1",
    cfg_channels: Annotated[
        int | None, typer.Option(help="Guide the first n latent channels only.")
    ] = None,
    rounding: Annotated[
        str, typer.Option(help="To uint8: truncate (as REPA) or nearest.")
    ] = "truncate",
    step: Annotated[
        int | None, typer.Option(help="Checkpoint of this step; default: newest.")
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or model.")] = "ema",
    vae: Annotated[
        str | None, typer.Option(help="Decode with this VAE; default: the store's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: inside RUN/samples.")] = None,
    batch: Annotated[int, typer.Option(help="Images at a time; does not change them.")] = 64,
    num_heads: Annotated[
        int | None, typer.Option(help="For checkpoints of sizes that are not in the table.")
    ] = None,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Draw images from a run or a checkpoint. Run again to go on."""
    with user_errors():
        one_of("--solver", solver, ("em", "euler", "heun"))
        one_of("--weights", weights, ("ema", "model"))
        one_of("--rounding", rounding, ("truncate", "nearest"))
        window = parse_interval(interval)
        from sra2cli import sample as room
        from sra2cli.generate import Sampling

        sampling = Sampling(
            solver=solver,  # type: ignore[arg-type]
            steps=steps,
            last_step=last_step,
            cfg=cfg,
            interval=window,
            cfg_channels=cfg_channels,
            labels=labels,
            seed=seed,
            rounding=rounding,  # type: ignore[arg-type]
        )
        result = room.sample(
            source,
            num=num,
            sampling=sampling,
            step=step,
            weights=weights,  # type: ignore[arg-type]
            out=out,
            vae=vae,
            batch=batch,
            num_heads=num_heads,
            device=pick_device(device),
            offline=offline,
        )
        show(result, json, "sample")


def parse_interval(text: str) -> tuple[float, float]:
    """ "0:0.7" → (0.0, 0.7)."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise SetupError(f"--interval is a:b, as 0:0.7; not '{text}'") from None
    return low, high
