"""What lies where in a store's file, held once against what the store says of itself.

Whoever reads a store asks here first: names, kinds, shapes and types of its data sets are then as
declared, and lie in the file as they are: nothing is filled in, nothing comes from elsewhere.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from sra2cli.core.errors import DataError
from sra2cli.data.store_info import StoreInfo, decode_info

FORMAT = "sra2-latents"
VERSION = 2

# What HDF5 and the checks raise for a file that is damaged, or is something else.
DAMAGE = (OSError, KeyError, ValueError, RuntimeError, TypeError)


FIXED_TEXT = ("captions", "caption_ends", "caption_first", "null_caption")  # see data.captions


@dataclass(frozen=True)
class Extent:
    """Where a contiguous data set lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, f: h5py.File, name: str) -> "Extent":
        """ValueError unless it is a contiguous data set of this file."""
        own = isinstance(f.get(name, getlink=True), h5py.HardLink)
        dataset = f[name] if own else None
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"'{name}' is not a data set")
        offset = dataset.id.get_offset()
        if offset is None:
            raise ValueError(f"data set '{name}' is not contiguous")
        return cls(offset, dataset.shape or (), dataset.dtype)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, path: Path, mode: Literal["r", "r+"]) -> np.ndarray:
        return np.memmap(path, self.dtype, mode, offset=self.offset, shape=self.shape)


@dataclass(frozen=True)
class Layout:
    """A store's file. extents: of all data sets but the names; labels and state: (N,)."""

    info: StoreInfo
    extents: dict[str, Extent]
    names: list[str]
    labels: np.ndarray
    state: np.ndarray


def read_layout(f: h5py.File) -> Layout:
    """The layout of an open store.

    Raises:
        ValueError and the rest of `DAMAGE`: it is not what its attributes declare.
    """
    info = decode_info(f.attrs)
    declared: dict[str, tuple[tuple[int, ...], str]] = {
        **{name: (rows.shape, rows.dtype) for name, rows in info.row_sets().items()},
        "labels": ((), "int64"),
        "state": ((), "uint8"),
    }
    if "contents" in f:  # stores of before have none
        declared["contents"] = ((), "uint64")
    text = {*FIXED_TEXT, *info.text_sets} if info.text_encoder else set()
    odd = sorted(set(f) ^ {*declared, *text, "names"})
    if odd:
        raise ValueError(f"data set '{odd[0]}' is {'not declared' if odd[0] in f else 'missing'}")
    named = Extent.of(f, "names")
    if len(named.shape) != 1 or not named.shape[0] or not h5py.check_string_dtype(named.dtype):
        raise ValueError(f"'names' is {named.dtype} {named.shape}, not one text an image")
    extents = {name: Extent.of(f, name) for name in declared}
    for name, (shape, dtype) in declared.items():
        _check(name, extents[name], (named.shape[0], *shape), dtype)
    labels = f["labels"][:]
    lowest = 0 if info.classes else -1
    if labels.min() < lowest or labels.max() >= max(info.classes, lowest + 1):
        raise ValueError(f"labels {labels.min()}..{labels.max()} of {info.classes} classes")
    if info.text_encoder:
        extents |= _text_extents(f, info, named.shape[0])
    return Layout(info, extents, read_names(f), labels, f["state"][:])


def _check(name: str, found: Extent, shape: tuple[int, ...], dtype: str) -> None:
    if found.shape != shape or found.dtype != np.dtype(dtype):
        raise ValueError(f"'{name}' is {found.dtype} {found.shape}, not {dtype} {shape}")


def _text_extents(f: h5py.File, info: StoreInfo, images: int) -> dict[str, Extent]:
    """Of the captions' data sets; ValueError where they do not belong together."""
    extents = {name: Extent.of(f, name) for name in (*FIXED_TEXT, *info.text_sets)}
    _check("caption_first", extents["caption_first"], (images + 1,), "int64")
    _check("caption_ends", extents["caption_ends"], (len(f["caption_ends"]),), "int64")
    ends, first = f["caption_ends"][:], f["caption_first"][:]
    if first[0] != 0 or first[-1] != len(ends) or (np.diff(first) < 1).any():
        raise ValueError(f"'caption_first' does not give each of {images} images captions")
    if ends[0] < 0 or (np.diff(ends) < 0).any():
        raise ValueError("'caption_ends' does not grow")
    _check("captions", extents["captions"], (max(1, int(ends[-1])),), "uint8")
    null = (1, info.text_tokens, info.text_width)
    _check("null_caption", extents["null_caption"], null, info.null_dtype)
    for name, rows in info.text_sets.items():
        _check(name, extents[name], (len(ends), *rows.shape), rows.dtype)
    return extents


def open_hdf5(path: Path) -> h5py.File:
    """For reading, without HDF5's own lock: network disks have none, and readers need none.

    Raises:
        DataError: another program has it, and the environment wants locks all the same.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "unable to lock file" in str(error):
            raise DataError(
                f"{path} is locked by another program: close it there "
                "(or HDF5_USE_FILE_LOCKING=FALSE, if it only reads)"
            ) from None
        if "already open for write" in str(error):
            raise DataError(
                f"{path} is being written by another program, or was when that was killed: "
                f"close it there; else h5clear -s {path}"
            ) from None
        raise


def read_names(f: h5py.File) -> list[str]:
    """Names of all rows; file names need not be valid UTF-8."""
    return [n.decode("utf-8", "surrogateescape") for n in f["names"][:]]
