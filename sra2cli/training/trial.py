"""What `sra2 train` puts together, on random data: for timing it."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sra2cli.config.settings import Recipe
from sra2cli.core.processes import Group
from sra2cli.data.batches import share
from sra2cli.data.captions import Packed, Text
from sra2cli.data.sources import Source
from sra2cli.data.store import Store
from sra2cli.data.store_info import CLASS_FEATURE, RowSet, StoreInfo
from sra2cli.data.store_writer import StoreWriter
from sra2cli.encoders.image import Encoder, dinov2_base
from sra2cli.models.build import build, shape_of
from sra2cli.training.assemble import Training
from sra2cli.training.engine import Engine

FACTOR = 8  # image over latent, as SD-VAE
WIDTH = 768  # of DINOv2-B


def make_store(
    folder: Path, recipe: Recipe, count: int, *, features: bool, class_width: int = 0
) -> Store:
    """Random moments for a recipe, with encoder features and class features if asked for."""
    shape = shape_of(recipe)
    info = StoreInfo(
        "random",
        "0",
        0.18215,
        0.0,
        channels=shape.channels,
        latent=shape.latent,
        resolution=FACTOR * shape.latent,
        classes=shape.classes,
    )
    if features:
        info = replace(
            info, encoder="facebook/dinov2-base", feature_tokens=shape.tokens, feature_width=WIDTH
        )
    if class_width:
        rows = RowSet((class_width,), "float16", "facebook/dinov2-base", "")
        info = replace(info, extra={CLASS_FEATURE: rows})
    names, rng = [f"{i}.jpg" for i in range(count)], np.random.default_rng(0)
    labels = rng.integers(shape.classes, size=count).tolist() if shape.classes else [-1] * count
    text = None
    if shape.condition == "text":
        info, text = captioned(info, shape.text, count)
    writer = StoreWriter(folder / "store.h5", info, names, labels, text=text)
    moments = (count, 2 * shape.channels, shape.latent, shape.latent)
    values = {"moments": np.abs(rng.normal(size=moments)).astype(np.float32)}
    if class_width:
        values[CLASS_FEATURE] = rng.normal(size=(count, class_width)).astype(np.float16)
    if features:
        values["features"] = rng.normal(size=(count, shape.tokens, WIDTH)).astype(np.float16)
    writer.write(list(range(count)), values)
    if text is not None:
        writer.write_captions(range(count), rng.normal(size=(count, *shape.text)))
    writer.finish()
    return Store(folder / "store.h5")


def captioned(info: StoreInfo, text: tuple[int, int], count: int) -> tuple[StoreInfo, Text]:
    """A store with a caption an image and room for its features, (L, E) as in `text`."""
    info = replace(
        info,
        text_encoder="random",
        text_fingerprint="0",
        text_tokens=text[0],
        text_width=text[1],
        text_vocabulary=1,
        text_features=True,
    )
    captions = Packed.of([["text"]] * count)
    return info, Text(
        captions,
        tokens=lambda texts: np.zeros((len(texts), text[0]), np.int64),
        null=lambda: np.zeros(text, np.float32),
    )


class OneImage:
    """A JPEG, whatever the number."""

    def __init__(self, side: int) -> None:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "jpeg")
        self.data = buffer.getvalue()

    def __call__(self, index: int) -> bytes:
        return self.data


def trial(wanted: Recipe, store: Store, device: str, *, encoder: bool) -> tuple[Training, Engine]:
    """A training on a store of `make_store`, and its engine.

    Args:
        encoder: an image encoder runs in the step, with its real architecture and random weights,
            which cost the same; otherwise the store's features are read.
    """
    frozen = images = None
    if encoder:
        side = shape_of(wanted).side
        frozen = Encoder("dinov2-b", dinov2_base(side), side=side, device=torch.device(device))
        images = Source(Path(), store.names, None, [], OneImage(store.info.resolution))
    group = Group(device=device)
    indices = share(wanted, rank=0, processes=1)
    teacher = None if wanted.frozen is None else build(wanted).eval().requires_grad_(False)
    training = Training(wanted, store, indices, images, frozen, frozen=teacher)
    return training, training.engine(training.objective(), group)
