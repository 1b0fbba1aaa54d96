"""SRA: later tokens of the EMA, at a cleaner time, as the target (arXiv 2505.02831)."""

import torch
from torch import Tensor, nn

from sra2cli.align.heads import mlp, token_loss
from sra2cli.align.inputs import AlignInputs, Shape, check_depth, windowed
from sra2cli.settings import SRA


def teacher_time(t: Tensor, uniform: Tensor, shift: float) -> Tensor:
    """clamp(t - shift * u, 0, 1): nearer to the data. t, uniform: (B,)."""
    return (t - shift * uniform).clamp(0, 1)


class SraAlignment(nn.Module):
    """Head D → 2D → D on the student's block `depth` against the EMA's block `teacher_depth`.

    The teacher sees the same data, noise and dropped labels at `teacher_time`, and stops at its
    block.
    """

    needs_teacher = True
    needs_features = False

    def __init__(self, settings: SRA, shape: Shape):
        super().__init__()
        check_depth("align.sra.depth", settings.depth, shape.depth)
        check_depth("align.sra.teacher_depth", settings.teacher_depth, shape.depth)
        self.settings, self.depth = settings, settings.depth
        self.head = mlp(shape.width, 2 * shape.width, shape.width)

    def weight(self, epoch: int) -> float:
        """Constant until `decay_after`, then falling tenfold every 1000 epochs, as SRA's runs."""
        after = self.settings.decay_after
        if after is None or epoch <= after:
            return self.settings.weight
        return self.settings.weight * 0.1 ** ((epoch - after) / 1000)

    def forward(self, tokens: Tensor, inputs: AlignInputs) -> Tensor:
        """tokens: (B, T, D) of the student's block. Returns the loss of each sample, (B,)."""
        if inputs.teacher is None:
            raise ValueError("SRA needs the tokens of the EMA")
        t = teacher_time(inputs.t, inputs.teacher_uniform, self.settings.time_shift)
        with torch.no_grad():
            target = inputs.teacher(inputs.noised(t), t, inputs.y, self.settings.teacher_depth)
        loss = token_loss(self.settings.objective, self.head(tokens), target)
        return windowed(loss, inputs.t, self.settings.window)
