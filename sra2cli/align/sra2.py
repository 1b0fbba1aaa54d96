"""SRA 2: the VAE's own feature as the target (arXiv 2601.17830, section 3.2)."""

from torch import Tensor, nn

from sra2cli.align.heads import mlp, patchify, token_loss
from sra2cli.align.inputs import AlignInputs, Shape, check_depth, windowed
from sra2cli.settings import SRA2


class Sra2Alignment(nn.Module):
    """Head D → 2D → … → 2D → p²C on the tokens of one block, against the clean latent z.

    Projecting to the latent's shape and comparing there (eq. 7) equals comparing patch by patch:
    the target is cut into patches instead of the prediction being put together.
    """

    needs_teacher = False
    needs_features = False

    def __init__(self, settings: SRA2, shape: Shape):
        super().__init__()
        check_depth("align.sra2.depth", settings.depth, shape.depth)
        self.settings, self.patch, self.depth = settings, shape.patch, settings.depth
        hidden = [2 * shape.width] * (settings.layers - 1)
        self.head = mlp(shape.width, *hidden, shape.patch**2 * shape.channels)

    def weight(self, epoch: int) -> float:
        return self.settings.weight

    def forward(self, tokens: Tensor, inputs: AlignInputs) -> Tensor:
        """tokens: (B, T, D) of block `depth`. Returns the loss of each sample, (B,)."""
        latent = inputs.mean if self.settings.target == "mean" else inputs.z
        target = patchify(latent, self.patch)
        loss = token_loss(self.settings.objective, self.head(tokens), target)
        if self.settings.reduction == "sum":  # eq. 7 as printed: over the N elements or tokens
            tokens_only = self.settings.objective == "cosine"
            loss = loss * (len(target[0]) if tokens_only else target[0].numel())
        return windowed(loss, inputs.t, self.settings.window)
