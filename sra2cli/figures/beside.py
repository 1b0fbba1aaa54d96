"""Features of an image encoder, which tokens are held beside: a store's, or made of its images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sra2cli.core import console
from sra2cli.core.errors import SetupError
from sra2cli.core.finite import check_finite
from sra2cli.data.batches import pixels_of
from sra2cli.data.fitting import check_source
from sra2cli.data.sources import Choice, open_source
from sra2cli.data.store import Store
from sra2cli.encoders.image import load_encoder
from sra2cli.models.contract import Shape

BATCH = 16


@dataclass(frozen=True)
class Asked:
    """Which encoder: a hub name or folder. images: what the store was made from; None: the features
    are the store's."""

    encoder: str
    images: Path | None = None


@dataclass(frozen=True)
class Features:
    """Of some rows of a store: values (N, T, F) float16, one for each of a network's tokens."""

    encoder: str
    fingerprint: str
    values: Tensor


def features_of(
    store: Store, rows: np.ndarray, asked: Asked, shape: Shape, *, device: str, offline: bool
) -> Features:
    """The features of some rows, for a network of this shape.

    Raises:
        SetupError: the store has not those of this encoder, or the images are not its source.
        DataError: features that are not finite.
    """
    found = (
        _stored(store, rows, asked.encoder, shape)
        if asked.images is None
        else _made(store, rows, asked.encoder, asked.images, shape, device=device, offline=offline)
    )
    check_finite({"features": found.values}, f"{asked.encoder} on {store.path}")
    return found


def _stored(store: Store, rows: np.ndarray, encoder: str, shape: Shape) -> Features:
    info = store.info
    if info.encoder != encoder:
        has = f"those of {info.encoder}" if info.encoder else "none"
        raise SetupError(
            f"{store.path} has no features of {encoder} ({has}): give the images it was made from "
            "with --images"
        )
    if info.feature_tokens != shape.tokens:
        raise SetupError(
            f"{store.path} has {info.feature_tokens} features an image, the network "
            f"{shape.tokens} tokens: give the images it was made from with --images"
        )
    return Features(encoder, info.encoder_fingerprint, store.features(rows))


def _made(
    store: Store,
    rows: np.ndarray,
    encoder: str,
    images: Path,
    shape: Shape,
    *,
    device: str,
    offline: bool,
) -> Features:
    source = open_source(images, Choice.of(store.info.choice))
    check_source(store, source)
    network = load_encoder(encoder, side=shape.side, device=device, offline=offline)
    places = {name: i for i, name in enumerate(source.names)}
    found = []
    with console.progress("encode", len(rows)) as bar:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            found.append(network.features(pixels_of(store, source, places, part)).half().cpu())
            bar.advance(len(part))
    return Features(encoder, network.fingerprint, torch.cat(found))
