"""Scale and shift of a store's latents: of the first stage, of a file, or of the latents."""

from pathlib import Path

import numpy as np
import torch

from sra2cli.core import clock, console
from sra2cli.core.clock import Purpose
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources import Source
from sra2cli.data.sources.safetensors import STATISTICS
from sra2cli.data.store_writer import StoreWriter
from sra2cli.encoders.first_stage import FirstStage, Scale, scaled_latents
from sra2cli.encoders.vae import PACKAGED
from sra2cli.models.statistics import Statistics, read_statistics, scale_and_shift

COMPUTE = "compute"  # instead of a file
DRAWN, FEWEST = 10_000, 100  # images that statistics are computed of: at most, at least
PART = 64  # read together
SEED = 0


def chosen(vae: FirstStage, stats: str | None, scale: str, count: int) -> tuple[Scale, Scale]:
    """Scale and shift that a store of `count` images is laid out with.

    Args:
        stats: a file of statistics, `COMPUTE` (they are known at the end), or None: the VAE's own.
        scale: "both" multiplies the scale by the scaling_factor of the VAE's config too.

    Raises:
        SetupError: statistics that are not of this VAE; too few images to compute any.
    """
    if stats == COMPUTE:
        if scale == "both":
            raise SetupError(
                "--latent-scale both is for statistics that are there, not for compute"
            )
        if count < FEWEST:
            raise SetupError(f"--latent-stats compute needs {FEWEST} images, not {count}")
        return (1.0,) * vae.channels, (0.0,) * vae.channels
    found = (vae.scale, vae.shift) if stats is None else read_statistics(Path(stats), vae.channels)
    own, factor = stats is None and vae.scaling_factor is None, vae.scaling_factor
    if own:
        if scale == "both":
            raise SetupError(f"--latent-scale both: VAE '{vae.name}' has no statistics beside it")
        if found == (1.0, 0.0) and vae.name not in PACKAGED:  # whose latents are of that scale
            console.warn(
                f"VAE '{vae.name}' does not say how its latents are scaled: they are stored with "
                "scale 1; --latent-stats FILE or compute makes them of unit variance"
            )
        return found
    if stats is not None and factor is None and isinstance(vae.scale, float | int):
        factor = float(vae.scale)
    if scale == "both" and factor is not None:
        console.say(f"scale of the latents: statistics times scaling_factor {factor:g}")
        return tuple(factor * s for s in each(found[0])), found[1]
    beside = (
        "" if factor in (None, 1.0) else f" (not scaling_factor {factor:g}: --latent-scale both)"
    )
    console.say(f"scale of the latents: statistics of {stats or vae.name} alone{beside}")
    return found


def say_beside(source: Source, stats: str | None) -> None:
    """Statistics that lie beside shards of latents and were not asked for."""
    folder = source.root if source.root.is_dir() else source.root.parent
    beside = folder / STATISTICS
    if stats is None and beside.is_file():
        console.say(f"{beside} is there and is not used: --latent-stats {beside} takes it")


def each(value: Scale) -> tuple[float, ...]:
    """Of each channel, where there are several."""
    return value if isinstance(value, tuple) else (float(value),)


def computed(writer: StoreWriter, rows: np.ndarray) -> Statistics:
    """Mean and deviation (N - 1) of each channel of the unflipped, sampled latents of `DRAWN` good
    rows, drawn by their number: the same whatever processes and kills were before.

    Raises:
        DataError: too few rows, or a channel without deviation.
    """
    if len(rows) < FEWEST:
        raise DataError(f"--latent-stats compute needs {FEWEST} images, {len(rows)} are good")
    generator = np.random.default_rng([SEED, len(rows)])
    drawn = np.sort(generator.choice(rows, min(DRAWN, len(rows)), replace=False))
    channels, side = writer.info.channels, writer.info.latent
    sums, squares = torch.zeros(2, channels, dtype=torch.float64)
    pivot: torch.Tensor | None = None  # near the mean, so that no digits cancel
    for part in np.split(drawn, range(PART, len(drawn), PART)):
        moments = torch.from_numpy(writer.read("moments", part)).float()
        shape = (channels, side, side)
        xi = clock.normals(SEED, Purpose.POSTERIOR, 0, part.tolist(), shape)
        z = scaled_latents(moments, torch.from_numpy(xi), scale=1.0, shift=0.0).double()
        pivot = z.mean(dim=(0, 2, 3)) if pivot is None else pivot
        z = z - pivot.view(-1, 1, 1)
        sums += z.sum(dim=(0, 2, 3))
        squares += z.square().sum(dim=(0, 2, 3))
    assert pivot is not None
    count = len(drawn) * side**2
    variance = (squares - sums.square() / count) / (count - 1)
    return scale_and_shift(pivot + sums / count, variance.clamp(min=0).sqrt(), str(writer.path))
