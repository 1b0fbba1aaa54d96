"""REG: REPA over the class token too (arXiv 2507.01467)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sra2cli.align.contract import AlignInputs
from sra2cli.align.repa import RepaAlignment


class RegAlignment(RepaAlignment):
    """REPA's projector and loss over 1 + T tokens: [class token; patches] against the encoder's."""

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        depth = self.settings.depth
        if (
            inputs.features is None
            or inputs.class_feature is None
            or depth not in inputs.class_taps
        ):
            raise ValueError("REG needs encoder features and a network with a class token")
        tokens = torch.cat([inputs.class_taps[depth][:, None], taps[depth]], dim=1)
        target = torch.cat([inputs.class_feature[:, None], inputs.features], dim=1)
        return super().forward({depth: tokens}, replace(inputs, features=target))
