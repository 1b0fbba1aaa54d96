"""Self-Transcendence, its second stage: a frozen network's guided tokens as the target
(arXiv 2601.07773).

Written from its formula; its public code is csslc/Self-Transcendence.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.align.heads import mlp, token_loss
from sra2cli.config.methods import SelfTranscendence
from sra2cli.models.contract import Shape


class SelfTranscendenceAlignment(Alignment):
    """Head D → 2048 → 2048 → D on block `depth` against f_u + guidance * (f_c - f_u), mean squared.

    f_c and f_u are tokens of the frozen network's block `teacher_depth` on the same x_t and t,
    under the sample's condition, which is never dropped here, and under none.
    """

    def __init__(
        self, settings: SelfTranscendence, shape: Shape, *, feature_width: int | None = None
    ):
        super().__init__()
        if not shape.conditional:
            raise ValueError("align.self-transcendence needs a network that is told something")
        self.settings: SelfTranscendence = settings
        hidden = [settings.hidden] * (settings.layers - 1)
        self.head = mlp(shape.width, *hidden, shape.width)

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        settings, teacher = self.settings, inputs.frozen
        if teacher is None or inputs.told is None or inputs.null is None:
            raise ValueError("Self-Transcendence needs the tokens of a frozen network")
        x_t, t = inputs.noised(inputs.t), inputs.t
        with torch.no_grad():
            told = teacher(x_t, t, inputs.told, settings.teacher_depth).float()
            null = teacher(x_t, t, inputs.null, settings.teacher_depth).float()
            target = null + settings.guidance * (told - null)
        loss = token_loss("l2", self.head(taps[settings.depth]), target)
        return windowed(loss, inputs.t, settings.window)
