"""Internal Guidance, its training: a velocity read off a block in between (arXiv 2512.24176).

Written from its formula; its public code is CVL-UESTC/Internal-Guidance (MIT).
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.config.methods import Internal
from sra2cli.models.contract import Shape
from sra2cli.models.layers import FinalLayer, unpatchify


class InternalAlignment(Alignment):
    """A last layer as SiT's on the tokens of one block, on the network's own target, the velocity.

    It begins at zero, as SiT's does.
    """

    def __init__(self, settings: Internal, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        self.settings: Internal = settings
        self.patch = shape.patch
        norm = partial(nn.LayerNorm, elementwise_affine=False, eps=1e-6)
        self.final = FinalLayer(shape.width, norm, shape.patch**2 * shape.channels)
        for parameter in self.final.parameters():
            nn.init.zeros_(parameter)

    def read(self, tokens: Tensor, c: Tensor | None) -> Tensor:
        """The velocity (B, C, H, W) of tokens (B, T, D) of its block and c (B, D)."""
        if c is None:
            raise ValueError("align.internal needs a network that has a vector c")
        return unpatchify(self.final(tokens, c), self.patch)

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        if inputs.v is None:
            raise ValueError("Internal Guidance needs the velocity")
        predicted = self.read(taps[self.settings.depth], inputs.c).float()
        loss = (predicted - inputs.v.float()).square().mean(dim=(1, 2, 3))
        return windowed(loss, inputs.t, self.settings.window)
