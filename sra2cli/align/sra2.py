"""SRA 2: the VAE's own feature as the target (arXiv 2601.17830, section 3.2)."""

from collections.abc import Mapping

from torch import Tensor

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.align.heads import mlp, token_loss
from sra2cli.config.methods import SRA2
from sra2cli.models.contract import Shape
from sra2cli.models.layers import patchify


class Sra2Alignment(Alignment):
    """Head D → 2D → … → 2D → p²C on the tokens of one block, against the clean latent z.

    Projecting to the latent's shape and comparing there (eq. 7) equals comparing patch by patch:
    the target is cut into patches instead of the prediction being put together.
    """

    def __init__(self, settings: SRA2, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        self.settings: SRA2 = settings
        self.patch = shape.patch
        hidden = [2 * shape.width] * (settings.layers - 1)
        self.head = mlp(shape.width, *hidden, shape.patch**2 * shape.channels)

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        latent = inputs.mean if self.settings.target == "mean" else inputs.z
        target = patchify(latent, self.patch)
        prediction = self.head(taps[self.settings.depth])
        loss = token_loss(self.settings.objective, prediction, target)
        if self.settings.reduction == "sum":  # eq. 7 as printed: over the N elements or tokens
            tokens_only = self.settings.objective == "cosine"
            loss = loss * (len(target[0]) if tokens_only else target[0].numel())
        return windowed(loss, inputs.t, self.settings.window)
