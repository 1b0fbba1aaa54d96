"""Decoding and cropping in worker processes, ahead of the encoder."""

import io
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from sra2cli.core.errors import DataError
from sra2cli.core.processes import die_with_parent
from sra2cli.data.images import decode_image, refuse_damaged_jpeg
from sra2cli.data.sources import Source, VanishedError
from sra2cli.extraction.changes import content_of


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a source, read.

    rows: the good ones. values: of these, (n, R, R, 3) uint8 images or (n, 2C, h, w) moments; with
        those of mirrored images (n, 2, 2C, h, w).
    rejected: row → why it cannot be read. gone: why the source cannot be reached; "" if it can.
    contents: row → `content_of` it.
    """

    rows: list[int] = field(default_factory=list)
    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    rejected: dict[int, str] = field(default_factory=dict)
    gone: str = ""
    contents: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejected)


@dataclass(frozen=True)
class Chunks(Dataset[Chunk]):
    """The chunks of a source, by number.

    Args:
        shape: of the moments of a source of latents; None for images.
        logvar: the source's latents hold mean‖logvar instead of mean‖std.
        crop: of images, as a row of `images.CROPS`.
    """

    source: Source
    rows: Sequence[Sequence[int]]
    resolution: int
    shape: tuple[int, ...] | None = None
    logvar: bool = False
    crop: str = "adm-center"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Chunk:
        good: list[int] = []
        values: list[np.ndarray] = []
        rejected: dict[int, str] = {}
        contents: dict[int, int] = {}
        for row in self.rows[index]:
            try:
                data = self.source.read(row)
                contents[row] = content_of(data)
                if self.shape is not None:
                    values.append(read_moments(data, self.shape, logvar=self.logvar))
                elif isinstance(data, bytes):
                    image = decode_image(data, self.resolution, self.crop)
                    refuse_damaged_jpeg(data)
                    values.append(image)
                good.append(row)
            except VanishedError as error:
                return Chunk(gone=str(error))
            except DataError as error:
                rejected[row] = str(error)
        stacked = np.stack(values) if values else np.empty(0)
        return Chunk(good, stacked, rejected, contents=contents)


def read_moments(
    data: bytes | np.ndarray, shape: tuple[int, ...], *, logvar: bool = False
) -> np.ndarray:
    """Moments mean‖std (…, 2C, h, w) float32 from an array, or the bytes of an .npy file.

    Raises:
        DataError: another shape, not finite, or logarithms where deviations are expected.
    """
    try:
        array = np.asarray(np.load(io.BytesIO(data)) if isinstance(data, bytes) else data)
    except Exception as error:  # np.load of a damaged file raises anything
        raise DataError(f"not an array: {' '.join(str(error).split())}") from None
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise DataError(f"has shape {array.shape} of {array.dtype}, not {shape} of numbers")
    moments = array.astype(np.float32)
    if not np.isfinite(moments).all():
        raise DataError("holds numbers that are not finite")
    mean, std = np.split(moments, 2, axis=-3)
    if logvar:
        std = np.exp(0.5 * np.clip(std, -30, 20))
    elif (std < 0).any():
        raise DataError("its second half is negative in places: mean and logvar? (--logvar)")
    return np.concatenate([mean, std], axis=-3)


def decoded(chunks: Chunks, *, workers: int) -> Iterator[Chunk]:
    """The chunks in order, decoded by `workers` processes ahead of use (0: in this one)."""
    quiet()
    loader: DataLoader[Chunk] = DataLoader(
        chunks,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=min(workers, len(chunks)),
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers and len(chunks) else None,
    )
    yield from loader


@contextmanager
def worker_deaths() -> Iterator[None]:
    """A worker that is killed raises wherever this process happens to be; here in one line."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise DataError(
            "a decoding process was killed (out of memory?): run the same command again, "
            "with fewer --workers"
        ) from None


def default_workers(processes: int, *, accelerator: bool) -> int:
    """Decoding processes for each encoding process: beside a GPU, the CPUs are free for it."""
    own = (os.cpu_count() or 1) // processes
    return max(1, min(own - 1 if accelerator else own // 2, 16))


def _as_it_is(chunk: Any) -> Any:
    """Through a pipe, not through shared memory: containers have little of it."""
    return chunk


def _start_worker(_: int) -> None:
    quiet()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that encodes
    die_with_parent()


def quiet() -> None:
    """What PIL warns about is either converted or rejected here."""
    warnings.filterwarnings("ignore", module="PIL")
