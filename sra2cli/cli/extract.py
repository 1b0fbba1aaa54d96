"""sra2 extract."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import (
    app,
    chosen_source,
    one_of,
    pick_device,
    refuse_given,
    show,
    start_processes,
    user_errors,
)
from sra2cli.core.errors import SetupError

ENCODING = (  # options that mean nothing for a store that is there
    *("resolution", "flip", "encoder", "feature_patch", "precision", "dtype", "batch", "workers"),
    *("logvar", "latent_stats", "latent_scale", "image", "label", "split", "classes_from"),
    *("crop", "captions", "skip_uncaptioned", "text_encoder", "text_features"),
    *("allow_rejects", "dry_run", "processes"),
)


@app.command()
def extract(
    ctx: typer.Context,
    images: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, zip, tar, WebDataset or parquet shards; or latents of REPA, SRA, REPA-E."
        ),
    ] = None,
    out: Annotated[Path | None, o.where("The store to write (HDF5).")] = None,
    vae: Annotated[
        str | None,
        o.what(
            "A diffusers AutoencoderKL: folder, hub name, 'digits' or 'emoji'. "
            "Default: stabilityai/sd-vae-ft-mse; with --check, the store's."
        ),
    ] = None,
    image: o.Image = None,
    label: o.Label = None,
    split: o.Split = None,
    classes_from: o.ClassesFrom = None,
    captions: o.Captions = None,
    skip_uncaptioned: o.SkipUncaptioned = False,
    resolution: Annotated[int, o.how("Side of the centre crop, in pixels.")] = 256,
    crop: Annotated[
        str, o.how("adm-center (shrink, then cut), or uvit-center (cut a square, then shrink).")
    ] = "adm-center",
    flip: Annotated[bool, o.how("Also encode the mirrored images.", "--flip")] = False,
    encoder: Annotated[
        str | None, o.what("Also store an image encoder's features (REPA): hub name or folder.")
    ] = None,
    feature_patch: Annotated[int, o.how("Patch size of the network to be trained.", min=1)] = 2,
    text_encoder: Annotated[
        str | None,
        o.what("Also store captions, for this: words, or a CLIP or T5 (hub name or folder)."),
    ] = None,
    text_features: Annotated[
        bool,
        o.how(
            "Also store its features of all captions: large, but training needs no encoder.",
            "--text-features",
        ),
    ] = False,
    precision: Annotated[str, o.how("Of the encoder: fp32, bf16 or fp16.")] = "fp32",
    dtype: Annotated[str, o.how("Of the stored moments: float32 or float16.")] = "float32",
    latent_stats: Annotated[
        str | None,
        o.what(
            "Mean and deviation of each latent channel: a file (latents_stats.pt), or 'compute'. "
            "Default: the VAE's."
        ),
    ] = None,
    latent_scale: Annotated[
        str, o.how("Where a VAE has statistics and a scaling_factor: statistics (alone) or both.")
    ] = "statistics",
    batch: Annotated[
        int | None,
        o.machine(
            "Images encoded together on a GPU. [default: 64] On a CPU their size says how many."
        ),
    ] = None,
    workers: Annotated[
        int | None, o.machine("Decoding processes for each encoding one.", min=0)
    ] = None,
    logvar: Annotated[
        bool, o.how("The latents to import hold mean and logvar.", "--logvar")
    ] = False,
    allow_rejects: Annotated[
        bool, o.how("Exit 0 even if images were skipped.", "--allow-rejects")
    ] = False,
    dry_run: o.DryRun = False,
    check: Annotated[
        Path | None, o.what("Verify and describe this store, and do nothing else.")
    ] = None,
    preview: Annotated[
        bool, o.where("Decode a random grid to STORE.preview.png.", "--preview")
    ] = False,
    processes: o.Processes = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
) -> None:
    """Encode images into a latent store. Run again to go on."""
    with user_errors():
        if check is not None:
            if images is not None or out is not None:
                raise SetupError("--check STORE takes no images and no --out")
            refuse_given(
                ctx, ENCODING, "is for images that are encoded; --check only reads a store"
            )
            from sra2cli.extraction import inspect

            result = inspect.check(check)
        else:
            if images is None or out is None:
                raise SetupError("give IMAGES and --out STORE, or --check STORE")
            _check_words(precision, latent_scale, dtype, crop)
            start_processes(processes, device, share_cores=False)
            from sra2cli.encoders.open import DEFAULT
            from sra2cli.extraction import extract as room
            from sra2cli.extraction.makers import Options

            options = Options(
                vae=vae or DEFAULT,
                resolution=resolution,
                crop=crop,
                mirrored=flip,
                encoder=encoder,
                feature_patch=feature_patch,
                precision=precision,  # type: ignore[arg-type]
                dtype=dtype,  # type: ignore[arg-type]
                batch=batch,
                workers=workers,
                logvar=logvar,
                latent_stats=latent_stats,
                latent_scale=latent_scale,
                text_encoder=text_encoder,
                text_features=text_features,
                offline=offline,
                choice=chosen_source(
                    *(image, label, split, classes_from),
                    captions=captions,
                    skip_uncaptioned=skip_uncaptioned,
                ),
            )
            there = pick_device(device, apple=True)
            result = room.extract(images, out, options, device=there, dry_run=dry_run)
        store = check or out
        if preview and store is not None and not dry_run:
            from sra2cli.extraction import inspect

            there = pick_device(device, apple=True)
            made = inspect.preview(store, vae=vae, device=there, offline=offline)
            result["preview"] = str(made)
        show(result, json, "extract")
        if check is None and not allow_rejects:
            room.refuse_rejects(result)


def _check_words(precision: str, latent_scale: str, dtype: str, crop: str) -> None:
    """SetupError for words that options do not know."""
    one_of("--precision", precision, ("fp32", "bf16", "fp16"))
    one_of("--latent-scale", latent_scale, ("statistics", "both"))
    one_of("--dtype", dtype, ("float32", "float16"))
    one_of("--crop", crop, ("adm-center", "uvit-center"))
