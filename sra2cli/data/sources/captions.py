"""Captions of the images of a folder or archive: in files that list them, or beside each image."""

import os
import posixpath
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from sra2cli.core.errors import SetupError
from sra2cli.data.images import LFS
from sra2cli.data.sources.found import Found, Key, after_first_dot
from sra2cli.data.sources.labels import plain
from sra2cli.data.sources.layout import LARGEST
from sra2cli.data.sources.texts import (
    AUTO,
    SUFFIXES,
    TABLES,
    Captions,
    Listed,
    key_of,
    lines_of,
    listed_in,
)

COCO = re.compile(r"captions_.*\.json")
Rule = Callable[[str], str]  # the name of an image → what a name for it must agree with
READERS = 8  # threads that read small files


@dataclass(frozen=True)
class Table:
    """A file that lists captions. name: as messages call it.

    folder: in the source, that the names in it begin in. shard: the archive that it lies in.
    strict: its names begin nowhere else.
    """

    name: str
    data: bytes
    folder: str = ""
    shard: str = ""
    strict: bool = False


def add_captions(found: Found) -> bool:
    """Give the images the captions that the choice asks for; some may be left without.

    Returns:
        whether a file lists them: then folders are no classes.

    Raises:
        SetupError: what is chosen is not there, is damaged, or there are several kinds.
    """
    wanted = found.choice.captions
    if wanted is None:
        return False
    if Path(wanted).suffix.lower() in SUFFIXES:
        _from_tables(found, [_given(found, wanted)], None)
        return True
    tables = [] if wanted in ("txt", "json") else _metadata(found)
    if wanted == AUTO and not tables:
        tables = _coco(found)
    if found.contexts and not tables:
        raise SetupError(
            f"{found.root} holds U-ViT's features of captions, not their texts: give these by "
            "--captions captions_train2014.json (COCO's, of the same split)"
        )
    texts = _beside(found, "txt") if wanted in (AUTO, "txt") else {}
    if tables and texts:
        raise SetupError(
            f"{found.root} holds captions in {tables[0].name} and in .txt files: choose by "
            f"--captions {tables[0].name} or --captions txt"
        )
    if tables:
        _from_tables(found, tables, None if wanted == AUTO else wanted)
        return True
    _from_beside(found, texts, None if wanted in (AUTO, "json") else wanted)
    return False


# Files beside the images.


def _beside(found: Found, suffix: str) -> dict[Key, int]:
    """The file of a suffix of each image's key: KEY.txt, of several that end so."""
    names = found.listing.names
    keys = {found.key(i) for i in found.order}
    files: dict[Key, int] = {}
    for i, name in enumerate(names):
        if not name.lower().endswith(f".{suffix}") or found.key(i) not in keys:
            continue
        exact, other = after_first_dot(name) == suffix, files.setdefault(found.key(i), i)
        if other == i:
            continue
        if exact == (after_first_dot(names[other]) == suffix):
            raise SetupError(
                f"{found.root}: {names[other]} and {name} share their key: name them apart before "
                "the dot"
            )
        files[found.key(i)] = i if exact else other
    return files


def _from_beside(found: Found, texts: dict[Key, int], key: str | None) -> None:
    """A caption a line of KEY.txt, else what KEY.json says. key: of the .json; None: the usual."""
    others = {} if key == "txt" else _beside(found, "json")

    def read(i: int) -> Captions:
        at = found.key(i)
        if at in texts:
            return lines_of(*_named(found, texts[at]))
        return key_of(*_named(found, others[at]), key) if at in others else ()

    with ThreadPoolExecutor(READERS) as pool:
        found.captions = list(pool.map(read, found.order))
    if not any(found.captions):
        return
    for kind, files in (("txt", texts), ("json", others)):
        used = {files[found.key(i)] for i in found.order if found.key(i) in files}
        if used:
            found.taken |= used
            found.said.append(f"the captions are those of {len(used):,} .{kind} files")


def _named(found: Found, index: int) -> tuple[bytes, str]:
    """The bytes of a file, and what messages call it."""
    return found.bytes_of(index), f"{found.root}: {found.listing.names[index]}"


# Files that list them.


def _given(found: Found, wanted: str) -> Table:
    """The file of the user's choice: of the source, or any other."""
    names, file = found.listing.names, Path(wanted)
    if not file.is_file() and wanted in names:
        index = names.index(wanted)
        found.taken.add(index)
        return Table(wanted, found.bytes_of(index), posixpath.dirname(wanted), found.shard(index))
    if not file.is_file():
        raise SetupError(f"--captions {wanted}: there is no such file, nor in {found.root}")
    if file.stat().st_size > LARGEST:
        raise SetupError(f"--captions {wanted} is too large ({file.stat().st_size / 1e9:.1f} GB)")
    data, folder = file.read_bytes(), ""
    if data.startswith(LFS):
        raise SetupError(f"{wanted} is a pointer of Git LFS to the file: git lfs pull")
    if found.root.is_dir() and file.resolve().is_relative_to(found.root.resolve()):
        inside = file.resolve().relative_to(found.root.resolve()).as_posix()
        folder = posixpath.dirname(inside)
        found.taken |= {i for i, name in enumerate(names) if name == inside}
    return Table(wanted, data, folder)


