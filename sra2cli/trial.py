"""What `sra2 train` puts together, on random data: for timing it."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sra2cli.batches import Batches
from sra2cli.encoders import Encoder, dinov2_base
from sra2cli.engine import Engine
from sra2cli.objective import Objective, sit_config
from sra2cli.processes import Group, make_accelerator
from sra2cli.settings import Recipe
from sra2cli.sources import Source
from sra2cli.store import Store, StoreInfo
from sra2cli.store_writer import StoreWriter

FACTOR = 8  # image over latent, as SD-VAE
WIDTH = 768  # of DINOv2-B


def make_store(folder: Path, recipe: Recipe, count: int, *, features: bool) -> Store:
    """Random moments for a recipe, with encoder features if asked for."""
    data, tokens = recipe.data, sit_config(recipe).tokens
    info = StoreInfo(
        "random",
        "0",
        0.18215,
        0.0,
        channels=data.channels,
        latent=data.latent,
        resolution=FACTOR * data.latent,
        classes=data.classes,
    )
    if features:
        info = replace(
            info, encoder="facebook/dinov2-base", feature_tokens=tokens, feature_width=WIDTH
        )
    names, rng = [f"{i}.jpg" for i in range(count)], np.random.default_rng(0)
    labels = rng.integers(data.classes, size=count).tolist() if data.classes else [-1] * count
    writer = StoreWriter(folder / "store.h5", info, names, labels)
    shape = (count, 2 * data.channels, data.latent, data.latent)
    values = {"moments": np.abs(rng.normal(size=shape)).astype(np.float32)}
    if features:
        values["features"] = rng.normal(size=(count, tokens, WIDTH)).astype(np.float16)
    writer.write(list(range(count)), values)
    writer.finish()
    return Store(folder / "store.h5")


class OneImage:
    """A JPEG, whatever the number."""

    def __init__(self, side: int) -> None:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "jpeg")
        self.data = buffer.getvalue()

    def __call__(self, index: int) -> bytes:
        return self.data


def make_engine(
    wanted: Recipe, store: Store, device: str, *, encoder: bool
) -> tuple[Engine, Batches]:
    """An engine, and the batches it trains on.

    Args:
        encoder: REPA's encoder runs in the step, with its real architecture and random weights,
            which cost the same; otherwise REPA reads the store's features.
    """
    frozen = None
    if encoder:
        side = sit_config(wanted).latent // sit_config(wanted).patch
        frozen = Encoder("dinov2-b", dinov2_base(side), side=side, device=torch.device(device))
    objective = Objective(wanted, feature_width=WIDTH)
    engine = Engine(wanted, store, objective, make_accelerator(Group(device=device)), frozen)
    images = None
    if frozen is not None:
        images = Source(Path(), store.names, None, [], OneImage(store.info.resolution))
    micro = wanted.train.micro_batch or wanted.train.batch
    batches = Batches(
        store,
        wanted,
        [range(k, k + micro) for k in range(0, wanted.train.batch, micro)],
        features=wanted.align.repa is not None and frozen is None,
        images=images,
        pin=engine.device.type == "cuda",
    )
    return engine, batches
