"""SRA: later tokens of the EMA, at a cleaner time, as the target (arXiv 2505.02831)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.align.heads import mlp, token_loss
from sra2cli.config.methods import SRA
from sra2cli.models.contract import Shape


def teacher_time(t: Tensor, uniform: Tensor, shift: float) -> Tensor:
    """clamp(t - shift * u, 0, 1): nearer to the data. t, uniform: (B,)."""
    return (t - shift * uniform).clamp(0, 1)


class SraAlignment(Alignment):
    """Head D → 2D → D on the student's block `depth` against the EMA's block `teacher_depth`.

    The teacher sees the same data, noise and dropped labels at `teacher_time`, and stops at its
    block.
    """

    def __init__(self, settings: SRA, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        self.settings: SRA = settings
        self.head = mlp(shape.width, 2 * shape.width, shape.width)

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        settings = self.settings
        if inputs.teacher is None:
            raise ValueError("SRA needs the tokens of the EMA")
        t = teacher_time(inputs.t, inputs.teacher_uniform, settings.time_shift)
        with torch.no_grad():
            target = inputs.teacher(inputs.noised(t), t, inputs.condition, settings.teacher_depth)
        loss = token_loss(settings.objective, self.head(taps[settings.depth]), target)
        return windowed(loss, inputs.t, settings.window)
