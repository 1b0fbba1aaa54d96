"""sra2 extract."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli.app import app, one_of, pick_device, show, start_processes, user_errors
from sra2cli.cli.options import (
    HOW,
    MACHINE,
    WHAT,
    WHERE,
    Device,
    DryRun,
    Json,
    Offline,
    Processes,
)
from sra2cli.core.errors import SetupError


@app.command()
def extract(
    images: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, zip, tar, WebDataset or parquet shards; or latents of REPA, SRA, REPA-E."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The store to write (HDF5).", rich_help_panel=WHERE)
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            help="A diffusers AutoencoderKL: folder, hub name, or 'digits'. "
            "Default: stabilityai/sd-vae-ft-mse; with --check, the store's.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    resolution: Annotated[
        int, typer.Option(help="Side of the centre crop, in pixels.", rich_help_panel=HOW)
    ] = 256,
    flip: Annotated[
        bool, typer.Option("--flip", help="Also encode the mirrored images.", rich_help_panel=HOW)
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Also store an image encoder's features (REPA): hub name or folder.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    feature_patch: Annotated[
        int,
        typer.Option(help="Patch size of the network to be trained.", min=1, rich_help_panel=HOW),
    ] = 2,
    precision: Annotated[
        str, typer.Option(help="Of the encoder: fp32, bf16 or fp16.", rich_help_panel=HOW)
    ] = "fp32",
    dtype: Annotated[
        str, typer.Option(help="Of the stored moments: float32 or float16.", rich_help_panel=HOW)
    ] = "float32",
    batch: Annotated[
        int | None,
        typer.Option(
            help="Images encoded together on a GPU. [default: 64] On a CPU their size "
            "decides how many run through the network at once.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Decoding processes for each encoding one.", min=0, rich_help_panel=MACHINE
        ),
    ] = None,
    logvar: Annotated[
        bool,
        typer.Option(
            "--logvar", help="The latents to import hold mean and logvar.", rich_help_panel=HOW
        ),
    ] = False,
    allow_rejects: Annotated[
        bool,
        typer.Option(
            "--allow-rejects", help="Exit 0 even if images were skipped.", rich_help_panel=HOW
        ),
    ] = False,
    dry_run: DryRun = False,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Verify and describe this store, and do nothing else.", rich_help_panel=WHAT
        ),
    ] = None,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview", help="Decode a random grid to STORE.preview.png.", rich_help_panel=WHERE
        ),
    ] = False,
    processes: Processes = None,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Encode images into a latent store. Run again to go on."""
    with user_errors():
        if check is not None:
            if images is not None or out is not None:
                raise SetupError("--check STORE takes no images and no --out")
            from sra2cli.extraction import inspect

            result = inspect.check(check)
        else:
            if images is None or out is None:
                raise SetupError("give IMAGES and --out STORE, or --check STORE")
            one_of("--precision", precision, ("fp32", "bf16", "fp16"))
            one_of("--dtype", dtype, ("float32", "float16"))
            start_processes(processes, device)
            from sra2cli.encoders.open import DEFAULT
            from sra2cli.extraction import extract as room
            from sra2cli.extraction.encode import Options

            options = Options(
                vae=vae or DEFAULT,
                resolution=resolution,
                mirrored=flip,
                encoder=encoder,
                feature_patch=feature_patch,
                precision=precision,  # type: ignore[arg-type]
                dtype=dtype,  # type: ignore[arg-type]
                batch=batch,
                workers=workers,
                logvar=logvar,
                offline=offline,
            )
            result = room.extract(images, out, options, device=pick_device(device), dry_run=dry_run)
        store = check or out
        if preview and store is not None and not dry_run:
            from sra2cli.extraction import inspect

            made = inspect.preview(store, vae=vae, device=pick_device(device), offline=offline)
            result["preview"] = str(made)
        show(result, json, "extract")
        if check is None and not allow_rejects:
            room.refuse_rejects(result)
