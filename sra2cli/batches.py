"""Training batches: what each step sees, made from the store and the clock in a thread ahead."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli import clock
from sra2cli.clock import Purpose, Scalar
from sra2cli.encoders import Encoder
from sra2cli.errors import DataError, SetupError
from sra2cli.images import decode_image
from sra2cli.objective import Batch, sit_config
from sra2cli.path import sample_times
from sra2cli.prefetch import ahead
from sra2cli.settings import Recipe
from sra2cli.sit import SiTConfig
from sra2cli.sources import Source, VanishedError
from sra2cli.store import Store
from sra2cli.vae import scaled_latents

AHEAD = 3  # batches prepared in advance


@dataclass(frozen=True)
class Raw:
    """The numbers of one micro-batch on the host; `to_batch` finishes it on the device."""

    moments: Tensor  # (B, 2C, h, w), as stored: float32 or float16
    posterior: Tensor  # (B, C, h, w) standard normals
    noise: Tensor  # (B, C, h, w) standard normals
    scalars: Tensor  # (B, clock.SCALARS) uniforms
    labels: Tensor  # (B,) int64
    features: Tensor | None  # (B, T, F), as stored: float16
    pixels: Tensor | None  # (B, R, R, 3) uint8, for an encoder that runs while training


class Batches:
    """Micro-batches of one process, in order.

    Args:
        indices: for each micro-batch of a step, its indices in the global batch.
        features: read the encoder features of the store.
        images: read the images the store was made from.
        pin: page-lock the tensors, for copies to a CUDA device.

    Every number is a function of (seed, step, index in the global batch): see sra2cli/clock.py.
    """

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        indices: list[range],
        *,
        features: bool = False,
        images: Source | None = None,
        pin: bool = False,
    ):
        self.store, self.recipe, self.indices = store, recipe, indices
        self.features, self.images, self.pin = features, images, pin
        self.places = {name: i for i, name in enumerate(images.names)} if images else {}

    def raw(self, step: int, indices: range) -> Raw:
        """The numbers for the given indices of the global batch at `step`."""
        recipe, seed = self.recipe, self.recipe.seed
        rows = clock.positions(seed, step, recipe.train.batch, indices, len(self.store))
        uniforms = clock.scalars(seed, step, indices)
        shape = (recipe.data.channels, recipe.data.latent, recipe.data.latent)
        mirrored = uniforms[:, Scalar.MIRROR] < 0.5 if recipe.data.mirror else None
        return Raw(
            moments=self.store.moments(rows, mirrored, pin=self.pin),
            posterior=torch.from_numpy(
                clock.normals(seed, Purpose.POSTERIOR, step, indices, shape)
            ),
            noise=torch.from_numpy(clock.normals(seed, Purpose.NOISE, step, indices, shape)),
            scalars=torch.from_numpy(uniforms),
            labels=torch.from_numpy(self.store.labels[rows]),
            features=self.store.features(rows, mirrored, pin=self.pin) if self.features else None,
            pixels=None if self.images is None else self._pixels(self.images, rows, mirrored),
        )

    def _pixels(self, source: Source, rows: np.ndarray, mirrored: np.ndarray | None) -> Tensor:
        """The images of these rows, cropped as they were for the store."""

        def read(row: int) -> np.ndarray:
            name = self.store.names[row]
            try:
                data = source.read(self.places[name])
                assert isinstance(data, bytes)
                return decode_image(data, self.store.info.resolution)
            except (DataError, VanishedError) as error:
                raise DataError(f"{source.root}: {name}: {error}") from None

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            images = torch.from_numpy(np.stack(list(pool.map(read, rows))))
        if mirrored is not None:
            images[mirrored] = images[mirrored].flip(2)
        return images

    def from_step(self, start: int, stop: int) -> Iterator[list[Raw]]:
        """The micro-batches of each step in [start, stop), prepared by a thread ahead of use."""
        return ahead(
            (
                [self._pinned(self.raw(step, part)) for part in self.indices]
                for step in range(start, stop)
            ),
            depth=AHEAD,
        )

    def _pinned(self, raw: Raw) -> Raw:
        if not self.pin:
            return raw
        pinned: dict[str, Any] = {
            name: None if tensor is None else tensor.pin_memory()
            for name, tensor in vars(raw).items()
        }
        return Raw(**pinned)


def check_store(store: Store, recipe: Recipe, images: Source | None = None) -> None:
    """Refuse a store that does not hold what the recipe asks for; SetupError names the way out."""
    info, data = store.info, recipe.data
    for key, value, what in [
        ("classes", info.classes, f"{info.classes} classes"),
        ("channels", info.channels, f"{info.channels} latent channels (VAE {info.vae})"),
        (
            "latent",
            info.latent,
            f"{info.latent}x{info.latent} latents ({info.resolution} px, VAE {info.vae})",
        ),
    ]:
        if getattr(data, key) != value:
            raise SetupError(
                f"{store.path} has {what}, the recipe wants {getattr(data, key)}: "
                f"choose another store, or --set data.{key}={value}"
            )
    if data.vae not in (None, info.vae_fingerprint):
        raise SetupError(
            f"{store.path} was made with another VAE ('{info.vae}', {info.vae_fingerprint}), the "
            f"recipe wants {data.vae}: choose another store, or "
            f"--set data.vae={info.vae_fingerprint}"
        )
    if data.mirror and not info.mirrored:
        raise SetupError(f"{store.path} has no mirrored images: extract with --flip")
    missing = next(iter(set(store.names) - set(images.names)), None) if images is not None else None
    if missing is not None and images is not None:
        raise SetupError(f"{images.root} is not the source of {store.path}: no {missing} in it")
    if recipe.align.repa is not None and images is None:
        _check_features(store, recipe.align.repa.encoder, sit_config(recipe))


def _check_features(store: Store, encoder: str, config: SiTConfig) -> None:
    """Refuse a store without the encoder features that REPA needs."""
    info = store.info
    if not info.encoder:
        raise SetupError(
            f"{store.path} has no encoder features, which REPA needs: "
            f"extract with --encoder {encoder}, or give the images with --images"
        )
    if info.encoder != encoder:
        raise SetupError(
            f"{store.path} has the features of {info.encoder}, the recipe wants {encoder}: "
            f"choose another store, or --set align.repa.encoder={info.encoder}"
        )
    if info.feature_tokens != config.tokens:
        raise SetupError(
            f"{store.path} has {info.feature_tokens} features an image, the network "
            f"{config.tokens} tokens: extract with --feature-patch {config.patch}"
        )


def to_batch(
    raw: Raw,
    recipe: Recipe,
    store: Store,
    device: torch.device,
    encoder: Encoder | None = None,
) -> Batch:
    """The batch the objective trains on: posterior draw, times and dropped labels from `raw`."""
    on: dict[str, Any] = {
        name: None if tensor is None else tensor.to(device, non_blocking=True)
        for name, tensor in vars(raw).items()
    }
    uniforms, times = on["scalars"], recipe.path
    info = store.info
    moments = on["moments"].float()
    z = scaled_latents(moments, on["posterior"], scale=info.scale, shift=info.shift)
    mean = scaled_latents(moments, None, scale=info.scale, shift=info.shift)
    t = sample_times(
        uniforms[:, Scalar.TIME], times.times, mean=times.times_mean, std=times.times_std
    )
    y = None
    if recipe.data.classes:
        dropped = uniforms[:, Scalar.LABEL_DROP] < recipe.train.label_dropout
        y = torch.where(dropped, recipe.data.classes, on["labels"])
    return Batch(
        z=z,
        mean=mean,
        noise=on["noise"],
        t=t,
        y=y,
        teacher_uniform=uniforms[:, Scalar.TEACHER_TIME],
        features=_features(on, encoder),
    )


def _features(on: dict[str, Any], encoder: Encoder | None) -> Tensor | None:
    """Encoder features (B, T, F) float32: of the encoder that runs while training, or stored."""
    if encoder is not None:
        return encoder.features(on["pixels"])
    stored: Tensor | None = on["features"]
    return None if stored is None else stored.float()


def split(batch: int, *, rank: int, processes: int, micro: int | None) -> list[range]:
    """Indices of the global batch for each micro-batch of one process.

    Raises:
        ValueError: the global batch is not processes x micro-batch x accumulation.
    """
    if batch % processes:
        raise ValueError(f"a global batch of {batch} does not divide over {processes} processes")
    own = batch // processes
    micro = own if micro is None else micro
    if micro <= 0 or own % micro:
        raise ValueError(f"micro-batch {micro} does not divide the {own} samples of a process")
    first = rank * own
    return [range(first + k, first + k + micro) for k in range(0, own, micro)]


def share(wanted: Recipe, *, rank: int, processes: int) -> list[range]:
    """Indices of the global batch for each micro-batch of a process, or SetupError."""
    settings = wanted.train
    try:
        return split(settings.batch, rank=rank, processes=processes, micro=settings.micro_batch)
    except ValueError as error:
        raise SetupError(f"{error}: change train.batch, train.micro_batch or --processes") from None
