"""The latent store: one HDF5 file of contiguous data sets that explains itself.

Data sets (N rows, one per source image, in source order)
    moments   (N, 2C, h, w) float32   mean‖std of the VAE posterior, unscaled
    features  (N, T, F) float16       of an image encoder, if asked for
    mirrored_moments, mirrored_features   of the mirrored images, if asked for
    labels    (N,) int64              -1 without labels
    state     (N,) uint8              0 not written, 1 good, 2 rejected
    names     (N,) utf-8              path of the image in its source
Readers see the rows whose state is 1, in order. Attributes: `StoreInfo`, plus format, count,
checksums and complete. Rows are written and read through a memory map at the data set's offset:
no HDF5 handle is held, so nothing breaks across a fork. See docs/store.md.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from sra2cli import __version__
from sra2cli.errors import DataError, SetupError
from sra2cli.files import sync

FORMAT = "sra2-latents"
VERSION = 1
TODO, GOOD, REJECTED = 0, 1, 2
ROW_SETS = ("moments", "mirrored_moments", "features", "mirrored_features")


@dataclass(frozen=True)
class StoreInfo:
    """What identifies a store: everything that changes its numbers, and how to read them."""

    vae: str
    vae_fingerprint: str
    scale: float
    shift: float
    channels: int
    latent: int  # side of the latent
    resolution: int  # side of the image
    classes: int  # 0: no labels
    class_names: list[str] = field(default_factory=list)
    crop: str = "adm-center"
    image_range: str = "[-1, 1]"
    moments: str = "mean,std"
    encode_dtype: str = "float32"
    mirrored: bool = False  # also holds the moments (and features) of the mirrored images
    encoder: str = ""  # "": no features
    encoder_fingerprint: str = ""
    feature_tokens: int = 0  # T
    feature_width: int = 0  # F
    feature_dtype: str = "float16"
    tool: str = f"sra2 {__version__}"

    def row_sets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of a row and type of each data set that extraction fills."""
        sets: dict[str, tuple[tuple[int, ...], str]] = {}
        sets["moments"] = ((2 * self.channels, self.latent, self.latent), "float32")
        if self.encoder:
            sets["features"] = ((self.feature_tokens, self.feature_width), self.feature_dtype)
        if self.mirrored:
            sets |= {f"mirrored_{name}": what for name, what in sets.items()}
        return sets

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        sets = self.row_sets().values()
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in sets)

    def differs(self, other: "StoreInfo") -> list[str]:
        """Names of the settings in which two stores differ, the tool's version aside."""
        a, b = asdict(self), asdict(other)
        return [k for k in a if a[k] != b[k] and k not in ("tool", "vae", "encoder")]


