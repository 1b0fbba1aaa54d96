"""What a first stage is trained towards: reconstructions like the images, latents like a normal."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sra2cli.encoders.image import Encoder
from sra2cli.first_stages.settings import VaeSettings


def gradient_error(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of differences of neighbouring pixels, across and down: edges stay sharp."""
    error = a - b
    across = error[..., 1:] - error[..., :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def losses(
    wanted: VaeSettings, output: Tensor, images: Tensor, posterior: Any, encoder: Encoder | None
) -> dict[str, Tensor]:
    """The terms of weight above 0, unweighted, and their weighted sum as "loss".

    Args:
        output, images: (B, 3, R, R) in -1..1. posterior: diffusers' distribution of the latents.
        encoder: of the perceptual term.
    """
    found: dict[str, Tensor] = {}
    if wanted.l1:
        found["l1"] = F.l1_loss(output, images)
    if wanted.mse:
        found["mse"] = F.mse_loss(output, images)
    if wanted.gradient:
        found["gradient"] = gradient_error(output, images)
    if wanted.kl:  # of a dimension, so that it means the same for latents of any size
        found["kl"] = posterior.kl().mean() / posterior.mean[0].numel()
    if encoder is not None:
        theirs, own = (encoder.patches((x + 1) / 2) for x in (images, output))
        found["perceptual"] = 1 - F.cosine_similarity(own, theirs, dim=-1).mean()
    total = sum(getattr(wanted, name) * term for name, term in found.items())
    return {"loss": total, **found}
