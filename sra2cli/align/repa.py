"""REPA: the features of a frozen image encoder as the target (arXiv 2410.06940)."""

from torch import Tensor, nn

from sra2cli.align.heads import mlp, token_loss
from sra2cli.align.inputs import AlignInputs, Shape, check_depth, windowed
from sra2cli.settings import REPA


class RepaAlignment(nn.Module):
    """Projector D → 2048 → 2048 → F against encoder features, token by token.

    The cosine loss here is REPA's -cos, which is negative when all is well; the other
    objectives are as they are.
    """

    needs_teacher = False
    needs_features = True

    def __init__(self, settings: REPA, shape: Shape, *, feature_width: int):
        super().__init__()
        check_depth("align.repa.depth", settings.depth, shape.depth)
        self.settings, self.depth = settings, settings.depth
        hidden = [settings.hidden] * (settings.layers - 1)
        self.head = mlp(shape.width, *hidden, feature_width)

    def weight(self, epoch: int) -> float:
        return self.settings.weight

    def forward(self, tokens: Tensor, inputs: AlignInputs) -> Tensor:
        """tokens: (B, T, D) of block `depth`. Returns the loss of each sample, (B,)."""
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