class StoreWriter:
    """A store being written, under its name with `.partial` appended.

    Opening it again goes on where it was left, if it is of the same images and settings.

    Raises:
        SetupError: a finished store is already there, or a partial one of something else.
    """

    def __init__(self, path: Path, info: StoreInfo, names: Sequence[str], labels: Sequence[int]):
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        if path.exists():
            raise SetupError(f"{path} exists: remove it or choose another --out")
        if self.partial.exists():
            self._check_same(info, names)
        else:
            self._create(info, names, labels)
        self._map()

    def _create(self, info: StoreInfo, names: Sequence[str], labels: Sequence[int]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.partial.with_name(self.partial.name + f".{os.getpid()}")
        try:
            self._lay_out(scratch, info, names, labels)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
        os.replace(scratch, self.partial)  # a partial store always has its full layout

    def _lay_out(
        self, scratch: Path, info: StoreInfo, names: Sequence[str], labels: Sequence[int]
    ) -> None:
        """Every data set at its full size, and its bytes reserved on the disk.

        Writing through a memory map to a disk that has filled up since would kill the process.
        """
        count = len(names)
        with h5py.File(scratch, "w") as f:
            for name, (shape, dtype) in info.row_sets().items():
                _allocate(f, name, (count, *shape), dtype)
            _allocate(f, "state", (count,), "uint8")
            f.create_dataset("labels", data=np.asarray(labels, dtype=np.int64))
            f.create_dataset("names", data=[_name_bytes(n) for n in names])
            f.attrs.update(_encode(info))
            f.attrs.update({"format": FORMAT, "format_version": VERSION, "complete": False})
        with scratch.open("r+b") as raw:
            os.posix_fallocate(raw.fileno(), 0, scratch.stat().st_size)

    def _check_same(self, info: StoreInfo, names: Sequence[str]) -> None:
        try:
            with h5py.File(self.partial, "r") as f:
                differ = _decode(f).differs(info)
                if _read_names(f) != list(names):
                    differ.append("images")
        except (OSError, KeyError, TypeError, ValueError):
            differ = ["layout"]
        if differ:
            raise SetupError(
                f"{self.partial} was begun with other settings ({', '.join(differ)}): "
                "remove it or choose another --out"
            )

    def _map(self) -> None:
        with h5py.File(self.partial, "r") as f:
            self._sets = {k: _memory_map(self.partial, f[k], "r+") for k in ROW_SETS if k in f}
            self._state = _memory_map(self.partial, f["state"], "r+")

    @property
    def state(self) -> np.ndarray:
        """State of each row: 0 not written, 1 good, 2 rejected."""
        return np.array(self._state)

    def write(self, rows: Sequence[int], values: Mapping[str, np.ndarray]) -> None:
        """Write every data set of these rows, (len(rows), …), then mark the rows good."""
        for name, rows_of in self._sets.items():
            rows_of[rows] = values[name]
            _flush(rows_of)
        self._state[rows] = GOOD
        _flush(self._state)

    def reject(self, rows: Sequence[int]) -> None:
        """Mark rows whose image cannot be read."""
        self._state[rows] = REJECTED
        _flush(self._state)

    def finish(self) -> None:
        """Checksum the data, mark the store complete and give it its name."""
        if (self._state == TODO).any():
            raise AssertionError("a store is finished when all of its rows are written")
        good = int((self._state == GOOD).sum())
        if not good:
            self.discard()
            raise DataError("no image could be read: no store was written")
        del self._sets, self._state
        with h5py.File(self.partial, "r+") as f:
            f.attrs["count"] = good
            f.attrs["checksums"] = json.dumps({k: _checksum(f[k]) for k in sorted(f)})
            f.attrs["complete"] = True
        sync(self.partial)
        os.replace(self.partial, self.path)
        sync(self.path.parent)

    def discard(self) -> None:
        """Remove the partial file."""
        self.partial.unlink(missing_ok=True)


class Store:
    """A complete store, opened for reading.

    Attributes:
        info: its StoreInfo. labels: (len,) int64. names: of the images.
        rejected: names of the images that could not be read. checksums: of its data sets.

    Raises:
        SetupError: no such file, or not a store.
        DataError: incomplete, truncated or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            hint = f" ({path.name}.partial is unfinished: run extract again)"
            partial = path.with_name(path.name + ".partial").exists()
            raise SetupError(f"no latent store {path}{hint if partial else ''}")
        try:
            with h5py.File(path, "r") as f:
                if f.attrs.get("format") != FORMAT:
                    raise SetupError(f"{path} is an HDF5 file, but not a latent store of sra2")
                if not f.attrs.get("complete", False):
                    raise DataError(f"{path} is incomplete: run extract again")
                self.info = _decode(f)
                if f.attrs["format_version"] != VERSION:
                    raise SetupError(
                        f"{path} has format version {f.attrs['format_version']}, this sra2 reads "
                        f"{VERSION}: extract again, or use the sra2 that made it"
                    )
                state = f["state"][:]
                self.rows = np.flatnonzero(state == GOOD)
                self.labels = f["labels"][:][self.rows]
                self.all_names = _read_names(f)
                self.names = [self.all_names[row] for row in self.rows]
                self.rejected = [self.all_names[row] for row in np.flatnonzero(state == REJECTED)]
                self.checksums: dict[str, str] = json.loads(f.attrs["checksums"])
                self._sets = {k: _memory_map(path, f[k], "r") for k in ROW_SETS if k in f}
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{path} is truncated or not a latent store: {reason}") from None

    def __len__(self) -> int:
        return len(self.rows)

    def verify(self) -> None:
        """Check every data set against its checksum; DataError names a damaged one."""
        with h5py.File(self.path, "r") as f:
            for key, expected in self.checksums.items():
                if _checksum(f[key]) != expected:
                    raise DataError(f"{self.path} is damaged: the checksum of '{key}' is wrong")

    def moments(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> np.ndarray:
        """Moments (len(indices), 2C, h, w) float32, in the order asked for, read in disk order.

        mirrored: for each index, whether to take the moments of the mirrored image.
        """
        return self._read("moments", indices, mirrored)

    def features(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> np.ndarray:
        """Encoder features (len(indices), T, F) float32, as `moments`."""
        return self._read("features", indices, mirrored)

    def _read(self, name: str, indices: np.ndarray, mirrored: np.ndarray | None) -> np.ndarray:
        source = self._sets[name]
        rows = self.rows[indices]
        out = np.empty((len(rows), *source.shape[1:]), dtype=np.float32)
        for i in np.argsort(rows, kind="stable"):
            flip = mirrored is not None and mirrored[i]
            out[i] = (self._sets[f"mirrored_{name}"] if flip else source)[rows[i]]
        return out


def _allocate(f: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """A contiguous data set whose bytes exist from the start, zero, so that it can be mapped."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_obj_track_times(False)  # the same data make the same bytes, whenever written
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(f.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, properties)


def _memory_map(path: Path, dataset: h5py.Dataset, mode: Literal["r", "r+"]) -> np.ndarray:
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError(f"data set {dataset.name} is not contiguous")
    return np.memmap(path, dtype=dataset.dtype, mode=mode, offset=offset, shape=dataset.shape)


def _name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # file names need not be valid UTF-8


def _read_names(f: h5py.File) -> list[str]:
    return [n.decode("utf-8", "surrogateescape") for n in f["names"][:]]


def _flush(rows: np.ndarray) -> None:
    assert isinstance(rows, np.memmap)
    rows.flush()


def _checksum(dataset: h5py.Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    step = max(1, (1 << 24) // max(1, dataset[:1].nbytes))
    for start in range(0, len(dataset), step):
        rows = dataset[start : start + step]
        digest.update(b"\0".join(rows) if rows.dtype == object else rows.tobytes())
    return digest.hexdigest()


def _encode(info: StoreInfo) -> dict[str, str | int | float | bool]:
    values = asdict(info)
    values["class_names"] = json.dumps(values["class_names"])
    return values


def _decode(f: h5py.File) -> StoreInfo:
    values = {k: f.attrs[k] for k in StoreInfo.__dataclass_fields__}
    values["class_names"] = json.loads(values["class_names"])
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
    return StoreInfo(**plain)
