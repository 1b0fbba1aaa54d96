"""What a network is told beside x_t and t: of the rows of a store, or of images to be drawn.

A new kind of condition is a row of `CONDITIONS`; a backbone names its row in `Shape.condition`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sra2cli.core import clock
from sra2cli.core.clock import Purpose, Scalar
from sra2cli.core.errors import SetupError
from sra2cli.data.prompts import Prompts
from sra2cli.data.store import Store
from sra2cli.models.contract import Condition, Shape


@dataclass(frozen=True)
class Asked:
    """What images are to be drawn of, for some numbers: `labels` as `sra2 sample --labels`."""

    labels: str
    seed: int
    indices: Sequence[int]
    prompts: Prompts | None = None


@dataclass(frozen=True)
class ConditionKind:
    """of_rows(store, rows, mirrored, scalars, shape): of the store's rows, on the host; mirrored
    says of each whether it is, None: none is; scalars are the sample's (see clock).
    drawn(asked, shape): of images that are asked for. blank(shape): of one, where only shapes
    matter; None: as drawn."""

    of_rows: Callable[[Store, np.ndarray, np.ndarray | None, np.ndarray, Shape], Condition]
    drawn: Callable[[Asked, Shape], Condition]
    blank: Callable[[Shape], Condition] | None = None


def blank(shape: Shape) -> Condition:
    """What a network is told of one image, where only the shapes matter."""
    kind = CONDITIONS[shape.condition]
    return kind.drawn(Asked("balanced", 0, [0]), shape) if kind.blank is None else kind.blank(shape)


def _labels_of_rows(
    store: Store,
    rows: np.ndarray,
    mirrored: np.ndarray | None,
    scalars: np.ndarray,
    shape: Shape,
) -> Condition:
    return Condition(y=torch.from_numpy(store.labels[rows])) if shape.classes else Condition()


def _drawn_labels(asked: Asked, shape: Shape) -> Condition:
    labels = labels_of(asked.indices, asked.labels, asked.seed, shape.classes)
    return Condition() if labels is None else Condition(y=torch.tensor(labels))


def _captions_of_rows(
    store: Store,
    rows: np.ndarray,
    mirrored: np.ndarray | None,
    scalars: np.ndarray,
    shape: Shape,
) -> Condition:
    """One of each image's captions: its features, or its token ids where the store has none."""
    assert store.captions is not None
    chosen = store.captions.pick(rows, scalars[:, Scalar.CAPTION])
    there = store.captions.has_features
    return Condition(text=store.captions.features(chosen) if there else store.captions.ids(chosen))


def _drawn_prompts(asked: Asked, shape: Shape) -> Condition:
    if asked.prompts is None:
        raise SetupError("this network is told captions: give --prompt or --prompts")
    return asked.prompts.condition(asked.prompts.texts(asked.indices, asked.seed))


def _blank_caption(shape: Shape) -> Condition:
    return Condition(text=torch.zeros(1, *shape.text))


CONDITIONS: dict[str, ConditionKind] = {
    "label": ConditionKind(_labels_of_rows, _drawn_labels),
    "text": ConditionKind(_captions_of_rows, _drawn_prompts, _blank_caption),
}


def listed_labels(labels: str, classes: int) -> list[int] | None:
    """The classes named by "0,1,2"; None for "random" and "balanced"."""
    if labels in ("random", "balanced"):
        return None
    try:
        listed = [int(part) for part in labels.split(",")]
    except ValueError:
        raise SetupError(
            f"--labels is random, balanced or numbers as 0,1,2; not '{labels}'"
        ) from None
    wrong = [k for k in listed if not 0 <= k < classes]
    if wrong:
        raise SetupError(f"--labels: there is no class {wrong[0]}; classes are 0..{classes - 1}")
    return listed


def labels_of(indices: Sequence[int], labels: str, seed: int, classes: int) -> list[int] | None:
    """The label of each image, a function of (seed, i); None for an unconditional model."""
    if not classes:
        return None
    listed = listed_labels(labels, classes)
    if listed is not None:
        return [listed[i % len(listed)] for i in indices]
    if labels == "balanced":
        return [i % classes for i in indices]
    draws = [clock.generator(seed, Purpose.LABEL, 0, i) for i in indices]
    return [int(g.integers(classes)) for g in draws]
