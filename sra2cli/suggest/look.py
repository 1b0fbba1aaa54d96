"""What there is: images of one's own, and this machine."""

import os
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from sra2cli.core.environment import memory_limit
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.images import size_of
from sra2cli.data.sources import Choice, Source, open_source
from sra2cli.data.sources.layout import SKIP

OPENED = 64  # images whose size is looked at, evenly over all


@dataclass(frozen=True)
class Images:
    """count: of images. classes: 0 without labels; fewest, most: images of a class that has any.
    sides: least, median and largest short side in pixels. captioned: images with a caption.
    unreadable: of those that were opened."""

    count: int
    classes: int
    fewest: int
    most: int
    sides: tuple[int, int, int]
    captioned: int
    unreadable: int

    @property
    def told(self) -> str:
        """What a network is told of an image: "class", "text" or "nothing"."""
        return "class" if self.classes else "text" if self.captioned == self.count else "nothing"


@dataclass(frozen=True)
class Machine:
    """cores: of this process. gpu: its name; None: there is none."""

    cores: int
    memory_gb: float
    gpu: str | None = None
    gpu_memory_gb: float = 0.0


def look(source: Source, captioned: int) -> Images:
    """Count, and open a few.

    Raises:
        DataError: none of them can be read.
    """
    rows = [i * len(source) // OPENED for i in range(OPENED)]
    rows = list(dict.fromkeys(rows)) if len(source) > OPENED else list(range(len(source)))
    sides = [side for row in rows if (side := short_side(source, row)) is not None]
    if not sides:
        raise DataError(f"none of the first images of {source.root} can be read")
    sizes = Counter(source.labels or ()).values()
    return Images(
        count=len(source),
        classes=source.classes,
        fewest=min(sizes, default=0),
        most=max(sizes, default=0),
        sides=(min(sides), int(statistics.median(sides)), max(sides)),
        captioned=captioned,
        unreadable=len(rows) - len(sides),
    )


def short_side(source: Source, row: int) -> int | None:
    """In pixels, by the head of the file; None if that cannot be read."""
    try:
        data = source.read(row)
        assert isinstance(data, bytes)
        return min(size_of(data))
    except (DataError, OSError, ValueError, Image.DecompressionBombError):
        return None


def captioned_of(images: Path, choice: Choice) -> int:
    """How many of the images have a caption, where it is found without being told where."""
    try:
        found = open_source(images, replace(choice, captions="auto", uncaptioned=SKIP))
    except SetupError:  # none, or several kinds
        return 0
    return len(found)


def machine(device: str) -> Machine:
    """This one, as far as `device` uses it."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = min(there, memory_limit() or there) / 1e9
    if not device.startswith("cuda"):
        return Machine(cores, round(memory, 1))
    gpu = torch.cuda.get_device_properties(torch.device(device))
    return Machine(cores, round(memory, 1), gpu.name, round(gpu.total_memory / 1e9, 1))
