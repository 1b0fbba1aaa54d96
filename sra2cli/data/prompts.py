"""Prompts: which text image i is drawn of, and what the network is told of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sra2cli.core import clock, console
from sra2cli.core.clock import Purpose
from sra2cli.core.errors import SetupError
from sra2cli.data.store import Store
from sra2cli.data.store_info import StoreInfo
from sra2cli.encoders.text import TextEncoder, load_text_encoder
from sra2cli.models.condition import Condition


@dataclass(frozen=True)
class Prompts:
    """What images are drawn of: image i of one of `choices[i % len]`, drawn from (seed, i).

    Attributes:
        choices: texts, of which an image has one.
        negative: what guidance leads away from; None: the empty caption.
        encoder: what makes their features; None: not opened yet.
    """

    choices: Sequence[Sequence[str]]
    negative: str | None = None
    encoder: TextEncoder | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def about(self) -> dict[str, Any]:
        """What is recorded of them, wherever they are from: whatever changes a picture."""
        found = {"count": len(self), "sha256": self.digest}
        return found if self.negative is None else {**found, "negative": self.negative}

    @property
    def digest(self) -> str:
        """Of all that tells two sets of prompts apart."""
        every = [self.negative, *(list(several) for several in self.choices)]
        return hashlib.sha256(json.dumps(every).encode()).hexdigest()[:16]

    def texts(self, indices: Sequence[int], seed: int) -> list[str]:
        """The prompt of each of these images: a function of (seed, i)."""
        return [self._text(i, seed) for i in indices]

    def _text(self, index: int, seed: int) -> str:
        several = self.choices[index % len(self)]
        if len(several) == 1:
            return several[0]
        return several[int(clock.generator(seed, Purpose.CAPTION, 0, index).integers(len(several)))]

    def encoded_by(self, encoder: TextEncoder) -> "Prompts":
        """The same, with what makes their features."""
        return replace(self, encoder=encoder)

    def led_away_from(self, count: int) -> Condition | None:
        """The negative prompt, for so many images; None: there is none."""
        return None if self.negative is None else self.condition([self.negative] * count)

    def condition(self, texts: Sequence[str]) -> Condition:
        """What a network is told of texts: (len(texts), L, E), on the encoder's device."""
        if self.encoder is None:
            raise SetupError("prompts need a text encoder: --text-encoder")
        tokens = torch.from_numpy(self.encoder.tokens(texts))
        return Condition(text=self.encoder.encode(tokens))


def of_texts(texts: Sequence[str], negative: str | None = None) -> Prompts:
    """As given one by one."""
    return Prompts([[text] for text in texts], negative)


def read_prompts(source: Path, negative: str | None = None) -> Prompts:
    """Of a text file, a prompt on each line; or the captions of a latent store, image by image.

    Raises:
        SetupError: no such file, or nothing in it. DataError: a damaged store.
    """
    if source.suffix in (".h5", ".hdf5"):
        return of_store(Store(source), negative=negative)
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise SetupError(f"--prompts {source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SetupError(f"--prompts {source} is no text in UTF-8, and no latent store") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise SetupError(f"--prompts {source} holds no prompt: one on each line is expected")
    return Prompts([[text] for text in texts], negative)


def of_store(store: Store, *, negative: str | None = None, spread: int | None = None) -> Prompts:
    """The captions of a store: image i is drawn of a caption of its i-th image.

    Args:
        spread: so many images, evenly spread over the store; None: all.
    """
    if store.captions is None:
        raise SetupError(f"{store.path} has no captions: extract with --text-encoder")
    count = len(store)
    rows = range(count) if spread is None else [k * count // spread for k in range(spread)]
    return Prompts([store.captions.of(row) for row in rows], negative)


def told_in(
    store: Store, *, device: torch.device | str, offline: bool, spread: int | None = None
) -> Prompts:
    """`of_store`, with the text encoder of its captions. Raises as `text_encoder_of`."""
    encoder = text_encoder_of(store.info, device=device, offline=offline)
    return of_store(store, spread=spread).encoded_by(encoder)


def text_encoder_of(info: StoreInfo, *, device: torch.device | str, offline: bool) -> TextEncoder:
    """The text encoder of a store's captions; SetupError where there is none, or another now."""
    encoder = load_text_encoder(info.text_encoder, device=device, offline=offline)
    if encoder.fingerprint != info.text_fingerprint:
        raise SetupError(
            f"text encoder '{info.text_encoder}' ({encoder.fingerprint}) is not what this store's "
            f"captions were encoded with ({info.text_fingerprint}): bring that back, or extract "
            "again"
        )
    return encoder


def say_cut(prompts: Prompts, indices: Sequence[int], seed: int) -> None:
    """Warn of prompts that are longer than their encoder reads."""
    assert prompts.encoder is not None
    texts = list(dict.fromkeys(prompts.texts(indices, seed)))
    cut = [text for text, long in zip(texts, prompts.encoder.too_long(texts), strict=True) if long]
    if cut:
        console.warn(
            f"{len(cut):,} prompts are longer than the {prompts.encoder.length} tokens that "
            f"'{prompts.encoder.name}' reads, and cut there, as '{cut[0][:60]}'"
        )
