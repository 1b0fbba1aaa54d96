"""Any diffusers AutoencoderKL as a first stage: by folder, by hub name, or a packaged one."""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli.core.devices import brought
from sra2cli.core.errors import SetupError, UserError
from sra2cli.core.files import weights_fingerprint
from sra2cli.core.finite import check_finite
from sra2cli.encoders import ldm
from sra2cli.encoders.first_stage import (
    EncodePrecision,
    FirstStage,
    Rounding,
    full_precision,
    to_uint8,
    unscaled,
)
from sra2cli.encoders.whole import check_whole
from sra2cli.models import checkpoint_files
from sra2cli.models.statistics import statistics_of

ASSETS = Path(__file__).parents[1] / "assets"
PACKAGED = {name: ASSETS / f"{name}-vae" for name in ("digits", "emoji")}
ENCODES = ("encoder.", "quant_conv.")  # the weights that decide the moments
DECODES = ("decoder.", "post_quant_conv.")
STATISTICS = ("latents_mean", "latents_std")  # of a config: a number a channel


class Vae(FirstStage):
    """A diffusers AutoencoderKL with its conventions; scale and shift from its config."""

    def __init__(
        self, name: str, model: Any, device: torch.device, precision: EncodePrecision = "fp32"
    ):
        self.name, self.device, self.precision = name, device, precision
        self.model = model.to(device).eval().requires_grad_(False)
        config = self.model.config
        factor, shift = float(config.scaling_factor), float(config.get("shift_factor") or 0.0)
        if not (0 < factor < math.inf and math.isfinite(shift)):
            raise ValueError(f"its scaling_factor is {factor}, its shift_factor {shift}")
        found = statistics_of({k: config.get(k) for k in STATISTICS}, f"the VAE '{name}'")
        self.scale, self.shift = (factor, shift) if found is None else found
        self.scaling_factor = None if found is None else factor
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.fingerprint = weights_fingerprint(model.state_dict(), ENCODES)
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            precision
        ]
        self.layout = layout(device, self.dtype)
        for part in (model.encoder, model.quant_conv):
            if part is not None:
                part.to(dtype=self.dtype, memory_format=self.layout)

    @cached_property
    def decoder(self) -> str:
        return weights_fingerprint(self.model.state_dict(), DECODES)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        x = brought(images, self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = x.to(self.dtype).contiguous(memory_format=self.layout)
        with full_precision():
            posterior = self.model.encode(x).latent_dist
        return torch.cat([posterior.mean.float(), posterior.std.float()], dim=1)

    @torch.no_grad()
    def decode(self, z: Tensor, *, rounding: Rounding = "truncate") -> np.ndarray:
        with full_precision():
            raw = unscaled(z.float().to(self.device), scale=self.scale, shift=self.shift)
            x = self.model.decode(raw).sample
        return to_uint8(x, rounding)


def layout(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Of a convolution's tensors: channels last, as images are, but on a GPU in float32, where it
    knows fast kernels without TF32 for the other alone, and on Apple's."""
    if (device.type == "cuda" and dtype is torch.float32) or device.type == "mps":
        return torch.contiguous_format
    return torch.channels_last


def load_vae(
    name: str,
    *,
    device: torch.device | str = "cpu",
    offline: bool = False,
    precision: EncodePrecision = "fp32",
) -> Vae:
    """As `open_first_stage`; a folder is one as diffusers saves it.

    Raises:
        SetupError: no VAE, or one whose weights are not complete.
        DataError: weights that are not finite.
    """
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()
    path = PACKAGED.get(name, Path(name))
    local = path.is_dir()
    if local and not (path / "config.json").is_file():
        raise SetupError(f"{path} is not a VAE: no config.json in it (expected a diffusers folder)")
    try:
        model, loaded = AutoencoderKL.from_pretrained(
            path if local else name,
            local_files_only=local or offline,
            torch_dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
        )
        check_whole(f"the VAE '{name}'", loaded, unused=())
        check_finite(model.state_dict(), f"the VAE '{name}'")
        return Vae(name, model, torch.device(device), precision)
    except UserError:
        raise
    except Exception as error:  # of a config that was edited diffusers raises anything
        reason = " ".join(str(error).split())[:200]
        where = "folder" if local else "neither a folder here nor to be had from the hub"
        raise SetupError(
            f"cannot load the VAE '{name}' ({where}): {reason}; "
            "give --vae a folder with config.json and its weights"
        ) from None


def new_autoencoder(
    *, resolution: int, widths: Sequence[int], layers: int, channels: int, groups: int
) -> Any:
    """An AutoencoderKL with initial weights from torch's generator, of scale 1.

    Args:
        resolution: side of its images. widths: of its levels, between which the side is halved.
        layers: residual blocks of a level. channels: of its latents. groups: of its norms.
    """
    from diffusers import AutoencoderKL

    levels = len(widths)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=list(widths),
        layers_per_block=layers,
        norm_num_groups=groups,
        latent_channels=channels,
        sample_size=resolution,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def is_ldm(name: str) -> bool:
    """Whether this is a file of weights, which diffusers does not open."""
    return Path(name).is_file()


def load_ldm(
    name: str,
    *,
    device: torch.device | str = "cpu",
    offline: bool = False,
    precision: EncodePrecision = "fp32",
) -> Vae:
    """An autoencoder in the keys of latent diffusion, as VA-VAE's file; as `open_first_stage`.

    Its file has no scale: 1 and 0, unless there are statistics of its latents.

    Raises:
        SetupError: no such autoencoder, or one whose weights are not complete.
        DataError: a damaged file, or weights that are not finite.
    """
    from diffusers import AutoencoderKL

    content, _ = checkpoint_files.read(Path(name))
    state = ldm.own_weights(content)
    if state is None:
        raise SetupError(f"{name} is not a VAE: no encoder.down.0.block.0.conv1.weight in it")
    try:
        config = ldm.config_of(state)
        with torch.device("meta"):
            model = AutoencoderKL(**config, scaling_factor=1.0)
        model.load_state_dict(ldm.diffusers_names(state), assign=True)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SetupError(f"{name} is not a whole VAE: {reason}") from None
    check_finite(model.state_dict(), f"the VAE '{name}'")
    return Vae(name, model, torch.device(device), precision)
