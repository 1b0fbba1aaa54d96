"""What an alignment method is, what it is given, and the helpers they share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sra2cli.config.methods import MethodSettings
from sra2cli.models.contract import Condition

Teacher = Callable[[Tensor, Tensor, Condition, int], Tensor]
"""teacher(x_t, t, condition, depth): tokens (B, T, D) of another network, without gradient: of the
EMA, or of any network that is held elsewhere."""


@dataclass(frozen=True)
class AlignInputs:
    """One batch as alignment methods see it.

    z, mean: (B, C, H, W) clean scaled latents: this step's draw, and the posterior mean.
    t, teacher_uniform: (B,). condition: after dropout. c: (B, D), what the blocks were
    conditioned with, for heads that are modulated; None where a network has none.
    features: (B, T, F) of an image encoder, or None.
    class_feature: (B, F) of the encoder; class_taps: {depth: class token (B, D)}; both only where
    the network carries a class token.
    noised(t): x_t of this batch at other times (B,). teacher: where a method needs one.
    frozen: another network's tokens, where a method needs them; told, null: then the condition
    before dropout, and the one that tells nothing.
    v: (B, C, H, W), the velocity that the network is trained on.
    group: so many samples, one after the other, are one group of the global batch (train.group):
    what compares samples does so within groups, whatever the processes and micro-batches.
    """

    z: Tensor
    mean: Tensor
    t: Tensor
    condition: Condition
    teacher_uniform: Tensor
    noised: Callable[[Tensor], Tensor]
    c: Tensor | None = None
    features: Tensor | None = None
    class_feature: Tensor | None = None
    class_taps: Mapping[int, Tensor] = field(default_factory=dict)
    teacher: Teacher | None = None
    frozen: Teacher | None = None
    told: Condition | None = None
    null: Condition | None = None
    v: Tensor | None = None
    group: int = 1


class Alignment(nn.Module):
    """An alignment method: built as Method(settings, shape, feature_width=...).

    Attributes:
        settings: of its row of config.methods.METHODS; they say what it needs and its factor.
        depths: the blocks whose tokens it reads, 1-based.
    """

    settings: Any  # of the method's own type

    @property
    def depths(self) -> tuple[int, ...]:
        return (self.settings.depth,)

    def factor(self, step: int, epoch: int) -> float:
        """What multiplies its loss at a step; 0: switched off."""
        settings: MethodSettings = self.settings
        return settings.factor(step, epoch)

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        """The loss of each sample, (B,) float32, from {depth: tokens (B, T, D)}."""
        raise NotImplementedError

    def read(self, tokens: Tensor, c: Tensor | None) -> Tensor:
        """What `settings.reads` names, (B, C, H, W), of tokens (B, T, D) of the block
        `settings.depth` and c (B, D); for methods that read something."""
        raise NotImplementedError

    def nothing(self) -> Tensor:
        """An exact zero that every parameter takes part in, for when the method is switched off.

        Several processes wait for the gradient of every parameter. No tokens: 0 x inf is NaN.
        """
        sums = [parameter.sum() for parameter in self.parameters()]
        return 0.0 * torch.stack(sums).sum() if sums else torch.zeros(())


def windowed(loss: Tensor, t: Tensor, window: tuple[float, float]) -> Tensor:
    """0 for samples whose t lies outside [a, b]; the mean still runs over the whole batch."""
    return loss * ((t >= window[0]) & (t <= window[1]))
