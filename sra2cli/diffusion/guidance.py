"""Guidance: from a network and what it is told to the velocity that samplers integrate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sra2cli.config.settings import PathKind
from sra2cli.core.devices import double
from sra2cli.diffusion import path
from sra2cli.models.contract import Backbone, Condition, Output, as_condition

Velocity = Callable[[Tensor, float, float], Tensor]


@dataclass(frozen=True)
class SelfGuidance:
    """A head inside the network as the weak network that guidance leads away from:
    v + (scale - 1) * (v - v_weak). No second pass; every pass is guided by its own tokens.

    Of a head that reads the velocity this is Internal Guidance (arXiv 2512.24176).

    read: tokens (B, T, D) of block `depth`, and c (B, D), to what it `reads`, (B, C, H, W): the
    clean latent z or the velocity v.
    interval: times a..b in which it applies; a is above 0, as v_weak of z divides by t.
    kind: the path, for a head that reads z.
    """

    read: Callable[[Tensor, Tensor | None], Tensor]
    reads: Literal["z", "v"]
    depth: int
    scale: float
    interval: tuple[float, float]
    kind: PathKind = "linear"

    def of(self, model: Backbone, out: Output, x: Tensor, t: Tensor) -> Tensor:
        """The guided velocity of states x at times t (B,), float64. A class token is not guided."""
        (v, token), (x_t, _) = model.unpack(double(out.v)), model.unpack(x)
        weak = double(self.read(out[1][self.depth], out.c))
        if self.reads == "z":
            weak = path.velocity(weak, x_t, double(t), self.kind)
        return model.pack(v + (self.scale - 1) * (v - weak), token)


def guided(
    model: Backbone,
    condition: Condition | Tensor | None,
    *,
    scale: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
    class_scale: float | None = None,
    null: Condition | None = None,
    own: SelfGuidance | None = None,
    device: torch.device | None = None,
) -> Velocity:
    """The model's velocity under classifier-free guidance, v_null + scale * (v_c - v_null).

    Args:
        condition: a Condition, or labels (B,); None for an unconditional model.
        scale: 1 is no guidance, and costs one forward pass instead of two.
        interval: times, both ends included, in which guidance applies (arXiv 2404.07724).
        channels: guide the first n channels only (SiT and DiT guide 3 of 4); None: all.
        class_scale: of a class token in the state (REG); 0: it is not guided; None: as the latent.
        null: what guidance leads away from; None: the network's own unconditional condition.
        own: guidance of each of the velocities, before they are combined.
        device: of the network; None: where the state is (see `core.devices`).

    Returns:
        v(x, t, t_step): float64 in, float64 out; x is a state of any shape, batch first.
    """
    told = as_condition(condition)
    if scale != 1.0 and not told.present():
        raise ValueError("guidance needs a class-conditional model, or one that is told captions")

    def one(x: Tensor, t: float, t_step: float, condition: Condition) -> Tensor:
        seen = x.float() if device is None else x.float().to(device)
        times = torch.full((len(x),), t, device=seen.device)
        if own is None or not own.interval[0] <= t_step <= own.interval[1]:
            return double(model(seen, times, condition).v)
        return own.of(model, model(seen, times, condition, taps=(own.depth,)), x, times)

    def v(x: Tensor, t: float, t_step: float) -> Tensor:
        if scale == 1.0 or not interval[0] <= t_step <= interval[1]:
            return one(x, t, t_step, told)
        both = told + (model.null(told) if null is None else null)
        v_c, v_null = one(torch.cat([x, x]), t, t_step, both).chunk(2)
        return model.guide(v_c, v_null, scale=scale, channels=channels, class_scale=class_scale)

    return v
