"""Dispersive loss: tokens of different samples are driven apart (arXiv 2506.09027).

Written from its formula; its public code is raywang4/DispLoss.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.align.heads import in_float32
from sra2cli.config.methods import Dispersive
from sra2cli.models.contract import Shape


def dispersion(tokens: Tensor, temperature: float) -> Tensor:
    """log of the mean, over all pairs (i, j) of a group, of exp(-d_ij / temperature).

    d_ij is the mean squared difference of the tokens of samples i and j, 0 for i = j.

    Args:
        tokens: (groups, g, ...).

    Returns:
        (groups,) float32; 0 where all are alike, at least -log g.
    """
    with in_float32(tokens.device):
        flat = tokens.float().flatten(2)
        flat = flat - flat.mean(dim=1, keepdim=True)  # same distances, fewer digits lost
        products = flat @ flat.transpose(1, 2) / flat.shape[2]
        norms = products.diagonal(dim1=1, dim2=2)
        distances = norms[:, :, None] + norms[:, None, :] - 2 * products
        count = flat.shape[1]
        own = torch.eye(count, dtype=torch.bool, device=flat.device)
        distances = distances.masked_fill(own, 0.0)
        return torch.logsumexp(-distances.flatten(1) / temperature, dim=1) - 2 * math.log(count)


class DispersiveAlignment(Alignment):
    """`dispersion` of the tokens of one block, within the groups of the global batch; no head.

    Its paper takes all pairs of a process's batch: then the loss depends on the processes.
    """

    def __init__(self, settings: Dispersive, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        self.settings: Dispersive = settings

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        tokens = taps[self.settings.depth].unflatten(0, (-1, inputs.group))
        loss = dispersion(tokens, self.settings.temperature).repeat_interleave(inputs.group)
        return windowed(loss, inputs.t, self.settings.window)
