"""The path from data to noise: the only place that says what x_t, v and the score are.

t = 0 is data and t = 1 is noise, everywhere in this project:

    x_t = alpha(t) * z + sigma(t) * noise
    v   = d x_t / dt = alpha'(t) * z + sigma'(t) * noise

Source: SiT (arXiv 2401.08740), SRA 2 (arXiv 2601.17830) eq. 1-6.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sra2cli.config.settings import PathKind
from sra2cli.core.devices import double


@dataclass(frozen=True)
class Coefficients:
    """alpha, sigma and their time derivatives at t, shaped to broadcast over a state (B, ...)."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def coefficients(t: Tensor, kind: PathKind = "linear", dims: int = 4) -> Coefficients:
    """Path coefficients at t.

    Args:
        t: times in [0, 1], shape (B,); its dtype is the dtype of the result.
        dims: of the state, with the batch.
        kind: "linear" (1-t, t) or "cosine" (cos, sin of pi*t/2).

    Raises:
        ValueError: for an unknown path.
    """
    t = t.view(-1, *[1] * (dims - 1))
    if kind == "linear":
        return Coefficients(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    if kind == "cosine":
        half_pi = math.pi / 2
        cos, sin = torch.cos(half_pi * t), torch.sin(half_pi * t)
        return Coefficients(cos, sin, -half_pi * sin, half_pi * cos)
    raise ValueError(f"unknown path {kind!r}: linear or cosine")


def interpolate(
    z: Tensor, noise: Tensor, t: Tensor, kind: PathKind = "linear"
) -> tuple[Tensor, Tensor]:
    """x_t and its velocity v (SRA 2 eq. 1 and 4). z, noise: (B, ...); t: (B,)."""
    c = coefficients(t, kind, z.dim())
    return c.alpha * z + c.sigma * noise, c.d_alpha * z + c.d_sigma * noise


def score(v: Tensor, x_t: Tensor, t: Tensor, kind: PathKind = "linear") -> Tensor:
    """Score of the marginal at t from its velocity (SRA 2 eq. 6); t must be above 0."""
    c = coefficients(t, kind, x_t.dim())
    return (c.d_alpha * x_t - c.alpha * v) / (c.sigma * (c.alpha * c.d_sigma - c.d_alpha * c.sigma))


def data(v: Tensor, x_t: Tensor, t: Tensor, kind: PathKind = "linear") -> Tensor:
    """E[z | x_t] from the velocity: x_t and v are two linear equations in (z, noise)."""
    c = coefficients(t, kind, x_t.dim())
    return (c.d_sigma * x_t - c.sigma * v) / (c.alpha * c.d_sigma - c.d_alpha * c.sigma)


def velocity(z: Tensor, x_t: Tensor, t: Tensor, kind: PathKind = "linear") -> Tensor:
    """The velocity of x_t if z is its clean latent: (x_t - z) / t on the linear path; t above 0."""
    c = coefficients(t, kind, x_t.dim())
    return c.d_alpha * z + c.d_sigma * (x_t - c.alpha * z) / c.sigma


def sample_times(
    uniform: Tensor,
    kind: Literal["uniform", "lognormal"] = "uniform",
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Tensor:
    """Training times from uniform draws.

    Args:
        uniform: draws in [0, 1), shape (B,).
        kind: "uniform", or "lognormal", which in this field means the logit-normal:
            sigmoid(mean + std * n) with n standard normal.
        mean: of what goes into the sigmoid; lognormal only.
        std: of the same.
    """
    if kind == "uniform":
        return uniform
    if kind == "lognormal":
        eps = torch.finfo(torch.float64).eps
        normal = torch.special.ndtri(double(uniform).clamp(eps, 1 - eps))
        return torch.sigmoid(mean + std * normal).to(uniform.dtype).to(uniform.device)
    raise ValueError(f"unknown time sampling {kind!r}: uniform or lognormal")
