"""Images that were exchanged or repaired since they were encoded.

A store holds size and CRC-32 of what was read of each image. To look for changes, only what was
written to the disk since the store was is read again, so that a copied folder is no other one.
"""

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sra2cli.core import console
from sra2cli.core.errors import DataError
from sra2cli.data.sources import Source, VanishedError

SLACK = 60.0  # seconds by which the clocks of two disks may differ
PART = 1024  # rows that are looked at together


def content_of(data: bytes | np.ndarray) -> int:
    """Size and CRC-32 of an encoded image or an array, in 64 bits."""
    whole = data if isinstance(data, bytes) else data.tobytes()
    return len(whole) << 32 | zlib.crc32(whole)


def last_written(store: Path) -> float:
    """When rows were last written to a store, or a partial one; infinity if there is none."""
    return store.stat().st_mtime if store.exists() else float("inf")


def changed(source: Source, contents: np.ndarray, since: float, rows: Sequence[int]) -> list[int]:
    """Those of `rows` that are no longer what was encoded.

    Args:
        contents: `content_of` each row, (len(source),) uint64; 0 where it could not be read.
        since: seconds since the epoch; files that are older are not read.

    Raises:
        DataError: the source has vanished.
    """
    file_of = getattr(source.reader, "file_of", None)
    if file_of is None or since == float("inf"):
        return []
    newer: dict[Path, bool] = {}

    def differs(row: int) -> bool:
        file = file_of(row)
        if file not in newer:
            try:
                about = os.stat(file)
            except FileNotFoundError:
                about = os.lstat(file)  # a link to nothing is a bad image, not a vanished source
            newer[file] = max(about.st_mtime, about.st_ctime) >= since - SLACK
        if not newer[file]:
            return False
        try:
            return content_of(source.read(row)) != contents[row]
        except DataError:
            return bool(contents[row])

    found: list[int] = []
    with console.progress("changes", len(rows)) as bar, ThreadPoolExecutor(8) as pool:
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART]
            try:
                found += [row for row, d in zip(part, pool.map(differs, part), strict=True) if d]
            except (OSError, VanishedError) as error:
                raise DataError(f"{source.root} cannot be read: {error}") from None
            bar.advance(len(part))
    return found
