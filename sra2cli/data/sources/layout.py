"""What every source has in common: images in a fixed order, their names and labels."""

import errno
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.images import SUFFIXES

MOST = 1 << 24  # classes: above, a label is no number of a class
LARGEST = 1 << 30  # bytes of an image, or of a dataset.json
UNLABELLED = "none"  # as the choice of labels: take none
SKIP = "skip"  # as the choice of images without a caption: leave them out
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
        image: the column of images; of files, the suffix after the first dot.
        label: the column of labels; of files, "cls", "json" or a key of the .json; or UNLABELLED.
        split: train, test, …
        classes_from: "folders", all of them, or "dataset.json".
        captions: "auto", a file that lists them, a column, or of files "txt", "json" or a key of
            the .json; None: they are not looked for.
        uncaptioned: SKIP leaves out images without a caption; None: they are refused.
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    classes_from: str | None = None
    captions: str | None = None
    uncaptioned: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """What was chosen."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Choice":
        """From what `given` gave and a store kept; DataError for anything else."""
        known = cls.__dataclass_fields__
        if any(name not in known or not isinstance(value, str) for name, value in given.items()):
            raise DataError(f"no way to read a source: {dict(given)} (a store of a newer sra2?)")
        return cls(**given)


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
        said: what was taken where there was a choice.
        passed_over: lines about what else was not read.
        listed: classes, where a dataset.json lists more than there are images of.
        drawn: shape (C, h, w) of latents that are draws: their deviation is not known, and 0.
        captions: of each image, in order, one or more; None where they are not asked for.
        uncaptioned: images that were left out, as they have none.
        mirrored: the same latents, each with that of the mirrored image, (2, 2C, h, w).
    """

    root: Path
    names: list[str]
    labels: list[int] | None
    class_names: list[str]
    reader: Callable[[int], bytes | np.ndarray]
    kind: Literal["images", "latents"] = "images"
    ignored: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    listed: int = 0
    drawn: tuple[int, ...] | None = None
    captions: list[tuple[str, ...]] | None = None
    uncaptioned: int = 0
    mirrored: "Source | None" = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        if self.class_names or self.labels is None:
            return len(self.class_names)
        return max(*self.labels, self.listed - 1) + 1

    @property
    def notes(self) -> list[str]:
        """Lines about how the source was read."""
        return [*self.said, *self.unfilled, *self.left_out]

    @property
    def unfilled(self) -> list[str]:
        """A line if there are classes without images: labels from 1, say, or a part of a set."""
        filled = set(self.labels or ())
        if self.labels is None or len(filled) == self.classes:
            return []
        first = next(k for k in range(self.classes) if k not in filled)
        name = f" ({self.class_names[first]})" if self.class_names else ""
        empty = self.classes - len(filled)
        return [f"{empty:,} of {self.classes:,} classes have no images, as class {first}{name}"]

    @property
    def left_out(self) -> list[str]:
        """A line for each kind of what is there but was not read."""
        if not self.ignored:
            return self.passed_over
        few = f"{len(self.ignored):,} files do not look like images and are ignored"
        return [f"{few}: {by_suffix(self.ignored)}", *self.passed_over]

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


def by_suffix(names: Sequence[str]) -> str:
    """Of files: how many of which suffix, and one of each. "3 .txt (as a.txt), 1 .md (as b.md)" """
    suffixes = [os.path.splitext(name)[1].lower() or "without a suffix" for name in names]
    first = dict(zip(reversed(suffixes), reversed(names), strict=True))
    parts = [f"{count:,} {s} (as {first[s]})" for s, count in Counter(suffixes).most_common(5)]
    return ", ".join(parts) + (", …" if len(first) > len(parts) else "")


def check_size(size: int) -> None:
    """DataError for a file, by the size it is said to have, that is no image: before it is read."""
    if size > LARGEST:
        raise DataError(f"too large for an image ({size / 1e9:.1f} GB)")


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

    def file_of(self, index: int) -> Path:
        """The file that an entry lies in."""
        return self.path

    @property
    def file(self) -> Any:
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = self.open(), os.getpid()
        return self._file


def is_image(name: str) -> bool:
    """By its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def whole_numbers(root: Path, labels: Sequence[Any]) -> list[int]:
    """Labels as classes; SetupError for anything but whole numbers from 0."""
    for label in labels:
        if isinstance(label, int) and label >= MOST:
            raise SetupError(f"{root}: a label of {str(label)[:20]} would make as many classes")
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise SetupError(f"{root}: labels must be whole numbers from 0, not {label!r}")
    return list(labels)
