"""sra2 vae."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, chosen_source, one_of, pick_device, show, user_errors


@app.command()
def vae(
    images: Annotated[
        Path, typer.Argument(help="Folder, zip, tar, WebDataset or parquet shards, HDF5.")
    ],
    out: Annotated[Path, o.where("The folder of the first stage, for `--vae` everywhere.")],
    image: o.Image = None,
    label: Annotated[
        str | None, o.what("As of extract, which labels are read; none: do not look for any.")
    ] = None,
    split: o.Split = None,
    classes_from: o.ClassesFrom = None,
    resolution: Annotated[int, o.what("Side of the centre crop, in pixels.")] = 256,
    crop: Annotated[str, o.what("adm-center or uvit-center, as of extract.")] = "adm-center",
    held_out: Annotated[float, o.what("Part of the images that is kept for judging.")] = 0.05,
    limit: Annotated[
        int | None, o.what("Read so many images at most. [default: 1 GB of pixels]")
    ] = None,
    flip: Annotated[bool, o.what("Mirror images at random.", "--flip")] = False,
    widths: Annotated[
        str | None,
        o.how(
            "Of its levels, between which the side is halved. [default: 32,64,128 up to 64 px, "
            "else 32,64,128,128]"
        ),
    ] = None,
    layers: Annotated[int, o.how("Residual blocks of a level.")] = 1,
    channels: Annotated[int, o.how("Of the latents.")] = 4,
    l1: Annotated[float, o.how("Weight of the L1 error of pixels.", "--l1")] = 1.0,
    mse: Annotated[float, o.how("Weight of their squared error.")] = 0.0,
    gradient: Annotated[
        float, o.how("Weight of the L1 error of differences of neighbouring pixels.")
    ] = 0.0,
    kl: Annotated[float, o.how("Weight of the divergence from a normal, a dimension.")] = 1e-4,
    perceptual: Annotated[
        float, o.how("Weight of 1 - cosine of patch tokens of --features.")
    ] = 0.0,
    features: Annotated[
        str | None, o.how("An image encoder, as facebook/dinov2-base: hub name or folder.")
    ] = None,
    steps: Annotated[int, o.how("Of training.")] = 5000,
    batch: Annotated[int, o.how("Images of a step.")] = 16,
    lr: Annotated[float, o.how("The highest of one cycle of learning rates.")] = 2e-3,
    warmup: Annotated[float, o.how("Part of all steps over which it rises.")] = 0.05,
    seed: Annotated[int, o.how("Of weights, order and noise.")] = 0,
    fold_statistics: Annotated[
        bool,
        o.how(
            "Put mean and deviation of each latent channel into the weights, not the config.",
            "--fold-statistics",
        ),
    ] = False,
    one_scale: Annotated[
        bool, o.how("One scaling_factor for all channels instead.", "--one-scale")
    ] = False,
    dtype: Annotated[str, o.where("Of the weights: float32 or float16.")] = "float32",
    save_every: Annotated[int, o.where("Steps between checkpoints; may change.", min=1)] = 500,
    dry_run: o.DryRun = False,
    workers: Annotated[int | None, o.machine("Decoding processes.", min=0)] = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
) -> None:
    """Train a first stage (AutoencoderKL) on images of your own. Run again to go on."""
    with user_errors():
        one_of("--crop", crop, ("adm-center", "uvit-center"))
        one_of("--dtype", dtype, ("float32", "float16"))
        from sra2cli.first_stages import settings

        wanted = settings.checked(
            {
                "resolution": resolution,
                "crop": crop,
                "widths": settings.numbers(widths),
                "layers": layers,
                "channels": channels,
                "steps": steps,
                "batch": batch,
                "lr": lr,
                "warmup": warmup,
                "l1": l1,
                "mse": mse,
                "gradient": gradient,
                "kl": kl,
                "perceptual": perceptual,
                "features": features,
                "flip": flip,
                "held_out": held_out,
                "limit": limit,
                "fold_statistics": fold_statistics,
                "one_scale": one_scale,
                "dtype": dtype,
                "seed": seed,
            }
        )
        choice = chosen_source(image, label, split, classes_from)
        if dry_run:
            from sra2cli.first_stages.plan import plan

            found = plan(
                images, out, wanted, choice=choice, device=pick_device(device), offline=offline
            )
        else:
            from sra2cli.first_stages.train import train

            found = train(
                images,
                out,
                wanted,
                choice=choice,
                device=pick_device(device),
                save_every=save_every,
                workers=workers,
                offline=offline,
            )
        show(found, json, "vae")
