"""Zip and tar files: of an image folder, or WebDataset shards; read in place, in any order."""

import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources.classes import lay_out
from sra2cli.data.sources.layout import Choice, FileReader, Source, check_size
from sra2cli.data.sources.listing import Broken, Link, Listing, Tree
from sra2cli.data.sources.splits import of_one_split

DAMAGED = (  # what the libraries raise of a damaged file
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tarfile.TarError, EOFError),
    *(RuntimeError, ValueError, OverflowError, IndexError, KeyError),
)
HEADER = 1 << 24  # bytes of the longest header of a tar member
SPANNED = b"PK00"  # what a zip begins with that was once to be split
PATH = 1 << 12  # of the longest path


def open_zip(path: Path, choice: Choice) -> Source:
    """A zip of an image folder."""
    tree = Tree(path)
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
            check_zip(path, infos)
            for info in infos:
                name = info.filename.replace("\\", "/")  # as some tools of Windows write
                item: Any = info.filename
                if stat.S_ISLNK(info.external_attr >> 16) and info.file_size < PATH:
                    item = Link(os.fsdecode(file.read(info)))
                tree.add(name, None if name.endswith("/") else item)
    except DAMAGED as error:
        raise DataError(f"{path} is damaged or not a zip file: {error}") from None
    listing = tree.listing()
    layout = lay_out(path, listing, choice, ZipReader(path, listing.items))
    if any("\\" in info.filename for info in infos):
        layout.said.append("names with backslashes are taken as paths")
    return layout.source(ZipReader(path, [listing.items[i] for i in layout.order]))


def check_zip(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse bytes before the first entry and behind the end: of several zips in one file only the
    last is read."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    comment = int.from_bytes(tail[end + 20 : end + 22], "little")
    behind = len(tail[end + 22 + comment :].rstrip(b"\0"))
    before = min((info.header_offset for info in infos), default=0)
    before = 0 if before == len(SPANNED) else before
    if behind > 0 or before > 0:
        where = "behind its end" if behind > 0 else "before its first entry"
        raise DataError(
            f"{path}: {max(behind, before):,} bytes lie {where}: if several zip files were put "
            "into one, give them one by one"
        )


class ZipReader(FileReader):
    """Reads an entry by its number. names: of the entries in the file, or why there is none."""

    def open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def __call__(self, index: int) -> bytes:
        file: zipfile.ZipFile = self.file
        name: Any = self.names[index]
        if isinstance(name, Broken):
            raise DataError(name.why)
        try:
            size = file.getinfo(name).file_size
            check_size(size)
            with file.open(name) as entry:
                data = entry.read(size)  # no further than it is said to go
        except DAMAGED as error:
            raise DataError(f"damaged in the zip file: {error}") from None
        if len(data) < size:
            raise DataError("damaged in the zip file: cut off")
        return data


@dataclass(frozen=True)
class Member:
    """Where the bytes of a tar member lie; gone: why there are none."""

    shard: int
    offset: int = 0
    size: int = 0
    gone: str = ""


@dataclass(frozen=True)
class TarReader:
    """Reads a member by its number."""

    shards: list[Path]
    members: list[Member]

    def file_of(self, index: int) -> Path:
        """The shard of an image."""
        return self.shards[self.members[index].shard]

    def __call__(self, index: int) -> bytes:
        member = self.members[index]
        if member.gone:
            raise DataError(member.gone)
        check_size(member.size)
        with self.shards[member.shard].open("rb", buffering=0) as f:
            data = os.pread(f.fileno(), member.size, member.offset)
        if len(data) < member.size:
            raise DataError("cut off by the end of its tar file")
        return data


def open_tars(root: Path, shards: list[Path], choice: Choice) -> Source:
    """A tar of an image folder, or tars of WebDataset samples."""
    shards, choice, said = of_one_split(root, shards, choice)
    labels = shard_names(shards)
    every = Listing(every_shard=labels)
    for number, shard in enumerate(shards):
        found = list_tar(shard, number)
        every.names += found.names
        every.items += found.items
        every.folders += found.folders
        every.hidden += found.hidden
        every.lost += found.lost
        every.odd += found.odd
        every.shards += [labels[number]] * len(found.names) if len(shards) > 1 else []
    layout = lay_out(root, every, choice, TarReader(shards, every.items))
    layout.passed_over += said
    return layout.source(TarReader(shards, [every.items[i] for i in layout.order]))


def list_tar(shard: Path, number: int) -> Listing:
    """What a tar holds. number: of the tar."""
    tree, odd = Tree(shard), []
    size = shard.stat().st_size
    try:
        with Headers(io.FileIO(shard)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.isreg() and (info.size < 0 or info.offset_data + info.size > size):
                    raise tarfile.ReadError(f"{info.name} is larger than the file")
                if info.issparse():
                    raise SetupError(
                        f"{shard}: {info.name} is stored with holes: make the tar without --sparse"
                    )
                if info.isreg():
                    tree.add(info.name, Member(number, info.offset_data, info.size))
                elif info.isdir():
                    tree.add(info.name, None)
                elif info.issym() or info.islnk():
                    tree.add(info.name, Link(info.linkname, hard=info.islnk()))
                else:
                    odd.append(info.name)
            check_end(shard, tar)
    except DAMAGED as error:
        raise DataError(
            f"{shard} is damaged, or compressed (then unpack it first): {error}"
        ) from None
    found = tree.listing()
    found.items = [
        Member(number, gone=item.why) if isinstance(item, Broken) else item for item in found.items
    ]
    found.odd += odd
    return found


class Headers(io.BufferedReader):
    """A tar, of which headers alone are read: one that claims to be large is damaged."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes" if size else "no header")
        return super().read(size)


def check_end(shard: Path, tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end: a whole tar ends with a block of zeros. What
    follows them would not be read."""
    with shard.open("rb") as file:
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        file.seek(max(0, tar.offset - tarfile.BLOCKSIZE))
        before = file.read(tarfile.BLOCKSIZE)
        if bytes(tarfile.BLOCKSIZE) not in (block, before):
            raise DataError(f"{shard} is damaged or cut off at byte {tar.offset:,}")
        while part := file.read(1 << 20):
            if part.count(0) < len(part):
                raise DataError(
                    f"{shard}: something lies behind its end at byte {tar.offset:,}: if several "
                    "tar files were put into one, give them one by one"
                )


def shard_names(shards: Sequence[Path]) -> list[str]:
    """What tells shards apart: their stems, with folders where these are the same."""
    stems = [shard.stem for shard in shards]
    if len(set(stems)) == len(stems):
        return stems
    common = os.path.commonpath([shard.parent for shard in shards])
    return [str(shard.relative_to(common).with_suffix("")) for shard in shards]
