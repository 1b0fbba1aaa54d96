"""What a first stage is worth: images against what comes back of them."""

import math

import numpy as np
import torch
from PIL import Image

from sra2cli.core import pictures
from sra2cli.encoders.first_stage import FirstStage, scaled_latents
from sra2cli.extraction.encode import unit

SHOWN, COLUMNS = 24, 8


def reconstructed(vae: FirstStage, images: np.ndarray) -> np.ndarray:
    """Images (N, R, R, 3) uint8 through the mean of their latents and back, rounded."""
    size = unit(images.shape[1])
    back = []
    for k in range(0, len(images), size):
        moments = vae.encode(torch.from_numpy(images[k : k + size]))
        z = scaled_latents(moments, None, scale=vae.scale, shift=vae.shift)
        back.append(vae.decode(z, rounding="nearest"))
    return np.concatenate(back)


def psnr(images: np.ndarray, back: np.ndarray) -> float:
    """Peak signal to noise ratio of 8-bit images in dB, from the squared error over all pixels."""
    error = sum(
        float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(images, back, strict=True)
    )
    return 10 * math.log10(255**2 * images.size / error) if error else math.inf


def sheet(images: np.ndarray, back: np.ndarray) -> Image.Image:
    """Rows of some images, spread evenly, each above the row of what comes back of them."""
    count = min(SHOWN, len(images))
    rows = [i * len(images) // count for i in range(count)]
    cells = []
    for k in range(0, count, COLUMNS):
        line = rows[k : k + COLUMNS]
        blank = [np.full_like(images[0], 255)] * (min(COLUMNS, count) - len(line))
        cells += [*images[line], *blank, *back[line], *blank]
    return pictures.grid(cells, columns=min(COLUMNS, count))
