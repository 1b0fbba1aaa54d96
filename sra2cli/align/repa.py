"""REPA: the features of a frozen image encoder as the target (arXiv 2410.06940)."""

from collections.abc import Mapping

from torch import Tensor

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.align.heads import mlp, token_loss
from sra2cli.config.methods import REPA
from sra2cli.models.contract import Shape


class RepaAlignment(Alignment):
    """Projector D → 2048 → 2048 → F against encoder features, token by token.

    The cosine loss here is REPA's -cos, which is negative when all is well; the other
    objectives are as they are.
    """

    def __init__(self, settings: REPA, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        assert feature_width is not None  # align.build has seen to it
        self.settings: REPA = settings
        hidden = [settings.hidden] * (settings.layers - 1)
        self.head = mlp(shape.width, *hidden, feature_width)

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        tokens = taps[self.settings.depth]
        if inputs.features is None:
            raise ValueError("REPA needs encoder features")
        if inputs.features.shape[1] != tokens.shape[1]:
            raise ValueError(
                f"the encoder gives {inputs.features.shape[1]} tokens, the network has "
                f"{tokens.shape[1]}: extract the features for this latent size"
            )
        loss = token_loss(self.settings.objective, self.head(tokens), inputs.features)
        if self.settings.objective == "cosine":
            loss = loss - 1  # 1 - cos → -cos
        return windowed(loss, inputs.t, self.settings.window)
