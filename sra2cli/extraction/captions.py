"""Captions of an extraction: which encoder reads them, what the store says of them, features."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sra2cli.core import console
from sra2cli.core.errors import SetupError
from sra2cli.core.processes import Group
from sra2cli.data.captions import Packed, Text
from sra2cli.data.sources import Choice, Source
from sra2cli.data.sources.texts import AUTO
from sra2cli.data.store_info import StoreInfo
from sra2cli.data.store_writer import StoreWriter
from sra2cli.encoders.text import TextEncoder, load_text_encoder
from sra2cli.extraction.makers import Options

BLOCK = 128  # captions of a pass: always as many, so that the same kernels run


@dataclass(frozen=True)
class Captioning:
    """The captions of all rows, and what reads them."""

    captions: Packed
    encoder: TextEncoder

    @property
    def text(self) -> Text:
        """What a store is laid out with."""
        return Text(self.captions, self.encoder.tokens, self.null)

    def null(self) -> np.ndarray:
        """Features (L, E) of the empty caption."""
        return self.encode(self.encoder.tokens([""]))[0]

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """Features (n, L, E) of ids (n, L), n <= BLOCK: one pass, filled up."""
        filled = np.concatenate([ids, np.repeat(ids[-1:], BLOCK - len(ids), axis=0)])
        found = self.encoder.encode(torch.from_numpy(filled.astype(np.int64)))
        features: np.ndarray = found[: len(ids)].cpu().numpy()
        return features

    def fill(self, writer: StoreWriter, group: Group) -> None:
        """Store the features that are not there yet and belong to this process."""
        blocks = range(0, len(self.captions), BLOCK)
        to_do = set(writer.captions_to_do // BLOCK)
        mine = [first for first in blocks[group.rank :: group.count] if first // BLOCK in to_do]
        if not mine:
            return
        with console.progress("captions", len(mine), unit="blocks") as bar:
            for first in mine:
                numbers = np.arange(first, min(first + BLOCK, len(self.captions)))
                writer.write_captions(numbers, self.encode(writer.caption_ids(numbers)))
                bar.advance()


def choice_of(options: Options) -> Choice:
    """How the source is read: with a text encoder, captions are looked for.

    Raises:
        SetupError: captions or their features without an encoder that reads them.
    """
    choice = options.choice
    if options.text_encoder is not None:
        return replace(choice, captions=choice.captions or AUTO)
    if choice.captions is not None or options.text_features:
        given = "--text-features" if options.text_features else "--captions"
        raise SetupError(
            f"{given} needs a text encoder: --text-encoder words (nothing to download), or a CLIP "
            "or T5, as openai/clip-vit-large-patch14"
        )
    return choice


def captioning(source: Source, options: Options, group: Group) -> Captioning | None:
    """The captions and their encoder, where one was asked for."""
    if options.text_encoder is None:
        return None
    assert source.captions is not None
    encoder = load_text_encoder(options.text_encoder, device=group.device, offline=options.offline)
    return Captioning(Packed.of(source.captions), encoder)


def declared(info: StoreInfo, found: Captioning, source: Source, *, features: bool) -> StoreInfo:
    """What the store says of itself with captions in it."""
    encoder = found.encoder
    return replace(
        info,
        text_encoder=encoder.name,
        text_fingerprint=encoder.fingerprint,
        text_tokens=encoder.length,
        text_width=encoder.width,
        text_vocabulary=encoder.vocabulary,
        text_features=features,
        uncaptioned=source.uncaptioned,
    )


def cut(source: Source, found: Captioning) -> list[str]:
    """A line if the encoder does not read the end of captions."""
    assert source.captions is not None
    encoder = found.encoder
    long = np.flatnonzero(encoder.too_long([text for those in source.captions for text in those]))
    if not len(long):
        return []
    first = source.names[found.captions.row_of(int(long[0]))]
    return [
        f"{len(long):,} captions are longer than the {encoder.length} tokens that '{encoder.name}' "
        f"reads, as of {first}: it does not see their ends (the store keeps them)"
    ]


def said(info: StoreInfo, count: int) -> str:
    """How many captions there are, and what their features take."""
    if not info.text_features:
        return f"{count:,} captions, {count * info.caption_bytes / 1e6:.3g} MB of token ids"
    shape = f"{count:,} x {info.text_tokens} x {info.text_width}"
    return f"text features: {shape} in float16, {count * info.caption_bytes / 1e9:.3g} GB"


def shown(count: int, info: StoreInfo) -> dict[str, Any]:
    """What results say of captions; {} without any."""
    if not count:
        return {}
    return {
        "captions": count,
        "uncaptioned": info.uncaptioned,
        "text_encoder": info.text_encoder,
        "text_features": info.text_features,
    }
