"""What the training benchmarks share: a synthetic store of SD-VAE's shape, engines, results."""

import datetime
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sra2cli import recipe
from sra2cli.batches import Batches
from sra2cli.encoders import Encoder, dinov2_base
from sra2cli.engine import Engine
from sra2cli.objective import Objective, sit_config
from sra2cli.processes import Group, make_accelerator
from sra2cli.run import environment
from sra2cli.settings import Recipe
from sra2cli.sources import Source
from sra2cli.store import Store, StoreInfo
from sra2cli.store_writer import StoreWriter

RESULTS = Path(__file__).parent / "results"
WIDTH = 768  # of DINOv2-B
METHODS = ("sit", "sra2", "repa-stored", "repa", "sra")  # repa: its encoder runs in the step


def make_store(folder: Path, count: int, *, features: bool) -> Store:
    """Random moments of 256 px images, with encoder features if asked for."""
    info = StoreInfo(
        "random", "0", 0.18215, 0.0, channels=4, latent=32, resolution=256, classes=1000
    )
    if features:
        info = replace(
            info, encoder="facebook/dinov2-base", feature_tokens=256, feature_width=WIDTH
        )
    names, rng = [f"{i}.jpg" for i in range(count)], np.random.default_rng(0)
    writer = StoreWriter(folder / "store.h5", info, names, rng.integers(1000, size=count))
    values = {"moments": np.abs(rng.normal(size=(count, 8, 32, 32))).astype(np.float32)}
    if features:
        values["features"] = rng.normal(size=(count, 256, WIDTH)).astype(np.float16)
    writer.write(list(range(count)), values)
    writer.finish()
    return Store(folder / "store.h5")


class OneImage:
    """A JPEG of 256 px, whatever the number."""

    def __init__(self) -> None:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(256, size=(256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "jpeg")
        self.data = buffer.getvalue()

    def __call__(self, index: int) -> bytes:
        return self.data


def make_engine(
    size: str, method: str, store: Store, device: str, settings: list[str]
) -> tuple[Engine, Batches]:
    """What `sra2 train` puts together, and the batches it trains on."""
    name = f"{size}-{method.removesuffix('-stored')}"
    wanted: Recipe = recipe.load(name, settings)
    encoder = None
    if method == "repa":  # random weights: they cost the same
        encoder = Encoder("dinov2-b", dinov2_base(), side=16, device=torch.device(device))
    objective = Objective(wanted, feature_width=WIDTH)
    engine = Engine(wanted, store, objective, make_accelerator(Group(device=device)), encoder)
    images = Source(Path(), store.names, None, [], OneImage()) if encoder is not None else None
    micro = wanted.train.micro_batch or wanted.train.batch
    parts = [range(k, k + micro) for k in range(0, wanted.train.batch, micro)]
    source = Batches(
        store,
        wanted,
        parts,
        features=method == "repa-stored",
        images=images,
        pin=engine.device.type == "cuda",
    )
    assert sit_config(wanted).tokens == 256
    return engine, source


def write(name: str, result: dict[str, Any], device: str = "cpu") -> None:
    """benchmarks/results/NAME.json, with machine, versions and date."""
    RESULTS.mkdir(exist_ok=True)
    about = {"date": datetime.date.today().isoformat(), "environment": environment(device)}
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, **result}, indent=1) + "\n")
