"""ADM's .npz files: images as `arr_0`, statistics as `mu`, `sigma`, `mu_s`, `sigma_s`.

Images are read and written one by one: 50,000 of 256x256 take 9.8 GB.
"""

import contextlib
import hashlib
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from sra2cli.config.reading import json_of
from sra2cli.core.errors import DataError, SetupError

DENSEST = 1100  # deflate packs at most so many bytes into one
ROUNDED = 1e-5  # of a covariance's largest value: what it may be off by
IMAGES, LABELS, META = "arr_0", "arr_1", "meta"


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn what a damaged file makes zipfile and numpy raise, which may be anything, into one
    line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{error or type(error).__name__}".split())[:160]
        raise DataError(f"{path}: {what} cannot be read: {reason}") from None


def keys_of(path: Path) -> set[str]:
    """The names of the arrays in a file.

    Raises:
        SetupError: no such file. DataError: not an .npz.
    """
    if not path.is_file():
        raise SetupError(f"no file {path}")
    with reading(path, "it"), zipfile.ZipFile(path) as file:
        names = file.namelist()
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"it holds {twice.removesuffix('.npy')} twice")
        return {name.removesuffix(".npy") for name in names}


@contextlib.contextmanager
def _member(
    path: Path, key: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any], bool]]:
    """An array as a stream of bytes behind its header, with shape, dtype, and whether its axes are
    in Fortran's order; ValueError where it does not hold as many bytes as they say."""
    with zipfile.ZipFile(path) as file, file.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"unknown version {version} of the format")
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        size = math.prod(shape) * dtype.itemsize
        there = file.getinfo(f"{key}.npy").file_size - stream.tell()
        if min(shape, default=0) < 0 or size != there or size > DENSEST * path.stat().st_size:
            raise ValueError(f"it holds {there:,} bytes, not the {size:,} of {dtype} {shape}")
        yield stream, shape, dtype, fortran and len(shape) > 1


def image_shape(path: Path) -> tuple[int, int, int, int]:
    """(N, H, W, 3) of the images in a file; DataError if `arr_0` is not uint8 NHWC."""
    with reading(path, IMAGES), _member(path, IMAGES) as (_, shape, dtype, fortran):
        if fortran:
            raise ValueError("its axes are stored in Fortran's order")
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise DataError(f"{path}: arr_0 must be uint8 (N, H, W, 3), not {dtype} {shape}")
    return shape[0], shape[1], shape[2], shape[3]


def images(path: Path) -> Iterator[np.ndarray]:
    """The images (H, W, 3) of a file in order, one in memory at a time."""
    count, *shape = image_shape(path)
    size = int(np.prod(shape))
    with reading(path, IMAGES), _member(path, IMAGES) as (stream, *_):
        for index in range(count):
            data = stream.read(size)
            if len(data) < size:
                raise ValueError(f"it ends within image {index} of {count}")
            yield np.frombuffer(data, np.uint8).reshape(shape)


def labels(path: Path, count: int) -> list[int] | None:
    """The classes of the images, where the file has them (ADM's `arr_1`)."""
    if LABELS not in keys_of(path):
        return None
    array = _array(path, LABELS)
    whole = array.shape == (count,) and np.issubdtype(array.dtype, np.integer)
    return array.tolist() if whole and array.min() >= 0 else None


def statistics(path: Path, suffix: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) under mu and sigma + suffix, float64.

    Raises:
        DataError: one is missing, of another type or shape, not finite, or no covariance: not
            symmetric, or with an eigenvalue below -1e-5 times its largest value, which is more
            than float32 rounds away.
    """
    names = f"mu{suffix}", f"sigma{suffix}"
    found = []
    for name, shape in zip(names, ((width,), (width, width)), strict=True):
        if name not in keys_of(path):
            raise DataError(f"{path} has no {name} beside {' and '.join(set(names) - {name})}")
        array = _array(path, name)
        if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
            raise DataError(
                f"{path}: {name} must be float {shape}, not {array.dtype} {array.shape}"
            )
        if not np.isfinite(array).all():
            raise DataError(f"{path}: {name} holds values that are not finite")
        found.append(array.astype(np.float64))
    mean, covariance = found
    off = max(ROUNDED * np.abs(covariance).max(), np.finfo(np.float64).tiny)
    try:
        if np.abs(covariance - covariance.T).max() > off:
            raise np.linalg.LinAlgError
        np.linalg.cholesky(covariance + off * np.eye(width))  # quicker than all eigenvalues
    except np.linalg.LinAlgError:
        raise DataError(
            f"{path}: {names[1]} is not a covariance: it must be symmetric, without a negative "
            "variance in any direction"
        ) from None
    return mean, covariance


def meta(path: Path) -> dict[str, Any]:
    """What a file of ours says of its making; {} of others."""
    if META not in keys_of(path):
        return {}
    try:
        about: dict[str, Any] = json_of(str(_array(path, META)), dict[str, Any])
    except ValueError:
        return {}
    return about


def sha256(path: Path) -> str:
    """Of a whole file, as sha256sum prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _array(path: Path, key: str) -> np.ndarray:
    with reading(path, key), _member(path, key) as (stream, shape, dtype, fortran):
        data = stream.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


class Writer:
    """Writes an .npz: first some images as they come, then arrays; whole, or not there.

    A context: left without `finish`, nothing stays behind.

    count: of the images that `add_image` will be called with; their size is that of the first.
    """

    def __init__(self, path: Path, count: int):
        self.path, self.count = path, count
        self._scratch = path.with_name(f".{path.name}.partial")
        self._file = zipfile.ZipFile(self._scratch, "w", allowZip64=True)
        self._images: IO[bytes] | None = None

    def add_image(self, image: np.ndarray) -> None:
        """The next image (H, W, 3) uint8."""
        if self._images is None:
            self._images = self._open(IMAGES, (self.count, *image.shape), image.dtype)
        self._images.write(np.ascontiguousarray(image).tobytes())

    def finish(self, arrays: dict[str, np.ndarray]) -> None:
        """Add the arrays and put the file in its place."""
        if self._images is not None:
            self._images.close()
        for key, array in arrays.items():
            with self._open(key, array.shape, array.dtype) as stream:
                stream.write(np.ascontiguousarray(array).tobytes())
        self._file.close()
        os.replace(self._scratch, self.path)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._images is not None:
            self._images.close()
        self._file.close()
        self._scratch.unlink(missing_ok=True)

    def _open(self, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> IO[bytes]:
        stream = self._file.open(f"{key}.npy", "w", force_zip64=True)
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream
