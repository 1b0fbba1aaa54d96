"""Order and classes of images: by the same rules for all that holds files."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sra2cli.core.errors import SetupError
from sra2cli.data.sources.captions import add_captions
from sra2cli.data.sources.found import Found, find
from sra2cli.data.sources.labels import from_files
from sra2cli.data.sources.layout import DATASET, UNLABELLED, Choice
from sra2cli.data.sources.listing import Listing
from sra2cli.data.sources.splits import descend


def lay_out(
    root: Path,
    listing: Listing,
    choice: Choice,
    read: Callable[[int], Any],
    *,
    dataset: bytes | None = None,
) -> Found:
    """Order, labels and captions, from the paths of the files and from files beside the images.

    Sorted by class, then by name. Class folders are the first part of a path, below folders that
    hold everything; images that lie in no folder have no labels, nor those whose captions a file
    lists.

    Args:
        read: the bytes of a file of the listing, by its number.
        dataset: a dataset.json that lies elsewhere.

    Raises:
        SetupError: no images, several ways to read them, labels that do not fit, or a choice that
            means nothing here.
        DataError: a file of labels that cannot be read.
    """
    found = find(root, listing, choice, read)
    descend(found)
    _sort(found)
    listed = add_captions(found)
    if listed and choice.label is None and choice.classes_from is None:
        return found  # folders are of no meaning then
    if choice.label != UNLABELLED and not from_files(found, dataset):
        _from_folders(found)
    return found


def _sort(found: Found) -> None:
    """By class folders, then by name; archives in their order."""
    inner = dict(zip(found.order, found.inside(), strict=True))
    flat = all("/" not in name for name in inner.values())
    full = inner
    if found.listing.shards:
        full = {i: f"{found.shard(i)}/{name}" for i, name in inner.items()}
        found.of_shards = flat and found.choice.classes_from == "folders"
    keys = {i: full[i].split("/") for i in found.order}
    if found.listing.shards and not flat:
        keys = {i: [inner[i].split("/")[0], *keys[i]] for i in found.order}
    found.order.sort(key=keys.__getitem__)
    found.names = [full[i] for i in found.order]
    if all("\\" in name and "/" not in name for name in found.names):
        raise SetupError(
            f"{found.root}: the names hold backslashes ({found.names[0]}), as paths of Windows: "
            "put the images into folders"
        )


def _from_folders(found: Found) -> None:
    """Labels from class folders; none where the images lie in no folder."""
    root, every = found.root, found.choice.classes_from == "folders"
    names = found.names if found.of_shards else found.inside()
    flat = [name for name in names if "/" not in name]
    if flat and len(flat) < len(names):
        nested = next(name for name in names if "/" in name)
        raise SetupError(
            f"{root} holds images ({flat[0]}) beside class folders ({nested.split('/')[0]}): "
            "move either away"
        )
    if flat and every:
        raise SetupError(f"--classes-from folders: {root} holds no folders of images")
    if flat:
        if found.listing.shards:
            found.said.append(
                "the archives are parts of one set; where each is a class, --classes-from folders"
            )
        return
    if found.kind == "latents":
        raise SetupError(f"{root} holds latents in folders, but no {DATASET} with their labels")
    tops = [name.removesuffix("/" + name.rpartition("/")[2]) for name in names]
    if not found.of_shards:
        tops = [name.split("/")[0] for name in names]
    deep = next((name for name in names if name.count("/") > 1), None)
    if deep is not None and not found.of_shards:
        found.said.append(
            f"the classes are the outer folders: {deep} is of class {deep.split('/')[0]}"
        )
    number = {name: i for i, name in enumerate(_classes(found, set(tops)))}
    found.class_names, found.labels = list(number), [number[top] for top in tops]


def _classes(found: Found, filled: set[str]) -> list[str]:
    """The names of the classes in order. filled: those with images."""
    there = found.listing.folders + found.listing.lost
    folders = {name.split("/")[0] for name in found.inside(there)} - {""}
    if found.of_shards:
        folders = set(found.listing.every_shard)
    empty = sorted(folders - filled)
    if empty and found.choice.classes_from != "folders":
        raise SetupError(
            f"{found.root / found.prefix / empty[0]} holds no images: without it, {len(filled)} "
            "classes are numbered; put its images there, move the folder away, or count it as a "
            "class by --classes-from folders"
        )
    names = sorted(filled | folders)
    if len({unicodedata.normalize("NFC", name) for name in names}) < len(names):
        raise SetupError(
            f"{found.root} holds class folders whose names differ in the form of their accents "
            "alone: put their images together"
        )
    alike = {name.casefold(): name for name in names}
    if len(alike) < len(names):
        one = next(name for name in names if alike[name.casefold()] != name)
        found.said.append(f"{one} and {alike[one.casefold()]} are two classes")
    if all(name.isdecimal() for name in names):
        other = next((k for k, name in enumerate(names) if int(name[:18]) != k), None)
        if other is not None:
            found.said.append(
                "class folders are numbered in the order of their names, as torchvision does: "
                f"folder {names[other]} is class {other}"
            )
    return names
