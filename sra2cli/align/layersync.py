"""LayerSync: the network's own later tokens as the target (arXiv 2510.12581).

Written from its formula; its public code is vita-epfl/LayerSync.
"""

from collections.abc import Mapping

from torch import Tensor

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.align.heads import token_loss
from sra2cli.config.methods import LayerSync
from sra2cli.models.contract import Shape


class LayerSyncAlignment(Alignment):
    """-cos, token by token, of block `depth` and the stopped block `target_depth`; no head."""

    def __init__(self, settings: LayerSync, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        self.settings: LayerSync = settings

    @property
    def depths(self) -> tuple[int, ...]:
        return (self.settings.depth, self.settings.target_depth)

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        tokens, target = (taps[depth] for depth in self.depths)
        loss = token_loss("cosine", tokens, target.detach()) - 1  # 1 - cos → -cos
        return windowed(loss, inputs.t, self.settings.window)
