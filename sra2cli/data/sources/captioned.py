"""A source whose images all have captions: others are refused, or left out and counted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli.core.errors import SetupError
from sra2cli.data.sources.layout import SKIP, Choice, Source

FEW = 5  # names in a message


def captioned(source: Source, choice: Choice) -> Source:
    """The images with captions, where the choice asks for these.

    Raises:
        SetupError: images without one, unless they are to be left out.
    """
    if choice.captions is None:
        if choice.uncaptioned is not None:
            raise SetupError("--skip-uncaptioned is for images with --captions")
        return source
    count = len(source)
    if source.captions is None or not any(source.captions):
        raise SetupError(
            f"{source.root} holds no captions, by --captions {choice.captions} (looked for are "
            "NAME.txt or NAME.json beside images, metadata.jsonl, .csv or .parquet, COCO's "
            "captions_*.json, and columns of parquet): --captions FILE, or COLUMN"
        )
    kept = [i for i, those in enumerate(source.captions) if those]
    bare = [source.names[i] for i, those in enumerate(source.captions) if not those]
    if bare and choice.uncaptioned != SKIP:
        few = ", ".join(bare[:FEW]) + (", …" if len(bare) > FEW else "")
        raise SetupError(
            f"{source.root}: {len(bare):,} of {count:,} images have no caption ({few}): write "
            "them, or leave these images out by --skip-uncaptioned"
        )
    passed_over, said = list(source.passed_over), list(source.said)
    if bare:
        passed_over.append(f"{len(bare):,} images without a caption are left out, as {bare[0]}")
    empty = [source.names[i] for i in kept if "" in source.captions[i]]
    if empty:
        number = sum(those.count("") for those in source.captions)
        said.append(f"{number:,} captions are empty, as of {empty[0]}: they are the null caption")
    source = replace(source, said=said, passed_over=passed_over, uncaptioned=len(bare))
    return _part(source, kept) if bare else source


def _part(source: Source, rows: list[int]) -> Source:
    """Some images of a source; its classes stay."""
    assert source.captions is not None
    labels = source.labels
    return replace(
        source,
        names=[source.names[i] for i in rows],
        labels=None if labels is None else [labels[i] for i in rows],
        captions=[source.captions[i] for i in rows],
        listed=source.classes if labels is not None else 0,
        reader=PartReader(source.reader, rows),
    )


@dataclass(frozen=True)
class PartReader:
    """Reads some images of a source, by their numbers among these."""

    reader: Callable[[int], bytes | np.ndarray]
    rows: list[int]

    def __call__(self, index: int) -> bytes | np.ndarray:
        return self.reader(self.rows[index])

    @property
    def file_of(self) -> Callable[[int], Path] | None:
        """The file of an image, as the source's own reader has it, if it has."""
        file_of = getattr(self.reader, "file_of", None)
        return None if file_of is None else lambda index: file_of(self.rows[index])

    @property
    def many(self) -> Callable[[Any], Any] | None:
        """Several images, as the source's own reader has it, if it has."""
        many = getattr(self.reader, "many", None)
        return None if many is None else lambda indices: many([self.rows[i] for i in indices])
