"""Feature extractors that metrics are made on, and how images reach them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from sra2cli import console, digits
from sra2cli.errors import DataError
from sra2cli.images import decode_image
from sra2cli.sources import Source, VanishedError

BATCH = 250


@dataclass(frozen=True)
class Extractor:
    """uint8 images (B, H, W, 3) → {feature name: (B, D) float32}; `fingerprint` of its weights."""

    name: str
    fingerprint: str
    run: Callable[[np.ndarray], dict[str, np.ndarray]]


def digits_extractor() -> Extractor:
    """The packaged digits classifier: "features" (B, 64) and "logits" (B, 10)."""
    model = digits.load_classifier()

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        features, logits = model(torch.from_numpy(images))
        return {"features": features.numpy(), "logits": logits.numpy()}

    return Extractor("digits-classifier", digits.classifier_fingerprint(), run)


def image_batches(source: Source, title: str) -> Iterator[np.ndarray]:
    """Images of one size in batches (B, H, W, 3) uint8; DataError names the file at fault."""
    size: tuple[int, ...] | None = None
    with console.progress(title, len(source)) as bar:
        for k in range(0, len(source), BATCH):
            images = []
            for index in range(k, min(k + BATCH, len(source))):
                name = source.root / source.names[index]
                try:
                    data = source.read(index)
                    image = decode_image(data if isinstance(data, bytes) else b"")
                except (DataError, VanishedError) as error:
                    raise DataError(f"{name}: {error}") from None
                size = size or image.shape
                if image.shape != size:
                    raise DataError(
                        f"{name} is {image.shape[1]}x{image.shape[0]}, the images before it "
                        f"{size[1]}x{size[0]}: samples of one size are needed"
                    )
                images.append(image)
            yield np.stack(images)
            bar.advance(len(images))


def all_features(extractor: Extractor, batches: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    """Features of all images, by name, (N, D)."""
    parts = [extractor.run(images) for images in batches]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
