"""The images that a first stage is trained on: decoded once, held in memory."""

import hashlib
from dataclasses import dataclass

import numpy as np

from sra2cli.core import console
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources import Source
from sra2cli.extraction.decode import Chunks, decoded, default_workers, worker_deaths
from sra2cli.first_stages.settings import VaeSettings

MOST = 1 << 30  # bytes of pixels, unless a limit is given: in memory they are there twice
ENOUGH = 1000  # images for judging
TOGETHER = 16  # images that a worker decodes at a time


@dataclass(frozen=True)
class Pixels:
    """Images (N, R, R, 3) uint8: to train on, and held out. digest: of all of them."""

    trained: np.ndarray
    held_out: np.ndarray
    digest: str

    @property
    def judged(self) -> np.ndarray:
        """The images that a first stage is judged by: those held out, where there are any."""
        return self.held_out if len(self.held_out) else some(self.trained, ENOUGH)


def some(images: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly over all."""
    return images[:: -(-len(images) // most)]


def check_source(source: Source) -> None:
    """SetupError for latents, of which no first stage can be made."""
    if source.kind != "images":
        raise SetupError(f"{source.root} holds latents: a first stage is trained on images")


def chosen(count: int, wanted: VaeSettings) -> list[int]:
    """The rows of a source that are read: all, or `limit` of them, evenly over all."""
    limit = wanted.limit or max(1, MOST // (3 * wanted.resolution**2))
    return [i * count // limit for i in range(limit)] if count > limit else list(range(count))


def held_out_of(count: int, part: float) -> np.ndarray:
    """Whether each of `count` images is held out: so large a part, `ENOUGH` at most, evenly over
    their order and so over their classes."""
    few = min(round(part * count), ENOUGH)
    held = np.zeros(count, bool)
    held[[(2 * i + 1) * count // (2 * few) for i in range(few)]] = True
    return held


def load(source: Source, wanted: VaeSettings, *, workers: int | None = None) -> Pixels:
    """Decode the images; those that cannot be read are named and left out.

    Raises:
        DataError: the source has vanished, or too few images are left.
    """
    rows = chosen(len(source), wanted)
    if len(rows) < len(source):
        console.say(f"{len(rows):,} of {len(source):,} images, evenly over all (--limit)")
    parts = [rows[k : k + TOGETHER] for k in range(0, len(rows), TOGETHER)]
    chunks = Chunks(source, parts, wanted.resolution, crop=wanted.crop)
    count = default_workers(1, accelerator=True) if workers is None else workers
    side, good = wanted.resolution, 0
    images = np.empty((len(rows), side, side, 3), np.uint8)
    rejected: dict[int, str] = {}
    with worker_deaths(), console.progress("decode", len(rows)) as bar:
        for chunk in decoded(chunks, workers=count):
            if chunk.gone:
                raise DataError(f"{chunk.gone}: run the same command again when it is back")
            images[good : good + len(chunk.rows)] = chunk.values if chunk.rows else 0
            good += len(chunk.rows)
            rejected |= chunk.rejected
            bar.advance(len(chunk))
    if rejected:
        first = min(rejected)
        console.warn(
            f"{len(rejected):,} images cannot be read and are left out, as "
            f"{source.names[first]}: {rejected[first]}"
        )
    if not good:
        raise DataError(f"none of the images of {source.root} can be read")
    images = images[:good]
    held = held_out_of(len(images), wanted.held_out)
    if held.all():
        raise DataError(f"{source.root}: {len(images)} images, and none is left to train on")
    digest = hashlib.blake2b(images.data, digest_size=16).hexdigest()
    return Pixels(images[~held], images[held], digest)
