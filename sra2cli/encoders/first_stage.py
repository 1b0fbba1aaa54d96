"""What a first stage is: images ↔ latents. Here alone stands what scale and shift mean.

Moments are kept as mean‖std along the channels, (B, 2C, h, w), unscaled. A scaled latent is
z = (mean + std * xi - shift) * scale.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sra2cli.core.errors import DataError, SetupError

Rounding = Literal["truncate", "nearest"]
EncodePrecision = Literal["fp32", "bf16", "fp16"]
Scale = float | tuple[float, ...]  # one number for each channel, or one for all


def full_precision() -> AbstractContextManager[None]:
    """Convolutions and matrix products on CUDA without TF32, which costs three digits."""
    return float32(tf32=False)


@contextmanager
def float32(*, tf32: bool) -> Iterator[None]:
    """How convolutions and matrix products in float32 are computed on CUDA."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    flags = {"enabled": True, "benchmark": False, "deterministic": False, "allow_tf32": tf32}
    try:
        with torch.backends.cudnn.flags(**flags):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def over_channels(value: Scale, like: Tensor) -> Tensor | float:
    """Scale or shift as it multiplies latents (B, C, h, w)."""
    if isinstance(value, float | int):
        return float(value)
    return _brought(value, like.dtype, like.device)


@lru_cache(16)
def _brought(value: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the device once for all: to bring it there waits for what the device is at."""
    return torch.tensor(value, dtype=dtype, device=device).view(-1, 1, 1)


def scaled_latents(moments: Tensor, xi: Tensor | None, *, scale: Scale, shift: Scale) -> Tensor:
    """Scaled latents from moments (B, 2C, h, w) and normals xi (B, C, h, w); None: their mean."""
    mean, std = moments.chunk(2, dim=1)
    raw = mean if xi is None else mean + std * xi
    return (raw - over_channels(shift, raw)) * over_channels(scale, raw)


def unscaled(z: Tensor, *, scale: Scale, shift: Scale) -> Tensor:
    """Raw latents of scaled ones, both (B, C, h, w): what decoders take."""
    return z / over_channels(scale, z) + over_channels(shift, z)


class Stored(Protocol):
    """What a store says of the first stage that made it."""

    @property
    def vae(self) -> str: ...
    @property
    def vae_fingerprint(self) -> str: ...
    @property
    def scale(self) -> Scale: ...
    @property
    def shift(self) -> Scale: ...


class FirstStage(ABC):
    """Images → moments of a posterior, and scaled latents → images.

    Attributes:
        name: as it was asked for. scale, shift: of its latents; those of a store, once it is held
            against one. scaling_factor: what its config has beside statistics of its channels.
        channels: C of its latents. factor: side of the image over side of the latent.
        fingerprint: hash of what alone decides the stored moments.
        decoder: hash of what decides the images.
    """

    name: str
    device: torch.device
    scale: Scale
    shift: Scale
    channels: int
    factor: int
    fingerprint: str
    scaling_factor: float | None = None

    @property
    @abstractmethod
    def decoder(self) -> str: ...

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, H, W, 3) → moments mean‖std (B, 2C, h, w), float32, unscaled."""

    @abstractmethod
    def decode(self, z: Tensor, *, rounding: Rounding = "truncate") -> np.ndarray:
        """Scaled latents (B, C, h, w) → uint8 images (B, H, W, 3)."""

    def check_store(self, made: Stored, of: str) -> None:
        """Refuse a store, named by `of`, that another encoder made; take its scale and shift."""
        if self.fingerprint != made.vae_fingerprint:
            raise SetupError(
                f"VAE '{self.name}' is not the one of {of} (encoder {self.fingerprint}, store "
                f"{made.vae_fingerprint}, made with '{made.vae}'): choose it with --vae"
            )
        self.scale, self.shift = made.scale, made.shift


def to_uint8(x: Tensor, rounding: Rounding = "truncate") -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] → (B, H, W, 3) uint8.

    "truncate" is REPA's and SRA's 255 * (x + 1) / 2, cut off; "nearest" rounds it.

    Raises:
        DataError: values that are not finite, which would come out black.
    """
    if not bool(x.isfinite().all()):
        raise DataError(
            "decoded images are not finite: are the weights of the VAE whole, and do the latents "
            "belong to it? (--vae)"
        )
    x = ((x + 1) / 2).clamp(0, 1) * 255
    x = x.round() if rounding == "nearest" else x
    return x.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()
