"""The images among the files of a listing, and what is found out about them on the way."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.images import LFS, SUFFIXES
from sra2cli.data.sources.layout import Choice, Source, by_suffix, is_image
from sra2cli.data.sources.listing import Listing

Key = tuple[str, str]  # of a WebDataset sample
CONTEXT = re.compile(r"(.*?\d+)_\d+\.npy")
EMPTY_CONTEXT = "empty_context.npy"


@dataclass
class Found:
    """Images on their way to a source.

    Attributes:
        read: the bytes of a file of the listing, by its number.
        order: the images, by their numbers in the listing. names: they are stored under.
        prefix: the folder that the classes lie in, with its slash; "" for the root.
        of_shards: whether each archive is a class.
        contexts: whether features of captions lie beside latents.
        taken: numbers of the other files that were used. The others as of `Source`.
    """

    root: Path
    listing: Listing
    choice: Choice
    read: Callable[[int], Any]
    order: list[int]
    kind: Literal["images", "latents"] = "images"
    prefix: str = ""
    of_shards: bool = False
    contexts: bool = False
    names: list[str] = field(default_factory=list)
    labels: list[int] | None = None
    class_names: list[str] = field(default_factory=list)
    listed: int = 0
    captions: list[tuple[str, ...]] | None = None
    taken: set[int] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def inside(self, names: Sequence[str] | None = None) -> list[str]:
        """Paths from the folder that the classes lie in; by default of the images."""
        names = [self.listing.names[i] for i in self.order] if names is None else names
        return [name[len(self.prefix) :] for name in names if name.startswith(self.prefix)]

    def shard(self, index: int) -> str:
        """The archive a file lies in; "" where there is but one."""
        return self.listing.shards[index] if self.listing.shards else ""

    def key(self, index: int) -> Key:
        """What the files of a WebDataset sample have in common: their name up to the first dot."""
        folder, _, base = self.listing.names[index].rpartition("/")
        return self.shard(index), f"{folder}/{base.split('.')[0]}".removeprefix("/")

    def keep(self, order: list[int], rest: str) -> None:
        """Go on with some of the images. rest: what the others are called."""
        self.pass_over(len(self.order) - len(order), rest)
        self.order = order

    def pass_over(self, count: int, what: str) -> None:
        if count:
            self.passed_over.append(f"{count:,} {what} are passed over")

    def bytes_of(self, index: int) -> bytes:
        """A file beside the images.

        Raises:
            DataError: it cannot be read. SetupError: it was not fetched.
        """
        name = f"{self.root}: {self.listing.names[index]}"
        try:
            data = bytes(self.read(index))
        except (DataError, OSError) as error:
            raise DataError(f"{name} cannot be read: {error}") from None
        if data.startswith(LFS):
            raise SetupError(f"{name} is a pointer of Git LFS to the file: git lfs pull")
        return data

    def source(self, reader: Callable[[int], bytes | np.ndarray]) -> Source:
        """These images. reader: gives what is stored of one, by its place in `order`."""
        listing = self.listing
        rest = set(range(len(listing.names))) - set(self.order) - self.taken
        for names, what in (
            (listing.hidden, "hidden entries"),
            (listing.lost, "links that lead nowhere"),
            (listing.odd, "pipes, devices or links back to a folder they lie in"),
        ):
            if names:
                self.pass_over(len(names), f"{what} (as {min(names)})")
        return Source(
            self.root,
            self.names,
            self.labels,
            self.class_names,
            reader,
            self.kind,
            sorted(listing.names[i] for i in rest if not is_image(listing.names[i])),
            self.said,
            self.passed_over,
            self.listed,
            captions=self.captions,
        )


def find(root: Path, listing: Listing, choice: Choice, read: Callable[[int], Any]) -> Found:
    """The images, or the latents, in a listing.

    Raises:
        SetupError: none, or both.
    """
    names = listing.names
    found = Found(root, listing, choice, read, [i for i, n in enumerate(names) if is_image(n)])
    latents = [i for i, name in enumerate(names) if name.lower().endswith(".npy")]
    keys = {found.key(i) for i in found.order} if latents else set()
    alone = next((i for i in latents if found.key(i) not in keys), None)
    if found.order and alone is not None:  # those of the same key are something of an image
        raise SetupError(
            f"{root} holds latents ({names[alone]}) beside images ({names[found.order[0]]}): "
            "move either away"
        )
    if not found.order:
        found.order, found.kind = latents, "latents"
        _without_contexts(found)
    if choice.image is not None and found.order:
        _choose(found, choice.image.lstrip(".").lower())
    _say_several(found)
    if not found.order:
        kinds = ", ".join(sorted(s[1:] for s in SUFFIXES))
        there = f"; it holds {by_suffix(names)}" if names else ""
        raise SetupError(
            f"no images in {root}: expected CLASS/image or image files ({kinds}){there}"
        )
    return found


def _without_contexts(found: Found) -> None:
    """Leave out the features of captions that U-ViT keeps beside its latents: i_k.npy of i.npy."""
    names = {i: found.listing.names[i] for i in found.order}
    there = set(names.values())
    matches = {i: CONTEXT.fullmatch(name) for i, name in names.items()}
    contexts = {i for i, m in matches.items() if m is not None and f"{m[1]}.npy" in there}
    found.contexts = bool(contexts)
    if contexts:
        contexts |= {i for i, name in names.items() if name.endswith(EMPTY_CONTEXT)}
        rest = [i for i in found.order if i not in contexts]
        found.keep(rest, "text features (U-ViT's i_k.npy)")


def _choose(found: Found, wanted: str) -> None:
    """Of the images of a key, those of one suffix."""
    suffixes = {i: after_first_dot(found.listing.names[i]) for i in found.order}
    if wanted not in suffixes.values():
        there = ", ".join(sorted(set(suffixes.values()))[:5])
        raise SetupError(f"--image {wanted}: no image of {found.root} ends so; there are {there}")
    found.keep([i for i in found.order if suffixes[i] == wanted], f"images but .{wanted}")


def _say_several(found: Found) -> None:
    """Say it if every sample has several images, as 0.jpg and 0.mask.jpg."""
    suffixes = {after_first_dot(found.listing.names[i]) for i in found.order}
    if not 1 < len(suffixes) < 9 or len(found.order) % len(suffixes) != 0:
        return
    samples = len({found.key(i) for i in found.order})
    if samples > 1 and samples * len(suffixes) == len(found.order):
        found.said.append(
            f"all images of a name are read ({', '.join(sorted(suffixes))}): one of each by "
            f"--image {min(suffixes)}"
        )


def after_first_dot(name: str) -> str:
    """What tells the files of a WebDataset sample apart: seg.png of 0001.seg.png."""
    return name.rpartition("/")[2].partition(".")[2].lower()
