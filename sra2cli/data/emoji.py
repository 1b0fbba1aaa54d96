"""Captioned colour pictures that need no download: the emoji of the Noto font.

3,284 pictures of 64x64 with Unicode's names as captions, ten classes, and a split: of every person
or hand that is drawn in five skin tones one is held out ("test"), so that every word of a held-out
caption, and every thing it names, is in the training part, but not together. tools/make_emoji.py
draws them; the font and its drawings are Google's, the names Unicode's (assets/emoji/NOTICE.txt).
"""

import csv
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from sra2cli.core import pictures
from sra2cli.core.files import write_atomically
from sra2cli.data.images import read_image

ASSETS = Path(__file__).parents[1] / "assets"
SHEET = ASSETS / "emoji" / "emoji.webp"  # the pictures in rows of COLUMNS
TABLE = ASSETS / "emoji" / "emoji.csv"  # caption, class and split of each
SIDE, COLUMNS = 64, 64
RESOLUTION = 32  # what the packaged first stage and the scorer know
FIRST_STAGE = "1844fa1277cba4eb"  # fingerprint of the packaged one
CLASSES = (  # in the order of class folders
    *("activities", "faces", "flags", "food", "hands"),
    *("nature", "objects", "people", "symbols", "travel"),
)
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_TONE = re.compile(rf"(?:: |, )({'|'.join(TONES)}) skin tone(?=$|,)")

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Emoji:
    """Pictures (N, side, side, 3) uint8, captions, classes (N,) in CLASSES, held out (N,) bool."""

    images: np.ndarray
    captions: list[str]
    labels: np.ndarray
    held_out: np.ndarray

    def part(self, split: Split) -> "Emoji":
        """The pictures to train on, or those held out, in their order."""
        rows = np.flatnonzero(self.held_out == (split == "test"))
        captions = [self.captions[i] for i in rows]
        return Emoji(self.images[rows], captions, self.labels[rows], self.held_out[rows])


@cache
def table() -> tuple[tuple[str, str, Split], ...]:
    """Caption, class and split of every picture, in the sheet's order."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        (row["caption"], row["class"], "test" if row["split"] == "test" else "train")
        for row in rows
    )


def load_emoji(resolution: int = RESOLUTION) -> Emoji:
    """All pictures, in Unicode's order.

    Args:
        resolution: 64, as they are packaged, or 32: the mean of every 2x2 pixels, rounded.
    """
    assert resolution in (32, SIDE), resolution
    rows = table()
    sheet = Image.fromarray(read_image(SHEET))
    if resolution < SIDE:
        sheet = sheet.reduce(SIDE // resolution)
    pixels = np.asarray(sheet).reshape(-1, resolution, COLUMNS, resolution, 3)
    images = pixels.transpose(0, 2, 1, 3, 4).reshape(-1, resolution, resolution, 3)[: len(rows)]
    return Emoji(
        images.copy(),
        [caption for caption, _, _ in rows],
        np.array([CLASSES.index(name) for _, name, _ in rows]),
        np.array([split == "test" for _, _, split in rows]),
    )


def tone_of(caption: str) -> tuple[str, str]:
    """A caption without its skin tone, and the tone; "" where there is none.

    "man: dark skin tone, beard" → "man: beard", "dark".
    """
    found = _TONE.search(caption)
    if found is None:
        return caption, ""
    rest = caption[found.end() :]
    return caption[: found.start()] + rest.replace(",", ":", 1), found[1]


def write_folder(
    root: Path, *, form: Literal["text", "class"], resolution: int = RESOLUTION
) -> None:
    """The pictures as PNGs, named by their place in the sheet; those that are there stay.

    text: root/train and root/test, each with a metadata.jsonl (file_name, text).
    class: root/CLASS, of the training part alone.
    """
    emoji = load_emoji(resolution)
    lines: dict[Split, list[str]] = {"train": [], "test": []}
    for i, (caption, name, split) in enumerate(table()):
        file = f"{i:04d}.png"
        if form == "class" and split == "test":
            continue
        path = root / (split if form == "text" else name) / file
        lines[split].append(json.dumps({"file_name": file, "text": caption}, ensure_ascii=False))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures.save(Image.fromarray(emoji.images[i]), path)
    if form == "text":
        for split, rows in lines.items():
            write_atomically(root / split / "metadata.jsonl", "\n".join(rows) + "\n")
