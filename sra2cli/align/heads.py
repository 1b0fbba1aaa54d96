"""Projection heads, and the token losses they are trained with."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sra2cli.models.layers import FinalLayer

BETA = 0.05  # smooth L1: |d| below it is quadratic (SRA 2, arXiv 2601.17830, eq. 7)
TINY = 1e-12  # added to variances


def mlp(*widths: int) -> nn.Sequential:
    """Linears of the given widths with SiLU between them: mlp(D, 2D, 3) has two linears.

    Xavier weights and zero biases, as REPA and SRA initialise theirs along with the network. It
    matters: torch's own default shrinks what passes through five layers a hundredfold, and with it
    the gradient that reaches the network.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        linear = nn.Linear(n_in, n_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def head_of(
    final: str, width: int, layers: int, rows: int
) -> tuple[nn.Sequential, nn.Module | None]:
    """SRA 2's head, D → 2D → … → rows, and its last layer where that is told c (B, D).

    final: of `layers` linears the last is a plain one ("linear"), follows a LayerNorm without
    affine ("norm"), or is a layer as SiT's last one, which c modulates ("adaln"): then the linears
    before it lead back to D. Modulations begin at zero, as SiT's; the linears do not.
    """
    norm = partial(nn.LayerNorm, elementwise_affine=False, eps=1e-6)
    if final == "adaln":
        head = mlp(width, *[2 * width] * (layers - 2), *[width] * (layers > 1))
        last = FinalLayer(width, norm, rows)
        nn.init.xavier_uniform_(last.linear.weight)
        nn.init.zeros_(last.linear.bias)
        for parameter in last.adaLN_modulation.parameters():
            nn.init.zeros_(parameter)
        return head, last
    widths = [width, *[2 * width] * (layers - 1)]
    head = mlp(*widths, rows)
    if final == "norm":
        head.insert(len(head) - 1, norm(widths[-1]))
    return head, None


def standardised(x: Tensor) -> Tensor:
    """Each sample of x (B, T, D) less its mean and over its deviation, in float32."""
    x = x.float()
    centred = x - x.mean(dim=(1, 2), keepdim=True)
    return centred * (centred.square().mean(dim=(1, 2), keepdim=True) + TINY).rsqrt()


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """torch's continuous smooth L1 with beta = 0.05 (SRA 2 eq. 7, mended: docs/decisions.md)."""
    return F.smooth_l1_loss(prediction, target, beta=BETA, reduction="none").mean(dim=(1, 2))


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return (prediction - target).abs().mean(dim=(1, 2))


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return (prediction - target).square().mean(dim=(1, 2))


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cos over the feature vector of each token, mean over tokens."""
    return 1 - F.cosine_similarity(prediction, target, dim=2).mean(dim=1)


def cosine_over_tokens(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cos with vectors taken over *tokens*, one per feature, as SRA's released code has it."""
    return 1 - F.cosine_similarity(prediction, target, dim=1).mean(dim=1)


TokenLoss = Callable[[Tensor, Tensor], Tensor]
OBJECTIVES: dict[str, TokenLoss] = {
    "smooth-l1": smooth_l1,
    "cosine": cosine,
    "l1": l1,
    "l2": l2,
    "cosine-over-tokens": cosine_over_tokens,
}


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Whatever the training's precision is."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def token_loss(objective: str, prediction: Tensor, target: Tensor) -> Tensor:
    """Loss of each sample, (B,), from tokens (B, T, D); always computed in float32.

    Half precision here is what turned the peers' losses to NaN.
    """
    with in_float32(prediction.device):
        return OBJECTIVES[objective](prediction.float(), target.float())
