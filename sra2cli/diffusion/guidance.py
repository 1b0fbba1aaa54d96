"""Guidance: from a network and what it is told to the velocity that samplers integrate."""

from collections.abc import Callable

import torch
from torch import Tensor

from sra2cli.models.contract import Backbone, Condition, as_condition

Velocity = Callable[[Tensor, float, float], Tensor]


def guided(
    model: Backbone,
    condition: Condition | Tensor | None,
    *,
    scale: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
    class_scale: float | None = None,
    null: Condition | None = None,
) -> Velocity:
    """The model's velocity under classifier-free guidance, v_null + scale * (v_c - v_null).

    Args:
        condition: a Condition, or labels (B,); None for an unconditional model.
        scale: 1 is no guidance, and costs one forward pass instead of two.
        interval: times, both ends included, in which guidance applies (arXiv 2404.07724).
        channels: guide the first n channels only (SiT and DiT guide 3 of 4); None: all.
        class_scale: of a class token in the state (REG); 0: it is not guided; None: as the latent.
        null: what guidance leads away from; None: the network's own unconditional condition.

    Returns:
        v(x, t, t_step): float64 in, float64 out; x is a state of any shape, batch first.
    """
    told = as_condition(condition)
    if scale != 1.0 and not told.present():
        raise ValueError("guidance needs a class-conditional model, or one that is told captions")

    def v(x: Tensor, t: float, t_step: float) -> Tensor:
        x32 = x.float()
        times = torch.full((len(x),), t, device=x.device)
        if scale == 1.0 or not interval[0] <= t_step <= interval[1]:
            return model(x32, times, told).v.double()
        both = told + (model.null(told) if null is None else null)
        out = model(torch.cat([x32, x32]), torch.cat([times, times]), both).v
        v_c, v_null = out.double().chunk(2)
        return model.guide(v_c, v_null, scale=scale, channels=channels, class_scale=class_scale)

    return v
