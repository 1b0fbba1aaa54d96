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
from sra2cli.data.captions import Text, packed_in
from sra2cli.data.store import GOOD, REJECTED, TODO, checksums
from sra2cli.data.store_creation import checksum_room, lay_out
from sra2cli.data.store_info import StoreInfo
from sra2cli.data.store_layout import DAMAGE, Layout, open_hdf5, read_layout


def partial_file(path: Path) -> Path:
    """Where a store is written."""
    return path.with_name(path.name + ".partial")


class StoreWriter:
    """A store being written; opening it again goes on where it was left.

    Args:
        text: of its captions; None: it holds none.
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
        text: Text | None = None,
        create: bool = True,
    ):
        self.path, self.names = path, names
        self.partial = partial_file(path)
        self._busy = (
            f"another extraction is writing {self.partial}: stop it or choose another --out"
        )
        if path.exists():
            raise SetupError(f"{path} exists: remove it or choose another --out")
        if create and not self.partial.exists():
            self._create(info, names, labels, text)
        self._lock = self._locked() if create else None
        layout = self._check_same(info, names, labels, text)
        self.info = layout.info
        sets = {*self.info.row_sets(), "state", "contents"} & set(layout.extents)
        self._sets = {k: layout.extents[k].map(self.partial, "r+") for k in sets}
        self._state = self._sets.pop("state")
        unknown = np.zeros(len(names), np.uint64)  # in a partial store of before
        self.contents = self._sets.pop("contents", unknown)
        sets = {"caption_ids", "caption_features", "caption_state"} & set(layout.extents)
        self._text = {k: layout.extents[k].map(self.partial, "r+") for k in sets}

    def _create(
        self, info: StoreInfo, names: Sequence[str], labels: Sequence[int], text: Text | None
    ) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.partial.parent.glob(glob.escape(self.partial.name) + ".*"):
            hold(left, self._busy).close()  # or of a process that lays one out just now
            left.unlink(missing_ok=True)  # of a process that was killed while it laid one out
        scratch = self.partial.with_name(self.partial.name + f".{os.getpid()}")
        try:
            with hold(scratch, self._busy):
                lay_out(scratch, info, names, labels, text)
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
        handle = hold(self.partial, self._busy)
        if not self.partial.stat().st_size:  # it was renamed in this moment
            self.partial.unlink()
            handle.close()
            raise SetupError(f"{self.path} was finished by another extraction just now: run again")
        return handle

    def _check_same(
        self, info: StoreInfo, names: Sequence[str], labels: Sequence[int], text: Text | None
    ) -> Layout:
        try:
            with open_hdf5(self.partial) as f:
                layout = read_layout(f)
            differ = layout.info.differs(info)
            if layout.names != list(names):
                differ.append("images")
            elif layout.labels.tolist() != list(labels):
                differ.append("labels")
            elif text and not packed_in(self.partial, layout.extents).same(text.captions):
                differ.append("captions")
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

    @property
    def captions_to_do(self) -> np.ndarray:
        """Numbers of the captions whose features are to be stored and are not there yet."""
        state = self._text.get("caption_state")
        return np.empty(0, np.int64) if state is None else np.flatnonzero(state == TODO)

    def caption_ids(self, numbers: np.ndarray) -> np.ndarray:
        """Token ids (n, L) of captions."""
        return np.array(self._text["caption_ids"][numbers])

    def write_captions(self, numbers: Sequence[int] | np.ndarray, features: np.ndarray) -> None:
        """Features (len(numbers), L, E) of captions, then mark them; as `write` does.

        Raises:
            DataError: features that are not finite in float16.
        """
        with np.errstate(over="ignore"):
            stored = features.astype(np.float16)
        if not np.isfinite(stored).all():
            highest = float(np.abs(features).max())
            raise DataError(
                f"text features reach {highest:.3g}, more than float16 holds: leave out "
                "--text-features, and the encoder runs while training"
            )
        self._text["caption_features"][numbers] = stored
        _flush(self._text["caption_features"])
        self._text["caption_state"][numbers] = GOOD
        _flush(self._text["caption_state"])

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
        if (self._state == TODO).any() or len(self.captions_to_do):
            raise AssertionError("a store is finished when all of its rows are written")
        good = int((self._state == GOOD).sum())
        if not good:
            self.discard()
            raise DataError("no image could be read: no store was written")
        _flush(self.contents)
        del self._sets, self._text, self._state, self.contents
        if statistics is not None:
            with h5py.File(self.partial, "r+", locking=False) as f:
                for name, value in zip(("scale", "shift"), statistics, strict=True):
                    f.attrs.modify(name, np.array(value))
        sums = json.dumps(checksums(self.partial, "checksums"))
        with h5py.File(self.partial, "r+", locking=False) as f:
            f.attrs.modify("count", good)
            f.attrs.modify("encode_batch", 0)  # of no use any more, and not the same everywhere
            f.attrs.modify("checksums", np.bytes_(sums.ljust(checksum_room(self.info))))
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


def contents_of(path: Path) -> np.ndarray | None:
    """`contents` of a finished store; None in those of before, which had none."""
    with open_hdf5(path) as f:
        return f["contents"][:] if "contents" in f else None


def _flush(rows: np.ndarray) -> None:
    if isinstance(rows, np.memmap):
        rows.flush()
