"""Parquet files with image bytes, as Hugging Face data sets come."""

import os
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
from sra2cli.data.sources.columns import Columns, class_numbers, find_columns, of_one_split
from sra2cli.data.sources.layout import Choice, Source
from sra2cli.data.sources.texts import captions_of


def open_parquet(root: Path, files: list[Path], choice: Choice) -> Source:
    """List the rows of one split.

    Raises:
        SetupError: pyarrow is missing, several splits, no column of images, several columns that
            might be meant, or files that do not belong together.
        DataError: a damaged file.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as pq
    except ImportError:
        raise SetupError("parquet files need pyarrow: pip install 'sra2[parquet]'") from None
    files, said = of_one_split(root, files, choice.split)
    names: list[str] = []
    labels: list[Any] = []
    texts: list[Any] = []
    groups: list[Group] = []
    columns: Columns | None = None
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                schema = table.schema_arrow
                about = (schema.metadata or {}).get(b"huggingface")
                found = find_columns(file, [(f.name, str(f.type)) for f in schema], about, choice)
                columns = columns or found
                columns.refuse_other(file, found, files[0])
                for number in range(table.metadata.num_row_groups):
                    rows = table.metadata.row_group(number).num_rows
                    if not 0 <= rows <= file.stat().st_size:
                        raise DataError(f"{file} is damaged: a row group of {rows:,} rows")
                    groups.append(Group(file, number, len(names)))
                    names += [f"{file.name}/{len(names) + k:08d}" for k in range(rows)]
                    for column, values in ((columns.label, labels), (columns.caption, texts)):
                        if column is None:
                            continue
                        part = table.read_row_group(number, columns=[column])
                        values += part.column(0).to_pylist()
                        if len(values) != len(names):
                            raise DataError(f"{file} is damaged: not as many {column} as rows")
        except (arrow.ArrowException, OSError, UnicodeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{file} is damaged or not a parquet file: {reason}") from None
    if columns is None or not names:
        raise SetupError(f"no images in {root}")
    return Source(
        root,
        names,
        None if columns.label is None else class_numbers(root, labels, columns.class_names),
        columns.class_names,
        ParquetReader(groups, columns.image),
        said=said + columns.said,
        captions=None
        if columns.caption is None
        else [captions_of(text, name) for text, name in zip(texts, names, strict=True)],
    )


def rows_of(data: bytes, where: str) -> list[dict[str, Any]]:
    """The rows of a whole file, small ones; SetupError where it is damaged, or pyarrow missing."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as pq
    except ImportError:
        raise SetupError("parquet files need pyarrow: pip install 'sra2[parquet]'") from None
    try:
        rows: list[dict[str, Any]] = pq.read_table(arrow.BufferReader(data)).to_pylist()
        return rows
    except (arrow.ArrowException, OSError, UnicodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SetupError(f"{where} is damaged or not a parquet file: {reason}") from None


@dataclass(frozen=True)
class Group:
    """A row group: the unit that a parquet file is read in. first: number of its first row."""

    file: Path
    number: int
    first: int


SHORT = "its row group holds fewer rows than the file says"
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
            cells, row = self._kept[at], index - self.groups[at].first
        if row >= len(cells):
            raise DataError(SHORT)
        return image_bytes(cells[row])

    def file_of(self, index: int) -> Path:
        """The file of a row."""
        return self.groups[self._group_of(index)].file

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
                    return found
        raise DataError(SHORT)

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
        except (arrow.ArrowException, OSError, KeyError) as error:
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
