"""What alignment methods are given, and the helpers they share."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

TeacherTokens = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]


@dataclass(frozen=True)
class Shape:
    """What a head must know of the network it hangs on."""

    width: int  # D, of its tokens
    depth: int  # its number of blocks
    patch: int
    channels: int  # C, of the latent


@dataclass(frozen=True)
class AlignInputs:
    """One batch as alignment methods see it.

    z, mean: (B, C, H, W) clean scaled latents: this step's draw, and the posterior mean.
    t, teacher_uniform: (B,). y: (B,) labels after dropout, or None.
    features: (B, T, F) of an image encoder, or None.
    noised(t): x_t of this batch at other times (B,).
    teacher(x_t, t, y, depth): tokens (B, T, D) of the EMA network, without gradient.
    """

    z: Tensor
    mean: Tensor
    t: Tensor
    y: Tensor | None
    teacher_uniform: Tensor
    noised: Callable[[Tensor], Tensor]
    features: Tensor | None = None
    teacher: TeacherTokens | None = None


def check_depth(name: str, depth: int, blocks: int) -> None:
    """Raise ValueError unless `depth` is one of the network's blocks, 1-based."""
    if not 1 <= depth <= blocks:
        raise ValueError(f"{name} is {depth}, but the network has blocks 1..{blocks}")


def windowed(loss: Tensor, t: Tensor, window: tuple[float, float]) -> Tensor:
    """0 for samples whose t lies outside [a, b]; the mean still runs over the whole batch."""
    return loss * ((t >= window[0]) & (t <= window[1]))
