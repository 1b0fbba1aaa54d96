"""Zip and tar files: of an image folder, or WebDataset shards; read in place, in any order."""

import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources.layout import (
    DATASET,
    FileReader,
    Source,
    is_image,
    lay_out,
    whole_numbers,
)

DAMAGED = (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, lzma.LZMAError, ValueError)
LABEL_FILES = (".cls", ".json")  # beside the image of a WebDataset sample


def open_zip(path: Path) -> Source:
    """A zip of an image folder."""
    try:
        with zipfile.ZipFile(path) as file:
            names = [i.filename for i in file.infolist() if not i.is_dir()]
            names = [name for name in names if not _hidden(name)]
            prefix = _common_folder(names)
            names = [name for name in names if name.startswith(prefix)]
            dataset = prefix + DATASET
            labels = file.read(dataset) if dataset in names else None
    except DAMAGED as error:
        raise DataError(f"{path} is damaged or not a zip file: {error}") from None
    layout = lay_out(path, [name[len(prefix) :] for name in names], labels)
    return layout.source(path, ZipReader(path, [names[i] for i in layout.order]))


class ZipReader(FileReader):
    """Reads an entry by its number."""

    def open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def __call__(self, index: int) -> bytes:
        file: zipfile.ZipFile = self.file
        try:
            return file.read(self.names[index])
        except DAMAGED as error:
            raise DataError(f"damaged in the zip file: {error}") from None


@dataclass(frozen=True)
class Member:
    """Where the bytes of a tar member lie."""

    shard: int
    offset: int
    size: int


@dataclass(frozen=True)
class TarReader:
    """Reads a member by its number."""

    shards: list[Path]
    members: list[Member]

    def __call__(self, index: int) -> bytes:
        return self.bytes_of(self.members[index])

    def bytes_of(self, member: Member) -> bytes:
        with self.shards[member.shard].open("rb", buffering=0) as f:
            data = os.pread(f.fileno(), member.size, member.offset)
        if len(data) < member.size:
            raise DataError("cut off by the end of its tar file")
        return data


def open_tars(root: Path, shards: list[Path]) -> Source:
    """A tar of an image folder, or tars of WebDataset samples."""
    names: list[str] = []
    members: list[Member] = []
    for number, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as tar:
                for info in tar:
                    if info.isreg() and not _hidden(info.name):
                        names.append(info.name.removeprefix("./"))
                        members.append(Member(number, info.offset_data, info.size))
                check_end(shard, tar)
        except (tarfile.TarError, EOFError) as error:
            raise DataError(
                f"{shard} is damaged, or compressed (then unpack it first): {error}"
            ) from None
    reader = TarReader(shards, members)
    images = {_key(name) for name in names if is_image(name)}
    beside = [name for name in names if name.endswith(LABEL_FILES)]
    if any(_key(name) in images for name in beside):
        return _samples(root, shards, names, reader)
    if len(shards) > 1:
        stems = [shard.stem for shard in shards]
        names = [f"{stems[m.shard]}/{n}" for n, m in zip(names, members, strict=True)]
        layout = lay_out(root, names, None, class_folders=False)
    else:
        prefix = _common_folder(names)
        at = {name: i for i, name in enumerate(names)}
        dataset = at.get(prefix + DATASET)
        labels = None if dataset is None else reader(dataset)
        inside = [i for i, name in enumerate(names) if name.startswith(prefix)]
        members = [members[i] for i in inside]
        layout = lay_out(root, [names[i][len(prefix) :] for i in inside], labels)
    return layout.source(root, TarReader(shards, [members[i] for i in layout.order]))


def check_end(shard: Path, tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end: a whole tar ends with a block of zeros."""
    with shard.open("rb") as file:
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        file.seek(max(0, tar.offset - tarfile.BLOCKSIZE))
        before = file.read(tarfile.BLOCKSIZE)
    if bytes(tarfile.BLOCKSIZE) not in (block, before):
        raise DataError(f"{shard} is damaged or cut off at byte {tar.offset:,}")


def _samples(root: Path, shards: Sequence[Path], names: Sequence[str], reader: TarReader) -> Source:
    """WebDataset: the files of a sample share their name up to the first dot."""
    labels_of: dict[str, int] = {}
    full = []
    for name, member in zip(names, reader.members, strict=True):
        name = f"{shards[member.shard].stem}/{name}" if len(shards) > 1 else name
        full.append(name)
        if name.endswith(LABEL_FILES):
            label = _sample_label(name, reader.bytes_of(member))
            if label is not None:
                labels_of[_key(name)] = label
    layout = lay_out(root, full, None, class_folders=False)
    labels = None
    if labels_of:
        missing = [name for name in layout.names if _key(name) not in labels_of]
        if missing:
            raise SetupError(f"{root}: no .cls or .json file gives a label for {missing[0]}")
        labels = whole_numbers(root, [labels_of[_key(name)] for name in layout.names])
    ordered = TarReader(list(shards), [reader.members[i] for i in layout.order])
    ignored = [name for name in layout.ignored if not name.endswith(LABEL_FILES)]
    return Source(root, layout.names, labels, [], ordered, layout.kind, ignored)


def _sample_label(name: str, data: bytes) -> int | None:
    """The class in a .cls or .json file; None where a .json has none."""
    try:
        if name.endswith(".cls"):
            return int(data)
        tree = json.loads(data)
        found = next((tree[k] for k in ("label", "cls", "class") if k in tree), None)
        return None if found is None else int(found)
    except (ValueError, TypeError):
        raise SetupError(f"{name} holds no class number") from None


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.')[0]}"


def _hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or Path(name).name.startswith(".")


def _common_folder(names: Sequence[str]) -> str:
    """A folder that everything lies in, above class folders or a dataset.json; "" if none."""
    held = [n for n in names if is_image(n) or n.endswith(".npy") or Path(n).name == DATASET]
    tops = {name.split("/")[0] for name in held}
    if len(tops) != 1 or not any("/" in name for name in held):
        return ""
    top = tops.pop() + "/"
    inside = [name[len(top) :] for name in held]
    return top if DATASET in inside or all("/" in name for name in inside) else ""
