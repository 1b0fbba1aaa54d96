"""Sets of images to judge or to judge by: a folder or archive, an .npz, or arrays."""

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sra2cli.core import console
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.prefetch import ahead
from sra2cli.data import npz
from sra2cli.data.images import CROPS, decode_image
from sra2cli.data.sources import CONVENTION, Choice, Source, VanishedError, open_source

DECODED = 64  # images that are decoded together, by threads
ADM = "adm-center"


@dataclass(frozen=True)
class Crop:
    """A centre crop of images: to a side, as a row of `images.CROPS`."""

    side: int
    kind: str = ADM

    @classmethod
    def of(cls, text: str) -> "Crop":
        """ "256", as ADM does, or "uvit-center:256"; SetupError for anything else."""
        kind, side = [ADM, *text.split(":", 1)][-2:]
        if kind not in CROPS or not side.isdecimal() or int(side) < 1:
            raise SetupError(
                f"--crop is a side above 0, or {' or '.join(CROPS)} before one, as "
                f"uvit-center:256; not '{text}'"
            )
        return cls(int(side), kind)

    def __str__(self) -> str:
        return str(self.side) if self.kind == ADM else f"{self.kind}:{self.side}"

    def fits(self, height: int, width: int) -> bool:
        return (height, width) == (self.side, self.side)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 → (side, side, 3)."""
        return CROPS[self.kind](Image.fromarray(image), self.side)


@dataclass(frozen=True)
class Seen:
    """What is known of images that were looked at as they were drawn; attributes as ImageSet's.

    sha256: over the SHA-256 of the pixels of each batch.
    """

    name: str
    count: int
    labels: list[int] | None
    size: tuple[int, int] | None
    resized: int
    sha256: str
    left_out: tuple[str, ...] = ()
    prompts: list[str] | None = None


class ImageSet:
    """Images of one size, streamed in order; after they were, what was seen.

    Attributes:
        name: as the user gave it. kind: as messages call them ("samples", "reference images").
        count: of the images. labels: their classes, where known. prompts: what they were drawn of.
        crop: that all go through.
        size: (H, W), None before the first image. resized: how many the crop has changed.
        left_out: lines about what is there but is no image of it.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        count: int,
        labels: list[int] | None,
        read: Callable[[], Iterator[tuple[str, np.ndarray]]],
        *,
        crop: Crop | None = None,
    ):
        self.name, self.kind, self.count, self.labels = name, kind, count, labels
        self.prompts: list[str] | None = None
        self.size: tuple[int, int] | None = None
        self.resized = 0
        self.left_out: list[str] = []
        self.crop, self._read = crop, read
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the pixels seen, in order: the same for the same images in a folder or an .npz."""
        return self._digest.hexdigest()

    def batches(self, batch: int) -> Iterator[np.ndarray]:
        """All images as (B, H, W, 3) uint8, prepared in a thread; DataError names a bad one."""
        with console.progress(self.kind, self.count) as bar:
            for images in ahead(self._stacked(batch), depth=2):
                yield images
                bar.advance(len(images))

    def _stacked(self, batch: int) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        for name, image in self._read():
            waiting.append(self._checked(name, image))
            if len(waiting) == batch:
                yield np.stack(waiting)
                waiting = []
        if waiting:
            yield np.stack(waiting)

    def _checked(self, name: str, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if self.crop is not None and not self.crop.fits(height, width):
            self.resized += 1
            image = self.crop(image)
            height, width = image.shape[:2]
        self.size = self.size or (height, width)
        if (height, width) != self.size:
            raise DataError(
                f"{name} is {width}x{height}, the images before it {self.size[1]}x{self.size[0]}: "
                f"{self.kind} of one size are needed (--crop N makes them so)"
            )
        self._digest.update(image.tobytes())
        return image


def open_images(
    path: Path, kind: str, *, crop: Crop | None = None, choice: Choice = CONVENTION
) -> ImageSet:
    """The images of an .npz, or of anything `sources.open_source` opens.

    Args:
        crop: None: take them as they are.
        choice: how to read a source.

    Raises:
        SetupError: nothing there. DataError: damaged.
    """
    if path.suffix.lower() == ".npz":
        if choice != CONVENTION:
            raise SetupError(f"{path}: --{next(iter(choice.given))} means nothing for an .npz")
        if npz.IMAGES not in npz.keys_of(path):
            raise SetupError(f"{path} holds no images: it has no {npz.IMAGES}")
        count = npz.image_shape(path)[0]

        def read() -> Iterator[tuple[str, np.ndarray]]:
            return ((f"{path}, image {i},", image) for i, image in enumerate(npz.images(path)))

        labels = npz.labels(path, count)
        images = ImageSet(str(path), kind, count, labels, read, crop=crop)
        if labels is None and npz.LABELS in npz.keys_of(path):
            images.left_out = [f"{npz.LABELS} is not a class for each image: it is not read"]
        return images
    return from_source(open_source(path, choice), kind, crop=crop)


def from_source(source: Source, kind: str, *, crop: Crop | None = None) -> ImageSet:
    """The images of a source; where it gives captions, the first of each is its prompt."""
    if source.kind != "images":
        raise SetupError(f"{source.root} holds latents: images are needed")
    for note in source.said:
        console.say(note)
    ours = [name for name in source.ignored if re.fullmatch(r"eval-[\w-]+\.json", name)]
    source = replace(source, ignored=[name for name in source.ignored if name not in ours])
    images = ImageSet(
        str(source.root), kind, len(source), source.labels, lambda: _decoded(source), crop=crop
    )
    images.left_out = source.left_out
    if source.captions is not None:
        images.prompts = [captions[0] for captions in source.captions]
    return images


def from_array(name: str, kind: str, images: np.ndarray) -> ImageSet:
    """Images (N, H, W, 3) uint8 in memory."""

    def read() -> Iterator[tuple[str, np.ndarray]]:
        return ((f"{name} {i}", image) for i, image in enumerate(images))

    return ImageSet(name, kind, len(images), None, read)


def _decoded(source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """Files are read in turn and decoded by threads: PIL lets go of the interpreter."""
    names = [str(source.root / name) for name in source.names]

    def fetch(index: int) -> bytes:
        try:
            data = source.read(index)
        except (DataError, VanishedError) as error:
            raise DataError(f"{names[index]}: {error}") from None
        return data if isinstance(data, bytes) else b""

    def decode(index: int, data: bytes) -> np.ndarray:
        try:
            return decode_image(data)
        except DataError as error:
            raise DataError(f"{names[index]}: {error}") from None

    with ThreadPoolExecutor(max_workers=8) as threads:
        for start in range(0, len(names), DECODED):
            part = range(start, min(start + DECODED, len(names)))
            images = threads.map(decode, part, [fetch(index) for index in part])
            yield from zip((names[index] for index in part), images, strict=True)
