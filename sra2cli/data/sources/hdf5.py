"""HDF5 files with one key per image (REPA-E): encoded images, or moments as arrays."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources.classes import lay_out
from sra2cli.data.sources.layout import DATASET, Choice, FileReader, Source, check_size
from sra2cli.data.sources.listing import DEEPEST, Listing, hidden, may_be_folder, too_deep

DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises


def open_hdf5(path: Path, choice: Choice) -> Source:
    """Labels from a dataset.json: a key of the file, of images.h5 beside it, or a file there."""
    found = Listing()
    try:
        with h5py.File(path, "r", locking=False) as file:
            if "format" in file.attrs:
                raise SetupError(f"{path} is a latent store already")
            _walk(file, "", (), found)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is damaged or not an HDF5 file: {reason}") from None
    dataset = None if any(n.endswith(DATASET) for n in found.names) else _beside(path)
    layout = lay_out(path, found, choice, Hdf5Reader(path, found.names), dataset=dataset)
    return layout.source(Hdf5Reader(path, [found.names[i] for i in layout.order]))


def _walk(group: Any, path: str, above: tuple[int, ...], found: Listing) -> None:
    """All keys; links as what they lead to."""
    address = h5py.h5o.get_info(group.id).addr
    if len(above) > DEEPEST:
        raise too_deep(path[:80] + "…")
    for key in sorted(group):
        name = path + key
        if hidden(key):
            found.hidden.append(name)
            continue
        try:
            item = group[key]
        except DAMAGED:  # a link that leads nowhere
            (found.lost if may_be_folder(key) else found.names).append(name)
            continue
        if not isinstance(item, h5py.Group):
            found.names.append(name)
        elif h5py.h5o.get_info(item.id).addr in (*above, address):
            found.odd.append(name)
        else:
            found.folders.append(name)
            _walk(item, name + "/", (*above, address), found)


class Hdf5Reader(FileReader):
    """Reads a key by its number."""

    def open(self) -> Any:
        return h5py.File(self.path, "r", locking=False)

    def __call__(self, index: int) -> bytes | np.ndarray:
        name = self.names[index]
        try:
            value = _value(self.file[name])
        except DAMAGED as error:
            raise DataError(f"damaged in the HDF5 file: {' '.join(str(error).split())}") from None
        return value if name.endswith(".npy") else _bytes(value)


def _value(item: Any) -> np.ndarray:
    if not isinstance(item, h5py.Dataset):
        raise DataError("is no data set")
    check_size(item.nbytes or 0)
    return np.asarray(item)


def _bytes(value: np.ndarray) -> bytes:
    """The bytes of a file: one string, or a row of bytes."""
    if value.dtype.kind in "OS" and value.size == 1:
        only = value.reshape(-1)[0]
        value = only if isinstance(only, np.ndarray) else np.frombuffer(_encoded(only), np.uint8)
    row = value.dtype.kind in "uiV" and value.dtype.itemsize == 1 and value.ndim < 2
    if not row and not (value.dtype.kind == "V" and value.size == 1):
        raise DataError(f"holds {value.dtype} {value.shape}, not the bytes of a file")
    return value.tobytes()


def _encoded(text: Any) -> bytes:
    if not isinstance(text, bytes | str):
        raise DataError(f"holds {type(text).__name__}, not the bytes of a file")
    return text.encode() if isinstance(text, str) else bytes(text)


def _beside(path: Path) -> bytes | None:
    """The labels of a file of latents: with its images, or in a file."""
    images, written = path.with_name("images.h5"), path.with_name(DATASET)
    try:
        if images != path and images.is_file():
            with h5py.File(images, "r", locking=False) as file:
                if DATASET in file:
                    return _bytes(_value(file[DATASET]))
        if written.is_file():
            check_size(written.stat().st_size)
            return written.read_bytes()
    except (*DAMAGED, DataError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{DATASET} beside {path} cannot be read: {reason}") from None
    return None
