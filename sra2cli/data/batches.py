"""Training batches: what each step sees, made from the store and the clock in a thread ahead."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli.config.settings import Recipe
from sra2cli.core import clock
from sra2cli.core.clock import Purpose, Scalar
from sra2cli.core.devices import brought
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.prefetch import ahead
from sra2cli.data.conditions import CONDITIONS
from sra2cli.data.images import decode_image, known_crop
from sra2cli.data.sources import Source, VanishedError
from sra2cli.data.store import Store
from sra2cli.data.store_info import CLASS_FEATURE
from sra2cli.diffusion.path import sample_times
from sra2cli.encoders.first_stage import scaled_latents
from sra2cli.encoders.image import Encoder
from sra2cli.encoders.text import TextEncoder
from sra2cli.models.build import shape_of
from sra2cli.models.contract import Condition

AHEAD = 3  # batches prepared in advance


@dataclass(frozen=True)
class Raw:
    """The numbers of one micro-batch on the host; `to_batch` finishes it on the device."""

    moments: Tensor  # (B, 2C, h, w), as stored: float32 or float16
    posterior: Tensor  # (B, C, h, w) standard normals
    noise: Tensor  # (B, *state) standard normals
    scalars: Tensor  # (B, clock.SCALARS) uniforms
    condition: Condition  # what each sample shows
    features: Tensor | None  # (B, T, F), as stored: float16
    pixels: Tensor | None  # (B, R, R, 3) uint8, for an encoder that runs while training
    class_feature: Tensor | None = None  # (B, F), as stored: float16

    def map(self, change: Callable[[Tensor], Tensor]) -> "Raw":
        """The same with every tensor changed."""
        values: dict[str, Any] = {
            name: value.map(change) if isinstance(value, Condition) else change(value)
            for name, value in vars(self).items()
            if value is not None
        }
        return replace(self, **values)


@dataclass(frozen=True)
class Batch:
    """One training batch, on the device.

    z, mean: (B, C, H, W) scaled latents: the posterior draw to be noised, and the posterior mean.
    noise: (B, *state). t, teacher_uniform: (B,) float32.
    condition: what each sample shows; drop: (B,) bool, for which the network is not told.
    features: (B, T, F) of an image encoder; None where no method needs them now.
    class_feature: (B, F), the encoder's class token; None where the network has none.
    """

    z: Tensor
    mean: Tensor
    noise: Tensor
    t: Tensor
    condition: Condition
    teacher_uniform: Tensor
    drop: Tensor | None = None
    features: Tensor | None = None
    class_feature: Tensor | None = None


class Batches:
    """Micro-batches of one process, in order.

    Args:
        indices: for each micro-batch of a step, its indices in the global batch.
        images: what the store was made from: they are read for an encoder that runs while
            training, instead of the store's features.
        pin: page-lock the tensors, for copies to a CUDA device.

    Every number is a function of (seed, step, index in the global batch): see sra2cli/clock.py.
    """

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        indices: list[range],
        *,
        images: Source | None = None,
        pin: bool = False,
    ):
        self.store, self.recipe, self.indices = store, recipe, indices
        self.images, self.pin = images, pin
        self.shape = shape_of(recipe)
        self.places = {name: i for i, name in enumerate(images.names)} if images else {}

    def raw(self, step: int, indices: range) -> Raw:
        """The numbers for the given indices of the global batch at `step`."""
        recipe, seed = self.recipe, self.recipe.seed
        rows = clock.positions(seed, step, recipe.train.batch, indices, len(self.store))
        uniforms = clock.scalars(seed, step, indices)
        shape = self.shape
        needed = recipe.needs("features", step, epoch_of(recipe, step, self.store))
        mirrored = uniforms[:, Scalar.MIRROR] < 0.5 if recipe.data.mirror else None
        told = CONDITIONS[shape.condition].of_rows(self.store, rows, mirrored, uniforms, shape)
        return Raw(
            moments=self.store.moments(rows, mirrored, pin=self.pin),
            posterior=torch.from_numpy(
                clock.normals(seed, Purpose.POSTERIOR, step, indices, shape.latents)
            ),
            noise=torch.from_numpy(clock.normals(seed, Purpose.NOISE, step, indices, shape.state)),
            scalars=torch.from_numpy(uniforms),
            condition=told,
            features=self.store.features(rows, mirrored, pin=self.pin)
            if needed and self.images is None
            else None,
            pixels=pixels_of(self.store, self.images, self.places, rows, mirrored)
            if needed and self.images
            else None,
            class_feature=self.store.read(CLASS_FEATURE, rows, mirrored, pin=self.pin)
            if shape.class_width
            else None,
        )

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
        return raw.map(lambda tensor: tensor.pin_memory()) if self.pin else raw


def pixels_of(
    store: Store,
    source: Source,
    places: Mapping[str, int],
    rows: np.ndarray,
    mirrored: np.ndarray | None = None,
) -> Tensor:
    """The images (len(rows), R, R, 3) uint8 of rows of a store, cropped as they were for it.

    places: name of an image → its place in the source, which the store was made from.
    """
    names, info = [store.names[row] for row in rows], store.info
    crop = known_crop(info.crop)

    def decode(name: str, data: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(data, bytes)
        try:
            return decode_image(data, info.resolution, crop)
        except DataError as error:
            raise DataError(f"{source.root}: {name}: {error}") from None

    try:
        found = source.read_many([places[name] for name in names])
    except (DataError, VanishedError) as error:
        raise DataError(f"{source.root}: {error}") from None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        images = torch.from_numpy(np.stack(list(pool.map(decode, names, found))))
    if mirrored is not None:
        images[mirrored] = images[mirrored].flip(2)
    return images


def epoch_of(recipe: Recipe, step: int, store: Store) -> int:
    """The epoch of the data in which a step begins."""
    return step * recipe.train.batch // len(store)


def to_batch(
    raw: Raw,
    recipe: Recipe,
    store: Store,
    device: torch.device,
    encoder: Encoder | None = None,
    text_encoder: TextEncoder | None = None,
) -> Batch:
    """The batch the objective trains on: posterior draw, times and features from `raw`.

    Args:
        encoder, text_encoder: make features of pixels and captions; needed where the store holds
            none.
    """
    on = raw.map(lambda tensor: brought(tensor, device))
    uniforms, times, info = on.scalars, recipe.path, store.info
    moments = on.moments.float()
    features = None if on.features is None else on.features.float()
    if encoder is not None and on.pixels is not None:
        features = encoder.features(on.pixels)
    condition = on.condition
    if (text := condition.text) is not None:
        read = text_encoder.encode(text) if text_encoder and text.dim() == 2 else text.float()
        condition = replace(condition, text=read)
    return Batch(
        z=scaled_latents(moments, on.posterior, scale=info.scale, shift=info.shift),
        mean=scaled_latents(moments, None, scale=info.scale, shift=info.shift),
        noise=on.noise,
        t=sample_times(
            uniforms[:, Scalar.TIME], times.times, mean=times.times_mean, std=times.times_std
        ),
        condition=condition,
        drop=uniforms[:, Scalar.LABEL_DROP] < recipe.train.label_dropout,
        teacher_uniform=uniforms[:, Scalar.TEACHER_TIME],
        features=features,
        class_feature=None if on.class_feature is None else on.class_feature.float(),
    )


def share(wanted: Recipe, *, rank: int, processes: int) -> list[range]:
    """Indices of the global batch for each micro-batch of one process.

    Raises:
        SetupError: the global batch is not processes x micro-batch x accumulation, or a
            micro-batch is not made of whole groups where samples of a group are compared.
    """
    batch, mend = wanted.train.batch, "change train.batch, train.micro_batch or --processes"
    if batch % processes:
        raise SetupError(
            f"a global batch of {batch} does not divide over {processes} processes: {mend}"
        )
    own = batch // processes
    micro = min(wanted.train.micro_batch or own, own)
    if own % micro:
        raise SetupError(
            f"micro-batch {micro} does not divide the {own} samples of a process: {mend}"
        )
    group = wanted.train.group
    if wanted.grouped and micro % group:
        raise SetupError(
            f"a micro-batch of {micro} is not made of whole groups of {group}, within which "
            f"samples are compared: {mend}, or train.group"
        )
    return [range(first, first + micro) for first in range(rank * own, (rank + 1) * own, micro)]
