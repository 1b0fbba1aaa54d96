"""A new store: every data set at its full size, and what is known before images are read."""

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from sra2cli.data.captions import Text
from sra2cli.data.store_info import StoreInfo, encode_info
from sra2cli.data.store_layout import FORMAT, VERSION

TOGETHER = 4096  # captions whose ids are made in one go


def lay_out(
    path: Path,
    info: StoreInfo,
    names: Sequence[str],
    labels: Sequence[int],
    text: Text | None = None,
) -> None:
    """Every data set at its full size, and its bytes reserved on the disk.

    Writing through a memory map to a disk that has filled up since would kill the process.
    """
    count = len(names)
    size = count * info.row_bytes + (0 if text is None else text_bytes(info, text))
    with path.open("wb") as room:  # HDF5 leaves a traceback where it finds none
        room.write(bytes(1 << 16))
        room.truncate(max(1 << 16, size))
    with h5py.File(path, "w", locking=False) as f:
        for name, rows in info.row_sets().items():
            _allocate(f, name, (count, *rows.shape), rows.dtype)
        _allocate(f, "state", (count,), "uint8")
        _allocate(f, "contents", (count,), "uint64")
        _allocate(f, "labels", (count,), "int64")
        f["labels"][:] = np.asarray(labels, dtype=np.int64)
        if text is not None:
            _lay_out_text(f, info, text)
        f.create_dataset("names", data=[n.encode("utf-8", "surrogateescape") for n in names])
        f.attrs.update(encode_info(info))
        f.attrs.update({"format": FORMAT, "format_version": VERSION, "complete": False})
        f.attrs.update({"count": 0, "checksums": np.bytes_(b" " * checksum_room(info))})
    with path.open("r+b") as raw:
        os.posix_fallocate(raw.fileno(), 0, path.stat().st_size)


def _lay_out_text(f: h5py.File, info: StoreInfo, text: Text) -> None:
    """What `data.captions` lists; only features are filled in later."""
    captions, sets = text.captions, info.text_sets
    for name, rows in sets.items():
        _allocate(f, name, (len(captions), *rows.shape), rows.dtype)
    for name, values in (
        ("captions", captions.text),
        ("caption_ends", captions.ends),
        ("caption_first", captions.first),
        ("null_caption", text.null()[None].astype(info.null_dtype)),
    ):
        _allocate(f, name, values.shape, str(values.dtype))
        f[name][:] = values
    for k in range(0, len(captions), TOGETHER):
        part = range(k, min(k + TOGETHER, len(captions)))
        f["caption_ids"][part.start : part.stop] = text.tokens([captions[i] for i in part])


def text_bytes(info: StoreInfo, text: Text) -> int:
    """Bytes of all that is stored of captions."""
    fixed = sum(values.nbytes for values in vars(text.captions).values())
    return fixed + len(text.captions) * info.caption_bytes


def checksum_room(info: StoreInfo) -> int:
    """Bytes kept for the checksums."""
    return max(512, 64 * (len(info.row_sets()) + 4 + (7 if info.text_encoder else 0)))


def _allocate(f: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """A contiguous data set whose bytes exist from the start, zero, so that it can be mapped."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_obj_track_times(False)  # the same data make the same bytes, whenever written
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(f.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, properties)
