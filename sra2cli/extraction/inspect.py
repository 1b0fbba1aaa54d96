"""sra2 extract --check and --preview: a store that explains itself to a person."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra2cli.core import console, pictures
from sra2cli.data.captions import Captions
from sra2cli.data.class_names import names_of
from sra2cli.data.store import Store
from sra2cli.encoders.first_stage import scaled_latents
from sra2cli.encoders.open import open_first_stage

SHOWN = 36  # images of a preview
FEW, WIDEST = 4, 80  # images whose captions are shown, and letters of one
RIGHT = 0.5, 2.0  # deviation of a scaled channel


def check(path: Path) -> dict[str, Any]:
    """Verify every byte of a store and describe it.

    Raises:
        SetupError: no store there. DataError: incomplete, truncated or damaged.
    """
    store = Store(path)
    store.verify()
    info = asdict(store.info)
    names = info.pop("class_names")
    z = some_latents(store)
    deviations = [round(float(std), 4) for std in z.std(dim=(0, 2, 3), correction=0)]
    one_scale = not isinstance(store.info.scale, tuple)
    warn_of([round(float(z.std()), 4)] if one_scale else deviations, path)
    counts = np.bincount(store.labels, minlength=store.info.classes) if store.info.classes else None
    return {
        "store": str(path),
        "images": len(store),
        "rejects": len(store.rejected),
        "bytes": path.stat().st_size,
        **info,
        "first_classes": ", ".join(names[:5]) + (", …" if len(names) > 5 else ""),
        "smallest_class": None if counts is None else int(counts.min()),
        "largest_class": None if counts is None else int(counts.max()),
        **({} if store.captions is None else few_captions(store, store.captions)),
        "latent_std": round(float(z.std()), 4),
        "channel_std": deviations,
        "complete": True,
        "verified": True,
        "checksums": store.checksums,
    }


def few_captions(store: Store, captions: Captions) -> dict[str, Any]:
    """How many there are, and those of a few images."""
    some = np.linspace(0, len(store) - 1, min(FEW, len(store))).astype(int).tolist()
    texts = {store.names[row]: captions.of(row) for row in some}
    return {
        "captions": len(captions),
        "some_captions": [
            f"{name}: {' | '.join(text[:WIDEST] + '…' * (len(text) > WIDEST) for text in those)}"
            for name, those in texts.items()
        ],
    }


def some_latents(store: Store) -> torch.Tensor:
    """Scaled latents of up to 1,024 images."""
    some = np.linspace(0, len(store) - 1, min(1024, len(store))).astype(np.int64)
    moments = store.moments(some).float()
    generator = torch.Generator().manual_seed(0)
    xi = torch.randn(moments[:, ::2].shape, generator=generator)
    return scaled_latents(moments, xi, scale=store.info.scale, shift=store.info.shift)


def warn_of(deviations: list[float], path: Path) -> None:
    """Warn where scale does not bring the channels near 1 (with one scale: all of them together).
    A scaling_factor beside statistics may be meant in their place, beside them or not at all, and
    only one of these does."""
    low, high = RIGHT
    wrong = [f"{std:g}" for std in deviations if not low <= std <= high]
    if wrong:
        of = f"{len(wrong)} of {len(deviations)} channels" if len(deviations) > 1 else "the latents"
        few = ", ".join(wrong[:4]) + ", …" * (len(wrong) > 4)
        console.warn(
            f"{path}: the deviation of {of} is outside {low:g}–{high:g} when scaled ({few}), about "
            "1 is right: extract with --latent-stats, or with another --latent-scale"
        )


def preview(path: Path, *, vae: str | None, device: str, offline: bool) -> Path:
    """Decode a random grid of a store's posterior means to STORE.preview.png.

    Args:
        vae: decode with it; None: the store's.
    """
    store = Store(path)
    first_stage = open_first_stage(vae or store.info.vae, device=device, offline=offline)
    first_stage.check_store(store.info, str(path))
    count = min(SHOWN, len(store))
    chosen = np.sort(np.random.default_rng(0).choice(len(store), count, replace=False))
    moments = store.moments(chosen).float()
    z = scaled_latents(moments, None, scale=store.info.scale, shift=store.info.shift)
    images = [image for part in z.split(4) for image in first_stage.decode(part)]
    out = path.with_name(path.name + ".preview.png")
    names = store.info.class_names
    captions = names_of(store.labels[chosen].tolist(), names) if names else None
    pictures.sheet(images, captions, columns=max(1, round(count**0.5))).save(out)
    return out
