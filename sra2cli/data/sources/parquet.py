"""Parquet files with image bytes, as Hugging Face data sets come."""

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources.layout import Choice, Source, whole_numbers

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")  # where a file does not say which it is
LABELS = ("label", "labels", "cls", "class")


def open_parquet(root: Path, files: list[Path], choice: Choice) -> Source:
    """List the rows of one split.

    Raises:
        SetupError: pyarrow is missing, several splits, or no column of images.
        DataError: a damaged file.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as pq
    except ImportError:
        raise SetupError("parquet files need pyarrow: pip install 'sra2[parquet]'") from None
    splits = sorted({re.split(r"-\d+-of-\d+", file.stem)[0] for file in files})
    if len(splits) > 1:
        raise SetupError(
            f"{root} holds several splits ({', '.join(splits)}): choose one by a quoted pattern, "
            f"as '{files[0].parent}/{splits[0]}-*.parquet'"
        )
    names: list[str] = []
    labels: list[Any] = []
    groups: list[Group] = []
    columns: Columns | None = None
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                columns = columns or find_columns(root, table.schema_arrow)
                for number in range(table.metadata.num_row_groups):
                    groups.append(Group(file, number, len(names)))
                    rows = table.metadata.row_group(number).num_rows
                    names += [f"{file.name}/{len(names) + k:08d}" for k in range(rows)]
                    if columns.label is not None:
                        part = table.read_row_group(number, columns=[columns.label])
                        labels += part.column(0).to_pylist()
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{file} is damaged or not a parquet file: {error}") from None
    if columns is None or not names:
        raise SetupError(f"no images in {root}")
    return Source(
        root,
        names,
        None if columns.label is None else whole_numbers(root, labels),
        columns.class_names,
        ParquetReader(groups, columns.image),
    )


@dataclass(frozen=True)
class Columns:
    """The columns of images and labels; class_names where the file holds them."""

    image: str
    label: str | None
    class_names: list[str]


def find_columns(root: Path, schema: Any) -> Columns:
    """From the data set's own description, else by their usual names."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = about.get("info", {}).get("features", {})
    images = [k for k, v in features.items() if _kind(v) == "Image"]
    labels = [k for k, v in features.items() if _kind(v) == "ClassLabel"]
    images = images or [k for k in IMAGES if k in schema.names]
    labels = labels or [k for k in LABELS if k in schema.names]
    if not images:
        raise SetupError(f"{root} has no column of images (it has {', '.join(schema.names)})")
    class_names = features.get(labels[0], {}).get("names", []) if labels else []
    return Columns(images[0], labels[0] if labels else None, class_names)


def _kind(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


@dataclass(frozen=True)
class Group:
    """A row group: the unit that a parquet file is read in. first: number of its first row."""

    file: Path
    number: int
    first: int


_FORKED = threading.Lock()  # while a reader finds itself in another process


class ParquetReader:
    """Reads the image of a row by its number.

    One after the other, as extraction does, they come from row groups that are kept while in use;
    at random, as training does, each row group is read once for all rows asked for, and no further
    than the last of them.
    """

    KEPT = 2

    def __init__(self, groups: list[Group], column: str):
        self.groups, self.column = groups, column
        self._firsts = np.array([group.first for group in groups])
        self._start()

    def _start(self) -> None:
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock, self._pid = threading.Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"groups": self.groups, "column": self.column}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, index: int) -> bytes:
        with _FORKED:
            if self._pid != os.getpid():
                self._start()
        at = self._group_of(index)
        with self._lock:
            if at not in self._kept:
                with self._column(at) as batches:
                    self._kept[at] = [cell for batch in batches for cell in batch.column(0)]
                while len(self._kept) > self.KEPT:
                    self._kept.popitem(last=False)
            cell = self._kept[at][index - self.groups[at].first]
        return image_bytes(cell)

    def many(self, indices: Sequence[int]) -> list[bytes]:
        """The images of several rows, in the order asked for."""
        wanted: dict[int, list[int]] = {}
        for index in indices:
            wanted.setdefault(self._group_of(index), []).append(index)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found: dict[int, bytes] = {}
            for part in pool.map(self._rows, wanted.keys(), wanted.values()):
                found |= part
        return [found[index] for index in indices]

    def _group_of(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def _rows(self, at: int, indices: Sequence[int]) -> dict[int, bytes]:
        """Some rows of one row group."""
        found, first, waiting = {}, self.groups[at].first, set(indices)
        with self._column(at) as batches:
            for batch in batches:
                last = first + batch.num_rows
                for index in sorted(i for i in waiting if first <= i < last):
                    found[index] = image_bytes(batch.column(0)[index - first])
                    waiting.remove(index)
                first = last
                if not waiting:
                    break
        return found

    @contextmanager
    def _column(self, at: int) -> Iterator[Any]:
        """The images of a row group, a few at a time; DataError where it is damaged."""
        import pyarrow as arrow
        import pyarrow.parquet as pq

        group = self.groups[at]
        try:
            with pq.ParquetFile(group.file, buffer_size=1 << 20) as table:
                column = self.column
                if arrow.types.is_struct(table.schema_arrow.field(column).type):
                    column += ".bytes"  # beside the path of the image
                yield table.iter_batches(16, row_groups=[group.number], columns=[column])
        except (arrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of the disk, not of the file
                raise
            raise DataError(
                f"row group {group.number} of {group.file.name} is damaged: {error}"
            ) from None


def image_bytes(cell: Any) -> bytes:
    """Of a cell: bytes, or a structure that holds them."""
    value = cell.as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DataError("no image bytes in its row")
    return data
