"""SRA 2: the VAE's own feature as the target (arXiv 2601.17830, section 3.2)."""

from collections.abc import Mapping

from torch import Tensor

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.align.heads import head_of, standardised, token_loss
from sra2cli.config.methods import SRA2
from sra2cli.models.contract import Shape
from sra2cli.models.layers import patchify, unpatchify


class Sra2Alignment(Alignment):
    """Head D → 2D → … → 2D → p²C on the tokens of one block, against the clean latent z.

    Its last layer may be another (`heads.head_of`): the paper gives its sizes only.

    Projecting to the latent's shape and comparing there (eq. 7) equals comparing patch by patch:
    the target is cut into patches instead of the prediction being put together.
    """

    def __init__(self, settings: SRA2, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        self.settings: SRA2 = settings
        self.patch = shape.patch
        rows = shape.patch**2 * shape.channels
        self.head, self.last = head_of(settings.final, shape.width, settings.layers, rows)

    def predict(self, tokens: Tensor, c: Tensor | None) -> Tensor:
        """The clean latent in patches (B, T, p²C), of tokens (B, T, D) of its block.

        c: (B, D), what the blocks were conditioned with; for a last layer that it modulates.
        """
        found: Tensor = self.head(tokens)
        if self.last is None:
            return found
        if c is None:
            raise ValueError("align.sra2.final=adaln needs a network that has a vector c")
        modulated: Tensor = self.last(found, c)
        return modulated

    def read(self, tokens: Tensor, c: Tensor | None) -> Tensor:
        """The clean latent (B, C, H, W)."""
        return unpatchify(self.predict(tokens, c), self.patch)

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        latent = inputs.mean if self.settings.target == "mean" else inputs.z
        target = patchify(latent, self.patch)
        prediction = self.predict(taps[self.settings.depth], inputs.c)
        if self.settings.target_norm == "sample":
            target, prediction = standardised(target), standardised(prediction)
        loss = token_loss(self.settings.objective, prediction, target)
        if self.settings.reduction == "sum":  # eq. 7 as printed: over the N elements or tokens
            tokens_only = self.settings.objective == "cosine"
            loss = loss * (len(target[0]) if tokens_only else target[0].numel())
        return windowed(loss, inputs.t, self.settings.window)
