"""HDF5 files with one key per image (REPA-E): encoded images, or moments as arrays."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources.layout import DATASET, FileReader, Source, lay_out


def open_hdf5(path: Path) -> Source:
    """Labels from a dataset.json: a key of the file, of images.h5 beside it, or a file there."""
    names: list[str] = []
    try:
        with h5py.File(path, "r", locking=False) as file:
            if "format" in file.attrs:
                raise SetupError(f"{path} is a latent store already")
            file.visititems(
                lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
            )
            dataset = _bytes(file[DATASET]) if DATASET in file else None
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is damaged or not an HDF5 file: {reason}") from None
    if dataset is None:
        dataset = _beside(path)
    layout = lay_out(path, sorted(names), dataset)
    return layout.source(path, Hdf5Reader(path, layout.names))


class Hdf5Reader(FileReader):
    """Reads a key by its number."""

    def open(self) -> Any:
        return h5py.File(self.path, "r", locking=False)

    def __call__(self, index: int) -> bytes | np.ndarray:
        file = self.file
        try:
            item = file[self.names[index]]
            return np.asarray(item) if self.names[index].endswith(".npy") else _bytes(item)
        except (KeyError, RuntimeError) as error:
            raise DataError(f"damaged in the HDF5 file: {error}") from None


def _bytes(item: Any) -> bytes:
    value = np.asarray(item)
    return bytes(value.item()) if value.dtype.kind in "OS" else value.tobytes()


def _beside(path: Path) -> bytes | None:
    """The labels of a file of latents: with its images, or in a file."""
    images = path.with_name("images.h5")
    if images != path and images.is_file():
        with h5py.File(images, "r", locking=False) as file:
            if DATASET in file:
                return _bytes(file[DATASET])
    written = path.with_name(DATASET)
    return written.read_bytes() if written.is_file() else None
