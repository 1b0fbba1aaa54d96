"""Samplers: from noise at t = 1 to data at t = 0.

They share one contract: `sampler(v, x, *, steps, ...) -> x_0`, where `v(x, t, t_step)` is the
velocity of a batch x (B, ...) at a scalar time t; `t_step` is the time at which the step began,
the one guidance intervals ask about. The state is float64; the network sees float32.
Grids and steps are REPA's and SRA's (t = 1 is noise there too).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sra2cli.config.settings import PathKind
from sra2cli.diffusion import path
from sra2cli.diffusion.guidance import Velocity, guided

__all__ = ["Velocity", "edm", "euler", "euler_maruyama", "guided", "heun"]

Noise = Callable[[int], Tensor]


def euler(v: Velocity, x: Tensor, *, steps: int, shift: float = 1.0) -> Tensor:
    """Euler's method on dx/dt = v over linspace(1, 0, steps + 1). First order.

    Args:
        x: (B, ...) standard normal noise, the state at t = 1.
        shift: S of the grid, see `shifted`; 1: it is even.

    Returns:
        The state at t = 0, float64.
    """
    grid = shifted(_linspace(1.0, 0.0, steps + 1), shift)
    x = x.double()
    for t, t_next in pairwise(grid):
        x = x + (t_next - t) * v(x, t, t)
    return x


def heun(v: Velocity, x: Tensor, *, steps: int, shift: float = 1.0) -> Tensor:
    """Heun's method on the same grid: second order, 2 * steps - 1 evaluations.

    The corrector runs on all but the last step, and sees the guidance of the step's first time.
    """
    grid = shifted(_linspace(1.0, 0.0, steps + 1), shift)
    x = x.double()
    for i, (t, t_next) in enumerate(pairwise(grid)):
        slope = v(x, t, t)
        if i < steps - 1:
            slope = 0.5 * (slope + v(x + (t_next - t) * slope, t_next, t))
        x = x + (t_next - t) * slope
    return x


def euler_maruyama(
    v: Velocity,
    x: Tensor,
    *,
    steps: int,
    noise: Noise,
    last_step: float = 0.04,
    kind: PathKind = "linear",
) -> Tensor:
    """Euler-Maruyama on the reverse SDE with diffusion w(t) = 2t, then one noise-free step.

    dx = (v - w/2 * score) dt + sqrt(w) dW over linspace(1, last_step, steps); the drift alone
    takes last_step to 0. So `steps` evaluations and `steps - 1` draws.

    Args:
        noise: noise(i) is the standard normal draw of stochastic step i = 0..steps-2, shaped as x.
        last_step: length of the last, noise-free step, in (0, 1).
        kind: the path the model was trained on (the score depends on it).
    """
    grid = [*_linspace(1.0, last_step, steps), 0.0]
    x = x.double()
    for i, (t, t_next) in enumerate(pairwise(grid)):
        slope = v(x, t, t)
        times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        drift = slope - t * path.score(slope, x, times, kind)  # w/2 = t
        x = x + (t_next - t) * drift
        if i < steps - 1:
            x = x + (2 * t * (t - t_next)) ** 0.5 * noise(i).to(x)
    return x


def edm(
    v: Velocity,
    x: Tensor,
    *,
    steps: int,
    sigma_max: float = 80.0,
    sigma_min: float = 0.002,
    rho: float = 7.0,
) -> Tensor:
    """EDM's sampler without churn (arXiv 2206.00364, algorithm 1): Heun's method in the noise level
    sigma, from sigma_max to sigma_min and 0, of a network on the linear path.

    With t = sigma / (1 + sigma) and x_t = (1 - t) x, D = x_t - t v. 2 * steps - 1 evaluations.
    """
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    grid = [root**rho for root in _linspace(*ends, steps)] + [0.0]
    x = x.double() * sigma_max

    def slope(x: Tensor, sigma: float, began: float) -> Tensor:
        t, x_t = sigma / (1 + sigma), x / (1 + sigma)
        denoised = x_t - t * v(x_t, t, began / (1 + began))
        return (x - denoised) / sigma

    for sigma, sigma_next in pairwise(grid):
        d = slope(x, sigma, sigma)
        if sigma_next:
            d = 0.5 * (d + slope(x + (sigma_next - sigma) * d, sigma_next, sigma))
        x = x + (sigma_next - sigma) * d
    return x


def shifted(grid: list[float], shift: float) -> list[float]:
    """Times w → S w / (1 + (S - 1) w): above 1, more steps lie near noise (arXiv 2403.03206).

    LightningDiT's timestep shift s, with its time from noise to data, is S = 1 / s here.
    """
    return [shift * w / (1 + (shift - 1) * w) for w in grid]


def _linspace(start: float, stop: float, num: int) -> list[float]:
    return torch.linspace(start, stop, num, dtype=torch.float64).tolist()