def _metadata(found: Found) -> list[Table]:
    """metadata.* in the folders above images, outer ones first."""
    names = found.listing.names
    above: set[Key] = set()
    for k in found.order:
        folder = names[k]
        while folder and (found.shard(k), folder := posixpath.dirname(folder)) not in above:
            above.add((found.shard(k), folder))
    chosen: dict[Key, int] = {}
    for i, name in enumerate(names):
        folder, base = posixpath.split(name)
        if base.lower() not in TABLES or (found.shard(i), folder) not in above:
            continue
        other = chosen.setdefault((found.shard(i), folder), i)
        if other != i:
            raise SetupError(
                f"{found.root} holds {names[other]} and {name}: choose by --captions "
                f"{found.root / name if found.root.is_dir() else name}"
            )
    found.taken |= set(chosen.values())
    order = sorted(chosen.items(), key=lambda item: (item[0][1].count("/"), item[0]))
    return [
        Table(names[i], found.bytes_of(i), folder, shard, strict=True)
        for (shard, folder), i in order
    ]


def _coco(found: Found) -> list[Table]:
    """COCO's captions_*.json in the source, or in ../annotations; [] if there is none.

    Raises:
        SetupError: several, none of which is called as the folder of the images.
    """
    names, root = found.listing.names, found.root
    files = [i for i, name in enumerate(names) if COCO.fullmatch(posixpath.basename(name))]
    called = {f"captions_{part}.json" for part in (*found.prefix.split("/"), root.name)}
    same = [i for i in files if posixpath.basename(names[i]) in called]
    if not files and root.is_dir():
        annotations = root.absolute().parent / "annotations" / f"captions_{root.name}.json"
        return [_given(found, str(annotations))] if annotations.is_file() else []
    chosen = files if len(files) == 1 else same
    if files and len(chosen) != 1:
        few = ", ".join(names[i] for i in files[:3])
        raise SetupError(f"{root} holds several files of captions ({few}): choose by --captions")
    found.taken |= set(chosen)
    return [Table(names[i], found.bytes_of(i), posixpath.dirname(names[i])) for i in chosen]


def _from_tables(found: Found, tables: list[Table], column: str | None) -> None:
    """Captions by the names of images; of several tables the one in the innermost folder."""
    captions: dict[int, Captions] = {}
    by_path = cache(partial(_images_by, found, plain))
    for table in tables:
        where = table.name if Path(table.name).is_file() else f"{found.root}: {table.name}"
        listed = listed_in(table.data, where, column)
        images = _numbered(found, listed) if found.kind == "latents" else {}
        images = images or _matched(found, table, listed, by_path)
        if not images:
            there = found.listing.names[found.order[0]]
            raise SetupError(
                f"{where} lists no image of {found.root}: its names are as "
                f"{next(iter(listed), 'none')}, not {there}"
            )
        gone = [name for name in listed if name not in images]
        if gone:
            found.said.append(
                f"{len(gone):,} names in {table.name} are of no image here, as {gone[0]}"
            )
        own: dict[int, Captions] = {}  # of one table, whose names may be spelled in several ways
        for name, those in images.items():
            for i in those:
                own[i] = own.get(i, ()) + listed[name]
        captions |= own
    found.captions = [captions.get(i, ()) for i in found.order]
    found.said.append(f"the captions are those of {', '.join(table.name for table in tables)}")


def _matched(
    found: Found, table: Table, listed: Listed, by_path: Callable[[str], dict[str, list[int]]]
) -> dict[str, list[int]]:
    """The images of each name: a path from the table's folder, else from that of the images or the
    root, else what a path ends in, where that is unique. by_path: images of a shard by their paths.
    """
    at = by_path(table.shard)
    bases = [table.folder] if table.strict else [table.folder, found.prefix, ""]
    for base in bases:
        images = {name: at[path] for name in listed if (path := _below(base, name)) in at}
        if images:
            return images
    if table.strict:
        return {}
    at = _images_by(found, _base, table.shard)
    images = {name: at[_base(name)] for name in listed if _base(name) in at}
    return images if sum(map(len, images.values())) == len(set(map(_base, images))) else {}


def _images_by(found: Found, rule: Rule, shard: str) -> dict[str, list[int]]:
    """The images of a shard ("": of all) by what a rule makes of their names."""
    at: dict[str, list[int]] = {}
    for i in found.order:
        if shard in ("", found.shard(i)):
            at.setdefault(rule(found.listing.names[i]), []).append(i)
    return at


def _below(base: str, name: str) -> str:
    return posixpath.normpath(posixpath.join(plain(base), plain(name)))


def _base(name: str) -> str:
    return posixpath.basename(plain(name))


def _numbered(found: Found, listed: Listed) -> dict[str, list[int]]:
    """Latents i.npy, as U-ViT numbers COCO's images by their order; {} for other names.

    Raises:
        SetupError: another number of latents than of images.
    """
    stems = [os.path.splitext(posixpath.basename(found.listing.names[i]))[0] for i in found.order]
    if not all(stem.isdecimal() for stem in stems):
        return {}
    if sorted(map(int, stems)) != list(range(len(listed))):
        raise SetupError(
            f"{found.root} holds {len(stems):,} numbered latents, and the captions are of "
            f"{len(listed):,} images: those of another split?"
        )
    numbers = dict(zip(map(int, stems), found.order, strict=True))
    return {name: [numbers[k]] for k, name in enumerate(listed)}
