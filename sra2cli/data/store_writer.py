"""Writing a latent store: laid out whole at the start, filled in any order by any processes.

A store being written has `.partial` after its name. Its file is allocated at full size before the
first row, so a disk that fills up cannot break it, and a killed extraction goes on where it was.
"""

import contextlib
import errno
import glob
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import hold, sync
from sra2cli.data.store import (
    FORMAT,
    GOOD,
    REJECTED,
    TODO,
    VERSION,
    checksums,
)
from sra2cli.data.store_info import StoreInfo, encode_info
from sra2cli.data.store_layout import DAMAGE, Layout, open_hdf5, read_layout


def partial_file(path: Path) -> Path:
    """Where a store is written."""
    return path.with_name(path.name + ".partial")


class StoreWriter:
    """A store being written; opening it again goes on where it was left.

    Args:
        create: lay the file out if it is not there; of several processes, one does.

    Attributes:
        info: of the file; its encode_batch is that of the process that began it.
        contents: (N,) uint64, what tells of each image whether it has changed.

    Raises:
        SetupError: a finished store is there, a partial one of something else, or one in use.
    """

    def __init__(
        self,
        path: Path,
        info: StoreInfo,
        names: Sequence[str],
        labels: Sequence[int],
        *,
        create: bool = True,
    ):
        self.path, self.names = path, names
        self.partial = partial_file(path)
        if path.exists():
            raise SetupError(f"{path} exists: remove it or choose another --out")
        if create and not self.partial.exists():
            self._create(info, names, labels)
        self._lock = self._locked() if create else None
        layout = self._check_same(info, names, labels)
        self.info = layout.info
        sets = {*self.info.row_sets(), "state", "contents"} & set(layout.extents)
        self._sets = {k: layout.extents[k].map(self.partial, "r+") for k in sets}
        self._state = self._sets.pop("state")
        unknown = np.zeros(len(names), np.uint64)  # in a partial store of before
        self.contents = self._sets.pop("contents", unknown)

    def _create(self, info: StoreInfo, names: Sequence[str], labels: Sequence[int]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.partial.parent.glob(glob.escape(self.partial.name) + ".*"):
            left.unlink(missing_ok=True)  # of a process that was killed while it laid one out
        scratch = self.partial.with_name(self.partial.name + f".{os.getpid()}")
        try:
            lay_out(scratch, info, names, labels)
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(scratch, self.partial)  # a partial store always has its full layout
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            os.replace(scratch, self.partial)  # a file system without links
        finally:
            scratch.unlink(missing_ok=True)

    def _locked(self) -> IO[bytes]:
        """The file, locked against a second extraction; the lock goes with the process."""
        busy = f"another extraction is writing {self.partial}: stop it or choose another --out"
        handle = hold(self.partial, busy)
        if not self.partial.stat().st_size:  # it was renamed in this moment
            self.partial.unlink()
            handle.close()
            raise SetupError(f"{self.path} was finished by another extraction just now: run again")
        return handle

    def _check_same(self, info: StoreInfo, names: Sequence[str], labels: Sequence[int]) -> Layout:
        try:
            with open_hdf5(self.partial) as f:
                layout = read_layout(f)
            differ = layout.info.differs(info)
            if layout.names != list(names):
                differ.append("images")
            elif layout.labels.tolist() != list(labels):
                differ.append("labels")
        except DAMAGE:
            differ = ["layout"]
        if differ:
            self.close()
            raise SetupError(
                f"{self.partial} was begun with other settings ({', '.join(differ)}): "
                "remove it or choose another --out"
            )
        return layout

    @property
    def state(self) -> np.ndarray:
        """State of each row: 0 not written, 1 good, 2 rejected."""
        return np.array(self._state)

    def forget(self, rows: Sequence[int]) -> None:
        """Rows that are to be written anew, as if they never were."""
        if not rows:
            return
        for values in (self._state, self.contents, *self._sets.values()):
            values[list(rows)] = 0
            _flush(values)

    def write(
        self,
        rows: Sequence[int],
        values: Mapping[str, np.ndarray],
        rejected: Sequence[int] = (),
        contents: Mapping[int, int] | None = None,
    ) -> None:
        """Write every data set of these rows, (len(rows), …), then mark the rows.

        The data reach the disk before the mark does: not even a power cut marks a row that is not
        there.

        Args:
            contents: what tells whether an image has changed, by row; without it is looks changed.

        Raises:
            DataError: moments that are not finite.
        """
        for name, rows_of in self._sets.items():
            if not len(rows):
                break
            with np.errstate(over="ignore"):
                stored = values[name].astype(rows_of.dtype)
            if not np.isfinite(stored).all():
                raise DataError(self._not_finite(name, rows, values[name], stored))
            rows_of[rows] = stored
            _flush(rows_of)
        for row, content in (contents or {}).items():
            self.contents[row] = content
        self._state[rows] = GOOD
        self._state[list(rejected)] = REJECTED
        _flush(self._state)

    def _not_finite(
        self, name: str, rows: Sequence[int], values: np.ndarray, stored: np.ndarray
    ) -> str:
        """Which image it is, and what the fault may be."""
        bad = next(i for i in range(len(rows)) if not np.isfinite(stored[i]).all())
        image = self.names[rows[bad]]
        if np.isfinite(values[bad]).all():
            highest = float(np.abs(values[bad]).max())
            return (
                f"{image}: its {name} reach {highest:.3g}, more than {stored.dtype} holds: "
                "choose --dtype float32 and a new --out"
            )
        precision = self.info.encode_precision
        cause = "weights with NaN or infinity in the VAE or encoder"
        if values.dtype == np.float16:
            cause += ", or more than float16 holds"
        if precision not in ("fp32", "imported"):
            cause += f", or numbers too large for {precision}: choose --precision fp32"
        return f"{image}: its {name} are not finite ({cause})"

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows that were written, in the stored type."""
        return np.array(self._sets[name][rows])

    @property
    def good(self) -> np.ndarray:
        """Numbers of the rows that are good."""
        return np.flatnonzero(self._state == GOOD)

    def finish(self, statistics: tuple[Sequence[float], Sequence[float]] | None = None) -> None:
        """Checksum the data, mark the store complete and give it its name.

        The attributes are there already and change in place, so that a kill in between leaves a
        file that can be finished again.

        Args:
            statistics: scale and shift that were computed of the latents.
        """
        if (self._state == TODO).any():
            raise AssertionError("a store is finished when all of its rows are written")
        good = int((self._state == GOOD).sum())
        if not good:
            self.discard()
            raise DataError("no image could be read: no store was written")
        _flush(self.contents)
        del self._sets, self._state, self.contents
        if statistics is not None:
            with h5py.File(self.partial, "r+", locking=False) as f:
                for name, value in zip(("scale", "shift"), statistics, strict=True):
                    f.attrs.modify(name, np.array(value))
        sums = json.dumps(checksums(self.partial, "checksums"))
        with h5py.File(self.partial, "r+", locking=False) as f:
            f.attrs.modify("count", good)
            f.attrs.modify("encode_batch", 0)  # of no use any more, and not the same everywhere
            f.attrs.modify("checksums", np.bytes_(sums.ljust(_room(self.info))))
            f.attrs.modify("complete", True)
        sync(self.partial)
        os.replace(self.partial, self.path)
        sync(self.path.parent)
        self.close()

    def discard(self) -> None:
        """Remove the partial file."""
        self.partial.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _room(info: StoreInfo) -> int:
    """Bytes kept for the checksums."""
    return max(512, 64 * (len(info.row_sets()) + 4))


def contents_of(path: Path) -> np.ndarray | None:
    """`contents` of a finished store; None in those of before, which had none."""
    with open_hdf5(path) as f:
        return f["contents"][:] if "contents" in f else None


def lay_out(path: Path, info: StoreInfo, names: Sequence[str], labels: Sequence[int]) -> None:
    """Every data set at its full size, and its bytes reserved on the disk.

    Writing through a memory map to a disk that has filled up since would kill the process.
    """
    count = len(names)
    with path.open("wb") as room:  # HDF5 leaves a traceback where it finds none
        room.write(bytes(1 << 16))
        room.truncate(max(1 << 16, count * info.row_bytes))
    with h5py.File(path, "w", locking=False) as f:
        for name, rows in info.row_sets().items():
            _allocate(f, name, (count, *rows.shape), rows.dtype)
        _allocate(f, "state", (count,), "uint8")
        _allocate(f, "contents", (count,), "uint64")
        _allocate(f, "labels", (count,), "int64")
        f["labels"][:] = np.asarray(labels, dtype=np.int64)
        f.create_dataset("names", data=[n.encode("utf-8", "surrogateescape") for n in names])
        f.attrs.update(encode_info(info))
        f.attrs.update({"format": FORMAT, "format_version": VERSION, "complete": False})
        f.attrs.update({"count": 0, "checksums": np.bytes_(b" " * _room(info))})
    with path.open("r+b") as raw:
        os.posix_fallocate(raw.fileno(), 0, path.stat().st_size)


def _allocate(f: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """A contiguous data set whose bytes exist from the start, zero, so that it can be mapped."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_obj_track_times(False)  # the same data make the same bytes, whenever written
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(f.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, properties)


def _flush(rows: np.ndarray) -> None:
    if isinstance(rows, np.memmap):
        rows.flush()
