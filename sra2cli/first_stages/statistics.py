"""Mean and deviation of each latent channel, and where a first stage says them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli.core import clock
from sra2cli.core.clock import Purpose
from sra2cli.encoders.first_stage import scaled_latents
from sra2cli.encoders.vae import Vae
from sra2cli.extraction.encode import unit
from sra2cli.first_stages.pixels import some
from sra2cli.first_stages.settings import VaeSettings

MEASURED = 10_000  # images at most
DIGITS = 5  # after the point, in a config


def drawn_latents(vae: Vae, images: np.ndarray, *, seed: int, step: int) -> Tensor:
    """Unscaled latents (N, C, h, w) of images (N, R, R, 3) uint8, drawn, on the CPU.

    Args:
        step: one that no training step has, so that the draws are their own.
    """
    size, parts = unit(images.shape[1]), []
    for k in range(0, len(images), size):
        moments = vae.encode(torch.from_numpy(images[k : k + size])).cpu()
        rows, shape = range(k, k + len(moments)), moments.chunk(2, dim=1)[0].shape[1:]
        xi = clock.normals(seed, Purpose.POSTERIOR, step, rows, tuple(shape))
        parts.append(scaled_latents(moments, torch.from_numpy(xi), scale=1.0, shift=0.0))
    return torch.cat(parts)


def say_statistics(vae: Vae, wanted: VaeSettings, images: np.ndarray) -> dict[str, list[float]]:
    """Measure the latents of images and have the network or its config say mean and deviation.

    Returns:
        Those of each channel as measured, "mean" and "std".
    """
    z = drawn_latents(vae, some(images, MEASURED), seed=wanted.seed, step=wanted.steps)
    std, mean = torch.std_mean(z.double(), dim=(0, 2, 3))
    if wanted.fold_statistics:
        fold(vae.model, mean.float(), std.float())
    elif wanted.one_scale:
        vae.model.register_to_config(scaling_factor=round(1 / z.std().item(), DIGITS))
    else:
        means, stds = ([round(v, DIGITS) for v in values.tolist()] for values in (mean, std))
        vae.model.register_to_config(latents_mean=means, latents_std=stds)
    return {"mean": mean.tolist(), "std": std.tolist()}


@torch.no_grad()
def fold(model: Any, mean: Tensor, std: Tensor) -> None:
    """Put mean and deviation (C,) into the convolutions beside the latent.

    quant_conv gives (mean, log variance), so z' = (z - mean) / std is a change of its rows;
    post_quant_conv takes z' back to z.
    """
    into, back, channels = model.quant_conv, model.post_quant_conv, len(mean)
    mean, std = mean.to(into.weight.device), std.to(into.weight.device)
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(dim=1)
    back.weight *= std[None, :, None, None]
