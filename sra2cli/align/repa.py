"""REPA: the features of a frozen image encoder as the target (arXiv 2410.06940).

iREPA's two changes are settings (arXiv 2512.10794, written from its formulas; its public code is
end2end-diffusion/irepa): a convolution as projector, and a target normalised over tokens.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from sra2cli.align.contract import AlignInputs, Alignment, windowed
from sra2cli.align.heads import mlp, token_loss
from sra2cli.config.methods import REPA
from sra2cli.models.contract import Shape


class ConvProjector(nn.Module):
    """A 3x3 convolution over tokens (B, T, n_in) as they lie in the square → (B, T, n_out)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel_size=3, padding=1)
        nn.init.xavier_uniform_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        side = math.isqrt(tokens.shape[1])
        square: Tensor = self.conv(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return square.flatten(2).transpose(1, 2)


def over_tokens(features: Tensor, share: float) -> Tensor:
    """(B, T, F) less `share` of its mean over tokens, over its deviation (T - 1) over tokens."""
    features = features.float()
    centred = features - share * features.mean(dim=1, keepdim=True)
    return centred / (features.std(dim=1, keepdim=True) + 1e-6)


class RepaAlignment(Alignment):
    """Projector D → 2048 → 2048 → F or a convolution D → F, on encoder features, token by token.

    The cosine loss here is REPA's -cos, which is negative when all is well; the other
    objectives are as they are.
    """

    def __init__(self, settings: REPA, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        assert feature_width is not None  # align.build has seen to it
        self.settings: REPA = settings
        if settings.spatial_norm is not None and shape.tokens < 2:
            raise ValueError("align.repa.spatial_norm needs more tokens than one")
        hidden = [settings.hidden] * (settings.layers - 1)
        self.head: nn.Module = (
            ConvProjector(shape.width, feature_width)
            if settings.projector == "conv"
            else mlp(shape.width, *hidden, feature_width)
        )

    def forward(self, taps: Mapping[int, Tensor], inputs: AlignInputs) -> Tensor:
        tokens = taps[self.settings.depth]
        if inputs.features is None:
            raise ValueError("REPA needs encoder features")
        if inputs.features.shape[1] != tokens.shape[1]:
            raise ValueError(
                f"the encoder gives {inputs.features.shape[1]} tokens, the network has "
                f"{tokens.shape[1]}: extract the features for this latent size"
            )
        target, share = inputs.features, self.settings.spatial_norm
        target = target if share is None else over_tokens(target, share)
        loss = token_loss(self.settings.objective, self.head(tokens), target)
        if self.settings.objective == "cosine":
            loss = loss - 1  # 1 - cos → -cos
        return windowed(loss, inputs.t, self.settings.window)
