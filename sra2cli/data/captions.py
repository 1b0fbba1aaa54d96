"""Captions of a store: their texts, token ids, and features where these are stored.

Data sets (N source rows, M captions of all of them, in the order of the rows)
    captions          (bytes,) uint8    all texts, one after the other, UTF-8
    caption_ends      (M,) int64        where each ends
    caption_first     (N + 1,) int64    the number of each row's first caption; at last M
    caption_ids       (M, L) uint16, or int32 for large vocabularies   padded and truncated
    caption_features  (M, L, E) float16      with --text-features, and then
    caption_state     (M,) uint8             0 not written, 1 good
    null_caption      (1, L, E)  features of "", float32; float16 where features are stored
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sra2cli.core.errors import DataError
from sra2cli.data.mapped_rows import MappedRows
from sra2cli.data.store_layout import Extent


@dataclass(frozen=True)
class Packed:
    """Texts of captions in one array. text: (bytes,) uint8; ends: (M,); first: (N + 1,) int64."""

    text: np.ndarray
    ends: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]]) -> "Packed":
        """From those of each row, one or more."""
        parts = [caption.encode() for those in captions for caption in those]
        text = np.frombuffer(b"".join(parts) or b"\0", np.uint8)  # a data set is never empty
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        counts = np.array([0, *(len(those) for those in captions)], np.int64)
        return cls(text, ends, np.cumsum(counts))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        start = self.ends[number - 1] if number else 0
        return bytes(self.text[start : self.ends[number]]).decode("utf-8", "replace")

    def row_of(self, number: int) -> int:
        """The row that a caption is of."""
        return int(np.searchsorted(self.first, number, side="right")) - 1

    def same(self, other: "Packed") -> bool:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Text:
    """What a store with captions is laid out with.

    tokens: captions → ids (n, L). null: → features of the empty caption, (L, E).
    """

    captions: Packed
    tokens: Callable[[Sequence[str]], np.ndarray]
    null: Callable[[], np.ndarray]


class Captions:
    """Those of a store. Rows are numbers among its good images; captions are numbered through.

    Attributes:
        rows: of the good images, among all. null: (L, E) float32, features of the empty caption.
    """

    def __init__(self, path: Path, extents: Mapping[str, Extent], rows: np.ndarray):
        self.path, self.rows = path, rows
        self._packed = packed_in(path, extents)
        self._ids = extents["caption_ids"].map(path, "r")
        stored = extents.get("caption_features")
        self._features = None if stored is None else MappedRows(path, stored)
        null = np.array(extents["null_caption"].map(path, "r")[0], np.float32)
        self.null: Tensor = torch.from_numpy(null)

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def has_features(self) -> bool:
        """Whether features are stored; else the encoder runs in the step."""
        return self._features is not None

    def pick(self, rows: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """For each row the number of one of its captions, each as likely.

        Args:
            rows: (n,). uniforms: (n,) in [0, 1).
        """
        first = self._packed.first[self.rows[rows]]
        count = self._packed.first[self.rows[rows] + 1] - first
        which = np.floor(np.asarray(uniforms, np.float64) * count).astype(np.int64)
        picked: np.ndarray = first + np.minimum(which, count - 1)  # 1 - 1e-17 rounds to 1
        return picked

    def of(self, row: int) -> list[str]:
        """The captions of a row, in their order."""
        first, end = self._packed.first[self.rows[row] : self.rows[row] + 2]
        return [self.text(number) for number in range(first, end)]

    def hold(self, packed: Packed) -> bool:
        """Whether these are the captions of all rows."""
        return self._packed.same(packed)

    def text(self, number: int) -> str:
        return self._packed[number]

    def ids(self, numbers: np.ndarray) -> Tensor:
        """Token ids (n, L) int64."""
        return torch.from_numpy(self._ids[numbers].astype(np.int64))

    def features(self, numbers: np.ndarray, *, pin: bool = False) -> Tensor:
        """Features (n, L, E) as stored, in float16.

        Raises:
            DataError: the store holds none.
        """
        if self._features is None:
            raise DataError(f"{self.path} holds no text features (extract with --text-features)")
        out = self._features.room(len(numbers), pin=pin)
        self._features.read(np.asarray(numbers), out)
        return out


def packed_in(path: Path, extents: Mapping[str, Extent]) -> Packed:
    """The texts in a file; the text itself stays there."""
    ends, first = (np.array(extents[k].map(path, "r")) for k in ("caption_ends", "caption_first"))
    return Packed(extents["captions"].map(path, "r"), ends, first)
