"""The exponential moving average of a network's weights, in float32."""

import copy

import torch
from torch import Tensor

from sra2cli.models.contract import Backbone, Condition


class Ema:
    """EMA of a network: `model` is a frozen copy in eval mode, on the same device."""

    def __init__(self, network: Backbone, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: Backbone) -> None:
        """ema ← decay * ema + (1 - decay) * weights, for all tensors in one call."""
        averaged: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, [p.detach() for p in network.parameters()], 1 - self.decay)

    def teacher(self, x_t: Tensor, t: Tensor, condition: Condition, depth: int) -> Tensor:
        """`tokens_of` the averaged network."""
        return tokens_of(self.model, x_t, t, condition, depth)


@torch.no_grad()
def tokens_of(model: Backbone, x_t: Tensor, t: Tensor, condition: Condition, depth: int) -> Tensor:
    """Tokens (B, T, D) of a network after block `depth`, without gradient."""
    return model.tokens(x_t, t, condition, depth=depth)
