"""sra2 extract: images → latent store."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra2cli import console
from sra2cli.encoders import Encoder, load_encoder
from sra2cli.errors import DataError, SetupError
from sra2cli.files import write_atomically
from sra2cli.images import ImageFolder, open_folder, read_image
from sra2cli.store import REJECTED, TODO, Store, StoreInfo, StoreWriter
from sra2cli.vae import Vae, load_vae

CHUNK = 32  # images encoded together; fixed, so that a resumed store equals an uninterrupted one


def extract(
    images: Path,
    out: Path,
    *,
    vae: str,
    resolution: int,
    device: str,
    offline: bool = False,
    mirrored: bool = False,
    encoder: str | None = None,
    feature_patch: int = 2,
) -> dict[str, Any]:
    """Encode a folder of images into a latent store; run again, it goes on where it stopped.

    Unreadable images are listed in `OUT.rejects.txt` and skipped.

    Args:
        vae, encoder: folders or hub names; with an encoder, its features are stored for REPA.
        mirrored: also encode the mirrored images (a latent cannot be mirrored).
        feature_patch: of the network to be trained: one feature for each of its tokens.

    Returns:
        A summary; "rejects" is the number of images skipped.

    Raises:
        SetupError: no images, no VAE, or OUT belongs to other settings.
        DataError: no image at all could be read.
    """
    source = open_folder(images)
    first_stage = load_vae(vae, device=device, offline=offline)
    info = describe(source, first_stage, resolution)
    teacher = None
    if encoder is not None:
        if info.latent % feature_patch:
            raise SetupError(f"--feature-patch {feature_patch} does not divide {info.latent}")
        side = info.latent // feature_patch
        teacher = load_encoder(encoder, side=side, device=device, offline=offline)
        info = replace(
            info,
            encoder=encoder,
            encoder_fingerprint=teacher.fingerprint,
            feature_tokens=side**2,
            feature_width=teacher.width,
        )
    info = replace(info, mirrored=mirrored)
    if out.exists():
        return already_there(out, info, source)
    check_disk(out, len(source), info)
    labels = source.labels if source.labels is not None else [-1] * len(source)
    writer = StoreWriter(out, info, source.names, labels)
    with console.progress("extract", len(source)) as bar:
        for rows, pixels, reasons in decoded(source, resolution, writer.state):
            if len(pixels):
                good = [r for r in rows if r not in reasons]
                writer.write(good, encode(pixels, first_stage, teacher, mirrored=mirrored))
            if reasons:
                writer.reject(list(reasons))
            bar.advance(len(rows))
    rejected = [source.names[i] for i in np.flatnonzero(writer.state == REJECTED)]
    rejects = list_rejects(out, source, rejected, resolution)
    writer.finish()
    return summary(out, rejects)


def encode(
    pixels: np.ndarray, vae: Vae, encoder: Encoder | None, *, mirrored: bool
) -> dict[str, np.ndarray]:
    """Images (n, R, R, 3) uint8 → the store's data sets, by name."""
    images = torch.from_numpy(pixels)
    values = {}
    for prefix, batch in [("", images)] + ([("mirrored_", images.flip(2))] if mirrored else []):
        values[f"{prefix}moments"] = vae.encode(batch).cpu().numpy()
        if encoder is not None:
            values[f"{prefix}features"] = encoder.features(batch).cpu().numpy()
    return values


def describe(source: ImageFolder, vae: Vae, resolution: int) -> StoreInfo:
    """What the store will say of itself; raises SetupError where the VAE does not fit."""
    if resolution <= 0 or resolution % vae.factor:
        raise SetupError(
            f"--resolution {resolution} is not a multiple of {vae.factor}, "
            f"as VAE '{vae.name}' needs"
        )
    return StoreInfo(
        vae=vae.name,
        vae_fingerprint=vae.fingerprint,
        scale=vae.scale,
        shift=vae.shift,
        channels=vae.channels,
        latent=resolution // vae.factor,
        resolution=resolution,
        classes=len(source.class_names),
        class_names=source.class_names,
    )


def already_there(out: Path, info: StoreInfo, source: ImageFolder) -> dict[str, Any]:
    """The summary of a finished store of these very images and settings; else SetupError."""
    store = Store(out)
    differ = store.info.differs(info)
    if not differ and store.all_names != source.names:
        differ = ["images"]
    if differ:
        raise SetupError(
            f"{out} exists and differs in {', '.join(differ)}: remove it or choose another --out"
        )
    console.say(f"{out} is complete already")
    return summary(out, store.rejected)


def check_disk(out: Path, count: int, info: StoreInfo) -> None:
    """Refuse a disk that cannot hold the store."""
    partial = out.with_name(out.name + ".partial")
    there = partial.stat().st_blocks * 512 if partial.exists() else 0
    size = count * (info.row_bytes + 9)
    console.say(f"{count:,} images, {size / 1e6:,.0f} MB")
    folder = next(p for p in [out.absolute().parent, *out.absolute().parents] if p.exists())
    free = shutil.disk_usage(folder).free
    if size - there > free:
        raise SetupError(
            f"{out} needs {size / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free"
        )


def decoded(
    source: ImageFolder, resolution: int, state: np.ndarray
) -> Iterator[tuple[list[int], np.ndarray, dict[int, str]]]:
    """Chunks still to be done: their rows, the good images (n, R, R, 3), and the bad rows' reasons.

    Decoding runs in threads ahead of use (PIL releases the GIL where it matters).
    """

    def read(row: int) -> np.ndarray | str:
        try:
            return read_image(source.root / source.names[row], resolution)
        except DataError as error:
            return str(error)

    chunks = [list(range(k, min(k + CHUNK, len(source)))) for k in range(0, len(source), CHUNK)]
    todo = [rows for rows in chunks if (state[rows] == TODO).any()]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ahead = [[pool.submit(read, r) for r in rows] for rows in todo[:2]]
        for k, rows in enumerate(todo):
            results = [future.result() for future in ahead.pop(0)]
            if k + 2 < len(todo):
                ahead.append([pool.submit(read, r) for r in todo[k + 2]])
            good = [image for image in results if isinstance(image, np.ndarray)]
            reasons = {r: x for r, x in zip(rows, results, strict=True) if isinstance(x, str)}
            pixels = np.stack(good) if good else np.empty((0, resolution, resolution, 3), np.uint8)
            yield rows, pixels, reasons


def list_rejects(out: Path, source: ImageFolder, names: list[str], resolution: int) -> list[str]:
    """Write OUT.rejects.txt, a line "name<TAB>reason" for each skipped image; none: no file."""
    lines = []
    for name in names:
        try:
            read_image(source.root / name, resolution)
            reason = "could not be read during extraction"
        except DataError as error:
            reason = str(error)
        lines.append(f"{name}\t{reason}")
    if lines:
        write_atomically(rejects_file(out), "\n".join(lines) + "\n")
    return lines


def rejects_file(out: Path) -> Path:
    return out.with_name(out.name + ".rejects.txt")


def summary(out: Path, rejects: list[str]) -> dict[str, Any]:
    store = Store(out)
    info = store.info
    return {
        "store": str(out),
        "images": len(store),
        "rejects": len(rejects),
        "rejects_file": str(rejects_file(out)) if rejects else None,
        "classes": info.classes,
        "latents": [info.channels, info.latent, info.latent],
        "vae": info.vae,
        "vae_fingerprint": info.vae_fingerprint,
        "encoder": info.encoder or None,
        "bytes": out.stat().st_size,
    }
