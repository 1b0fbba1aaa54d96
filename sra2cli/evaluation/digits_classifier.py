"""The network behind fd-digits: a small classifier of handwritten digits."""

import hashlib

import torch.nn.functional as F
from torch import Tensor, nn

from sra2cli.data.digits import ASSETS, RESOLUTION

TRAINED_ON = 1500  # digits the classifier has seen


CLASSIFIER = ASSETS / "digits-classifier.safetensors"


class DigitsClassifier(nn.Module):
    """uint8 images (B, H, W, 3) → features (B, 64) and logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, stride=2),
            nn.ReLU(),
        )
        self.features = nn.Linear(32 * 4 * 4, 64)
        self.logits = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.permute(0, 3, 1, 2).float().mean(dim=1, keepdim=True) / 127.5 - 1
        if x.shape[-2:] != (RESOLUTION, RESOLUTION):
            x = F.interpolate(x, (RESOLUTION, RESOLUTION), mode="area")
        features = F.relu(self.features(self.conv(x).flatten(1)))
        return features, self.logits(features)


def load_classifier() -> DigitsClassifier:
    """The packaged classifier, in eval mode."""
    from safetensors.torch import load_file

    model = DigitsClassifier()
    model.load_state_dict({k: v.float() for k, v in load_file(CLASSIFIER).items()})
    return model.eval().requires_grad_(False)


def classifier_fingerprint() -> str:
    """Hash of the packaged classifier, recorded beside every fd-digits."""
    return hashlib.sha256(CLASSIFIER.read_bytes()).hexdigest()[:16]
