"""Networks that metrics look through, and what is kept of their features.

Images come in batches and are not kept: any iterator of uint8 batches will do, of a folder, of an
.npz, or of a sampler that draws them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli.core.errors import DataError
from sra2cli.data.digits import load_digits
from sra2cli.data.emoji import CLASSES, load_emoji
from sra2cli.evaluation.digits_classifier import classifier_fingerprint, load_classifier
from sra2cli.evaluation.emoji_scorer import (
    FEATURES,
    RECONSTRUCTED,
    has_unknown_words,
    judge_pairs,
    load_scorer,
    scorer_fingerprint,
)
from sra2cli.evaluation.metrics import InceptionScore, Moments, Statistics


@dataclass(frozen=True)
class Extractor:
    """A network: uint8 images (B, H, W, 3) → {feature: (B, width) float32}, on its own device.

    Attributes:
        fingerprint: of its weights.
        widths: of its features; "logits" are those of its classes.
        saved: feature → what follows "mu" and "sigma" in the keys of saved statistics.
        stand_in: name and maker of the images it is compared with where no reference is given.
        classifies: its classes are those of the samples, so that accuracy means something.
        standard: there is one such network, so that statistics of others are taken to be its own.
        of: the only images, of 32x32, that it means something for; "": it knows any.
        fits: features of images (N, width), for metrics that need prompts, and a prompt each →
            number by name. too_long: whether it reads a prompt in part only.
        told: what results say beside those numbers: how good they can be.
        about: more of what results should say of it.
        parts: the networks that stand side by side in it.
    """

    name: str
    fingerprint: str
    widths: dict[str, int]
    saved: dict[str, str]
    run: Callable[[np.ndarray], dict[str, Tensor]]
    stand_in: tuple[str, Callable[[], np.ndarray]] | None = None
    classifies: bool = False
    standard: bool = True
    of: str = ""
    fits: Callable[[Tensor, Sequence[str]], dict[str, float]] | None = None
    too_long: Callable[[Sequence[str]], list[bool]] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    parts: tuple["Extractor", ...] = ()

    def network_of(self, feature: str) -> "Extractor":
        """The part that makes a feature."""
        return next((part for part in self.parts if feature in part.widths), self)


def side_by_side(first: Extractor, others: Sequence[Extractor]) -> Extractor:
    """The first network, with features of others among its own: one pass over the images.

    Of features, or keys of saved statistics, of the same name the first's are taken.
    """
    if not others:
        return first
    parts = (first, *others)
    widths, saved = dict(first.widths), dict(first.saved)
    for other in others:
        widths = {**other.widths, **widths}
        saved |= {k: v for k, v in other.saved.items() if v not in saved.values()}

    def run(images: np.ndarray) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in parts:
            found = {**part.run(images), **found}
        return found

    name = " and ".join(part.name for part in parts)
    return replace(first, name=name, widths=widths, saved=saved, run=run, parts=parts)


def check_features(extractor: Extractor, features: Mapping[str, Tensor], first: int) -> None:
    """DataError if features of the images from `first` on are not finite."""
    if not all(bool(f.isfinite().all()) for f in features.values()):
        last = first + len(next(iter(features.values()))) - 1
        raise DataError(
            f"the features of {extractor.name} are not finite at images {first}..{last}: are its "
            "weights whole?"
        )


@dataclass(frozen=True)
class Wanted:
    """What to keep of the features: mean and covariance of some, all rows of some, the IS."""

    moments: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()
    score: bool = False

    def __bool__(self) -> bool:
        return bool(self.moments or self.rows or self.score)

    @property
    def features(self) -> list[str]:
        """What must be had of each image."""
        return sorted(self.moments | self.rows | ({"logits"} if self.score else set()))


class Collector:
    """Statistics of the features of images that arrive in batches.

    Memory: D² numbers for a covariance, N·D for rows (50,000 x 2048 float32: 410 MB, on the CPU).
    """

    def __init__(self, extractor: Extractor, wanted: Wanted):
        self.count = 0
        self._extractor = extractor
        self._moments = {name: Moments() for name in wanted.moments}
        self._rows: dict[str, list[Tensor]] = {name: [] for name in wanted.rows}
        self._score = InceptionScore() if wanted.score else None

    def add(self, images: np.ndarray) -> None:
        """Further images (B, H, W, 3) uint8; DataError as `take`."""
        self.take(self._extractor.run(images))

    def take(self, features: dict[str, Tensor]) -> None:
        """The features of further images; DataError if they are not finite."""
        count = len(next(iter(features.values())))
        check_features(self._extractor, features, self.count)
        self.count += count
        for name, moments in self._moments.items():
            moments.add(features[name])
        for name, rows in self._rows.items():
            rows.append(features[name].cpu())
        if self._score is not None:
            self._score.add(features["logits"])

    def finish(self) -> "Collected":
        """What was wanted; at least 2 images."""
        if self.count < 2:
            raise DataError(f"statistics need at least 2 images, not {self.count}")
        return Collected(
            self.count,
            {name: moments.statistics() for name, moments in self._moments.items()},
            {name: torch.cat(rows) for name, rows in self._rows.items()},
            None if self._score is None else self._score.value(),
        )


@dataclass(frozen=True)
class Collected:
    """What is kept of images: their count, statistics and rows (N, D) by feature, and the IS."""

    count: int | None
    statistics: dict[str, Statistics]
    rows: dict[str, Tensor]
    score: float | None = None


def features_of(extractor: Extractor, batches: Iterable[np.ndarray], wanted: Wanted) -> Collected:
    """What is wanted of the features of uint8 batches (B, H, W, 3)."""
    collector = Collector(extractor, wanted)
    for images in batches:
        collector.add(images)
    return collector.finish()


def digits_extractor() -> Extractor:
    """The packaged digits classifier: "features" (B, 64) and "logits" (B, 10), on the CPU."""
    model = load_classifier()

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, Tensor]:
        features, logits = model(torch.from_numpy(images))
        return {"features": features, "logits": logits}

    return Extractor(
        "digits-classifier",
        classifier_fingerprint(),
        {"features": 64, "logits": 10},
        {"features": ""},
        run,
        stand_in=("scikit-learn digits", lambda: load_digits()[0]),
        classifies=True,
        of="digits",
    )


def emoji_extractor() -> Extractor:
    """The packaged scorer of emoji: "emoji" (B, 128) and "logits" (B, 10), on the CPU."""
    model = load_scorer()

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, Tensor]:
        features = model(torch.from_numpy(images))
        return {"emoji": features, "logits": model.logits(features)}

    return Extractor(
        "emoji-scorer",
        scorer_fingerprint(),
        {"emoji": FEATURES, "logits": len(CLASSES)},
        {"emoji": ""},
        run,
        stand_in=("emoji to train on", lambda: load_emoji().part("train").images),
        classifies=True,
        of="emoji",
        fits=judge_pairs,
        too_long=has_unknown_words,
        told={"emoji-reconstructions": RECONSTRUCTED},
    )
