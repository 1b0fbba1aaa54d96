"""The first stage: images ↔ latents. The only owner of scale and shift.

Moments are kept as mean‖std along the channels, (B, 2C, h, w), unscaled. A scaled latent is
z = (mean + std * xi - shift) * scale.
"""

from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from sra2cli.errors import SetupError
from sra2cli.files import weights_fingerprint

PACKAGED = {"digits": Path(__file__).parent / "assets" / "digits-vae"}
ENCODES = ("encoder.", "quant_conv.")  # the weights that decide the moments
DECODES = ("decoder.", "post_quant_conv.")
Rounding = Literal["truncate", "nearest"]
EncodePrecision = Literal["fp32", "bf16", "fp16"]


def full_precision() -> AbstractContextManager[None]:
    """Convolutions on CUDA without TF32, which is their default and costs three digits."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=False, allow_tf32=False
    )


def scaled_latents(moments: Tensor, xi: Tensor | None, *, scale: float, shift: float) -> Tensor:
    """Scaled latents from moments (B, 2C, h, w) and normals xi (B, C, h, w); None: their mean."""
    mean, std = moments.chunk(2, dim=1)
    return ((mean if xi is None else mean + std * xi) - shift) * scale


class Vae:
    """A diffusers AutoencoderKL with its conventions.

    Attributes:
        name: as it was asked for. scale, shift: from its config.
        channels: C of its latents. factor: side of the image over side of the latent.
        fingerprint: hash of encoder and quant_conv, which alone decide the stored moments.
    """

    def __init__(
        self, name: str, model: Any, device: torch.device, precision: EncodePrecision = "fp32"
    ):
        self.name, self.device, self.precision = name, device, precision
        self.model = model.to(device).eval().requires_grad_(False)
        config = self.model.config
        self.scale = float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.fingerprint = weights_fingerprint(model.state_dict(), ENCODES)
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            precision
        ]
        for part in (model.encoder, model.quant_conv):  # NHWC is faster, as the images are
            if part is not None:
                part.to(dtype=self.dtype, memory_format=torch.channels_last)

    @cached_property
    def decoder(self) -> str:
        """Hash of post_quant_conv and decoder, which decide the images."""
        return weights_fingerprint(self.model.state_dict(), DECODES)

    def check_store(self, fingerprint: str, made_with: str, of: str) -> None:
        """Refuse a store, named by `of`, that another encoder made."""
        if self.fingerprint != fingerprint:
            raise SetupError(
                f"VAE '{self.name}' is not the one of {of} (encoder {self.fingerprint}, store "
                f"{fingerprint}, made with '{made_with}'): choose it with --vae"
            )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, H, W, 3) → moments mean‖std (B, 2C, h, w), float32, unscaled.

        In fp32 without TF32, which would cost three digits.
        """
        x = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
        with full_precision():
            posterior = self.model.encode(x.to(self.dtype)).latent_dist
        return torch.cat([posterior.mean.float(), posterior.std.float()], dim=1)

    @torch.no_grad()
    def decode(self, z: Tensor, *, rounding: Rounding = "truncate") -> np.ndarray:
        """Scaled latents (B, C, h, w) → uint8 images (B, H, W, 3)."""
        with full_precision():
            x = self.model.decode(z.to(self.device).float() / self.scale + self.shift).sample
        return to_uint8(x, rounding)


def to_uint8(x: Tensor, rounding: Rounding = "truncate") -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] → (B, H, W, 3) uint8.

    "truncate" is REPA's and SRA's 255 * (x + 1) / 2, cut off; "nearest" rounds it.
    """
    x = ((x + 1) / 2).clamp(0, 1) * 255
    x = x.round() if rounding == "nearest" else x
    return x.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


def load_vae(
    name: str,
    *,
    device: torch.device | str = "cpu",
    offline: bool = False,
    precision: EncodePrecision = "fp32",
) -> Vae:
    """Load a VAE: "digits" (packaged), a folder as diffusers saves it, or a hub name.

    Args:
        offline: never touch the network; a hub name must then be in the local cache.
        precision: of the encoder.

    Raises:
        SetupError: it is not there, or is not an AutoencoderKL.
    """
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()
    path = PACKAGED.get(name, Path(name))
    local = path.is_dir()
    if local and not (path / "config.json").is_file():
        raise SetupError(f"{path} is not a VAE: no config.json in it (expected a diffusers folder)")
    try:
        model = AutoencoderKL.from_pretrained(
            path if local else name, local_files_only=local or offline, torch_dtype=torch.float32
        )
        return Vae(name, model, torch.device(device), precision)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        where = "folder" if local else "neither a folder here nor to be had from the hub"
        raise SetupError(
            f"cannot load the VAE '{name}' ({where}): {reason}; "
            "give --vae a folder with config.json and its weights"
        ) from None
