"""What every source has in common: names in a fixed order, labels, and how labels are found."""

import errno
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.images import SUFFIXES

DATASET = "dataset.json"  # {"labels": [["path", class], …]}, as EDM2, REPA and SRA write it


FAILING = {  # what says that a disk or the network fails, rather than an image
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENOTDIR,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}


@dataclass(frozen=True)
class Choice:
    """What the user chose where a source can be read in several ways; None: the convention.

    Attributes:
        image: the column of images. label: the column of labels, or "cls" or "json" files.
        split: train, test, …
        classes_from: "folders" or "dataset.json".
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    classes_from: str | None = None


CONVENTION = Choice()


class VanishedError(Exception):
    """The source cannot be reached any more: a reason to stop, not to skip an image."""


@dataclass(frozen=True)
class Source:
    """Images, or moments of others, in a fixed order.

    Attributes:
        root: as the user gave it. names: of the images, unique. labels: None if there are none.
        class_names: [] where the source has numbers alone.
        kind: what `read` gives: encoded images, or moments (2C, h, w) as .npy bytes or arrays.
        ignored: names of files that do not look like images.
    """

    root: Path
    names: list[str]
    labels: list[int] | None
    class_names: list[str]
    reader: Callable[[int], bytes | np.ndarray]
    kind: Literal["images", "latents"] = "images"
    ignored: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        if self.class_names or self.labels is None:
            return len(self.class_names)
        return max(self.labels) + 1

    def read(self, index: int) -> bytes | np.ndarray:
        """What is stored of one image.

        Raises:
            DataError: this one cannot be read. VanishedError: none can, for now.
        """
        with self._reading(self.names[index]):
            return self.reader(index)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise VanishedError(f"{name} is gone from {self.root}") from None
        except OSError as error:
            if error.errno in FAILING:
                why = error.strerror or error
                raise VanishedError(f"{self.root} cannot be read ({why})") from None
            raise DataError(f"cannot be read: {error.strerror or error}") from None

    def read_many(self, indices: Sequence[int]) -> list[bytes | np.ndarray]:
        """What is stored of several images, in the order asked for: by threads, or as the source
        does it best. Raises as `read`, naming the image."""
        many = getattr(self.reader, "many", None)
        if many is not None:
            with self._reading("a file"):
                found: list[bytes | np.ndarray] = many(indices)
                return found

        def named(index: int) -> bytes | np.ndarray:
            try:
                return self.read(index)
            except DataError as error:
                raise DataError(f"{self.names[index]}: {error}") from None

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(named, indices))


class FileReader(ABC):
    """Reads an entry of one file by its number, with a handle of its own in each process."""

    def __init__(self, path: Path, names: list[str]):
        self.path, self.names = path, names
        self._file: Any = None
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None, "_pid": 0}

    @abstractmethod
    def open(self) -> Any: ...

    @property
    def file(self) -> Any:
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = self.open(), os.getpid()
        return self._file


def is_image(name: str) -> bool:
    """By its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


@dataclass(frozen=True)
class Layout:
    """Which entries of a source are images, in which order and with which labels."""

    order: list[int]
    names: list[str]
    labels: list[int] | None
    class_names: list[str]
    kind: Literal["images", "latents"]
    ignored: list[str]

    def source(self, root: Path, reader: Callable[[int], bytes | np.ndarray]) -> Source:
        """These images. reader: gives what is stored of one, by its place in `names`."""
        return Source(
            root, self.names, self.labels, self.class_names, reader, self.kind, self.ignored
        )


def lay_out(
    root: Path, names: Sequence[str], dataset: bytes | None, *, class_folders: bool = True
) -> Layout:
    """Order and labels from the paths of the entries, or from a dataset.json.

    Sorted by class, then by name. Class folders are the first part of a path; entries without any
    folder have no labels, nor have any without `class_folders`.

    Raises:
        SetupError: no images, images beside class folders, labels that do not fit.
    """
    kind: Literal["images", "latents"] = "images"
    chosen = [i for i, name in enumerate(names) if is_image(name)]
    latents = [i for i, name in enumerate(names) if name.lower().endswith(".npy")]
    if latents and not chosen:
        chosen, kind = latents, "latents"
    taken = set(chosen)
    ignored = [n for i, n in enumerate(names) if i not in taken and Path(n).name != DATASET]
    if not chosen:
        kinds = ", ".join(sorted(s[1:] for s in SUFFIXES))
        raise SetupError(f"no images in {root}: expected CLASS/image or image files ({kinds})")
    chosen.sort(key=lambda i: names[i].split("/"))
    ordered = [names[i] for i in chosen]
    if dataset is not None:
        labels = dataset_labels(root, ordered, dataset)
        return Layout(chosen, ordered, labels, [], kind, ignored)
    if not class_folders:
        return Layout(chosen, ordered, None, [], kind, ignored)
    flat = [name for name in ordered if "/" not in name]
    if flat and len(flat) < len(ordered):
        nested = next(name for name in ordered if "/" in name)
        raise SetupError(
            f"{root} holds images ({flat[0]}) beside class folders ({nested.split('/')[0]}): "
            "move either away"
        )
    if flat:
        return Layout(chosen, ordered, None, [], kind, ignored)
    if kind == "latents":
        raise SetupError(f"{root} holds latents in folders, but no {DATASET} with their labels")
    class_names = sorted({name.split("/")[0] for name in ordered})
    number = {name: i for i, name in enumerate(class_names)}
    labels = [number[name.split("/")[0]] for name in ordered]
    return Layout(chosen, ordered, labels, class_names, kind, ignored)


def dataset_labels(root: Path, names: Sequence[str], dataset: bytes) -> list[int] | None:
    """Labels from a dataset.json; None where it says there are none.

    Names are matched as they are, else by the number that ends them: latents are listed under the
    names of their images by some tools.
    """
    try:
        tree = json.loads(dataset)
        listed = tree.get("labels") if isinstance(tree, dict) else tree
        pairs = dict(listed.items() if isinstance(listed, dict) else listed or ())
    except (ValueError, TypeError):
        raise SetupError(f"{root}: its {DATASET} is not a list of [path, class] pairs") from None
    if not pairs or all(value is None for value in pairs.values()):
        return None
    if names[0] not in pairs:
        by_number = {_number(name): value for name, value in pairs.items()}
        if len(by_number) == len(pairs) and _number(names[0]) in by_number:
            pairs = {name: by_number.get(_number(name)) for name in names}
    labels = [pairs.get(name) for name in names]
    missing = [name for name, label in zip(names, labels, strict=True) if label is None]
    if missing:
        raise SetupError(
            f"{root}: its {DATASET} has no label for {missing[0]}"
            + (f" and {len(missing) - 1} others" if missing[1:] else "")
        )
    return whole_numbers(root, labels)


def whole_numbers(root: Path, labels: Sequence[Any]) -> list[int]:
    """Labels as classes; SetupError for anything but whole numbers from 0."""
    for label in labels:
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise SetupError(f"{root}: labels must be whole numbers from 0, not {label!r}")
    return list(labels)


def _number(name: str) -> str:
    """The digits that end a name, without its suffix."""
    stem = name.rpartition("/")[2].split(".")[0]
    return stem[len(stem.rstrip("0123456789")) :]
