"""The exponential moving average of weights, in float32."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sra2cli.models.contract import Backbone, Condition

Module = TypeVar("Module", bound=nn.Module)


class Ema(Generic[Module]):
    """EMA of a module: `model` is a frozen copy in eval mode, on the same device."""

    def __init__(self, module: Module, decay: float):
        self.decay = decay
        self.model: Module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: Module) -> None:
        """ema ← decay * ema + (1 - decay) * weights, for all tensors in one call."""
        averaged: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, [p.detach() for p in module.parameters()], 1 - self.decay)


@torch.no_grad()
def tokens_of(model: Backbone, x_t: Tensor, t: Tensor, condition: Condition, depth: int) -> Tensor:
    """Tokens (B, T, D) of a network after block `depth`, without gradient."""
    return model.tokens(x_t, t, condition, depth=depth)
