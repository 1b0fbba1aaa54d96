"""DINOv2's class token, for Fréchet and kernel distance (Stein et al. 2023, arXiv 2306.04675).

As that paper's own evaluator has it: ViT-L/14 on 224x224, its class token after the final norm.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sra2cli.encoders.first_stage import full_precision
from sra2cli.encoders.image import IMAGENET_MEAN, IMAGENET_STD, load_for_class_token
from sra2cli.evaluation.extractors import Extractor

DINO = "facebook/dinov2-large"  # ViT-L/14 without registers, as transformers keeps it
SIZE = 224
FEATURE = "dino"


def pixel_values(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 as DINOv2 sees it, (3, SIZE, SIZE) float32.

    Both sides to `SIZE` by PIL's bicubic filter (antialiased, in levels of 255), whatever their
    ratio, then ImageNet's mean and deviation.
    """
    resized = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    x = np.asarray(resized, np.float32) / 255
    normal = (x - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def dino_extractor(name: str = DINO, *, device: str = "cpu", offline: bool = False) -> Extractor:
    """An image encoder, by hub name or folder: "dino" (B, F), its class token, in float32.

    Raises:
        SetupError: transformers is missing, there is no such encoder, or it is not whole or has no
            class token. DataError: weights that are not finite.
    """
    encoder = load_for_class_token(name, size=SIZE, device=device, offline=offline)

    def run(images: np.ndarray) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.stack([pixel_values(image) for image in images]))
        with full_precision():
            return {FEATURE: encoder.see(pixels.to(encoder.device))[:, 0]}

    return Extractor(
        name,
        encoder.fingerprint,
        {FEATURE: encoder.width},
        {FEATURE: "_dino"},
        run,
        standard=False,
        about={
            "feature": "class token after the final norm",
            "size": SIZE,
            "resize": "bicubic (PIL)",
            "normalised": "ImageNet",
        },
    )
