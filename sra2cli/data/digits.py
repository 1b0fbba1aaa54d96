"""The demo's data and its measuring stick: the 1,797 real digits of scikit-learn.

Two small networks are packaged under assets/, so that the demo needs no download, every machine
uses the same first stage, and `fd-digits` means the same everywhere (tools/make_digits.py,
tools/make_first_stages.py):

- digits-vae: an AutoencoderKL, 3x32x32 → 16x8x8 latents, hardly any KL.
- digits-classifier: trained on the first 1,500 digits; its 64 features are those of `fd-digits`.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from sra2cli.core import pictures

ASSETS = Path(__file__).parents[1] / "assets"
RESOLUTION = 32
FIRST_STAGE = "cace73639a0a5d76"  # fingerprint of the packaged one


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits as (N, 32, 32, 3) uint8 and labels (N,), in scikit-learn's order."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    small = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), was 0..16
    size = (RESOLUTION, RESOLUTION)
    large = [Image.fromarray(im).resize(size, Image.Resampling.BICUBIC) for im in small]
    return np.stack([np.asarray(im.convert("RGB")) for im in large]), bunch.target


def write_folder(root: Path) -> None:
    """The digits as PNGs in class folders, named by their place in scikit-learn's order."""
    images, labels = load_digits()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / str(label) / f"{i:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures.save(Image.fromarray(image), path)
