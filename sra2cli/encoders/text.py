"""Frozen text encoders: captions → token ids → features of a fixed length, (L, E) each."""

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ASCII = "".join(chr(i).lower() if chr(i).isalnum() else " " for i in range(128))


class TextEncoder(ABC):
    """Captions to token ids, and ids to features; the ids alone decide the features.

    Attributes:
        name: as it was asked for. fingerprint: hash of what decides ids and features.
        length: L, tokens of a caption. width: E of the features. vocabulary: the largest id, plus
            one. device: where features are made.
    """

    name: str
    fingerprint: str
    length: int
    width: int
    vocabulary: int
    device: torch.device

    @abstractmethod
    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids (n, L) int64, padded, and cut where `too_long`."""

    @abstractmethod
    def too_long(self, captions: Sequence[str]) -> list[bool]:
        """Whether each caption has more tokens than L, so that `tokens` cuts it."""

    @abstractmethod
    def encode(self, ids: Tensor) -> Tensor:
        """Ids (n, L) → features (n, L, E) float32 on the device, without gradients."""


class Words(TextEncoder):
    """Words as frozen random vectors: needs no download, and tells word from word, no more.

    A word is a run of Unicode letters and digits, after NFC and in lower case; all else separates,
    so "woman biking: medium skin tone" has 5. Its id is the first 31 bits of its SHA-256; its
    features are 128 standard normals of a Philox generator keyed by the id. The first 12 words
    count, in order; padding is id 0 with features 0, and so is every token of an empty caption.
    """

    DEFINITION = (
        "words 1: NFC, lower, [^\\W_]+; SHA-256 of UTF-8, first 4 bytes big-endian >> 1, 0 is 1; "
        "12 of them, then 0; Philox key (id, 0), 128 float32 standard normals; 0 is zeros"
    )

    def __init__(self, device: torch.device):
        self.name, self.device = "words", device
        self.length, self.width, self.vocabulary = 12, 128, 2**31
        self.fingerprint = hashlib.sha256(self.DEFINITION.encode()).hexdigest()[:16]
        self._rows = {0: 0}  # id → row of the table of those met so far
        self._table = torch.zeros(1, self.width, device=device)

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        rows = [_words(caption)[: self.length] for caption in captions]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        ids = np.zeros((len(captions), self.length), dtype=np.int64)
        ids[np.arange(self.length) < lengths[:, None]] = [_word_id(w) for row in rows for w in row]
        return ids

    def too_long(self, captions: Sequence[str]) -> list[bool]:
        return [len(_words(caption)) > self.length for caption in captions]

    def encode(self, ids: Tensor) -> Tensor:
        met, where = np.unique(ids.cpu().numpy(), return_inverse=True)
        new = [int(i) for i in met if int(i) not in self._rows]
        if new:
            vectors = np.stack([_word_vector(i, self.width) for i in new])
            for i in new:
                self._rows[i] = len(self._rows)
            self._table = torch.cat([self._table, torch.from_numpy(vectors).to(self.device)])
        rows = np.array([self._rows[int(i)] for i in met], dtype=np.int64)[where]
        return self._table[torch.from_numpy(rows.reshape(ids.shape)).to(self.device)]


def _words(caption: str) -> list[str]:
    if caption.isascii():  # the same, in a third of the time
        return caption.translate(ASCII).split()
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", caption).lower())


@lru_cache(1 << 16)  # most words of captions are the same few
def _word_id(word: str) -> int:
    """31 bits, so that ids fit int32; never 0, which is padding."""
    return (int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") >> 1) or 1


def _word_vector(word_id: int, width: int) -> np.ndarray:
    philox = np.random.Philox(key=np.array([word_id, 0], dtype=np.uint64))
    return np.random.Generator(philox).standard_normal(width, dtype=np.float32)


def load_text_encoder(
    name: str, *, device: torch.device | str = "cpu", offline: bool = False
) -> TextEncoder:
    """Open a text encoder: "words" (packaged), or a CLIP or T5 by hub name or folder.

    Args:
        offline: never touch the network; a hub name must then be in the local cache.

    Raises:
        SetupError: transformers is missing, there is no such encoder, or its weights are not
            complete, or it has no tokenizer.
        DataError: weights that are not finite.
    """
    if name == "words":
        return Words(torch.device(device))
    from sra2cli.encoders.text_networks import load_pretrained  # which needs this contract

    return load_pretrained(name, torch.device(device), offline=offline)
