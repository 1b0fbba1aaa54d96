"""Where images (or the latents of others) come from: one interface, whatever holds them.

    folder     of class folders (ImageNet), flat, or with a dataset.json; also of .npy latents
    archive    a zip or tar of such a folder; WebDataset tar shards
    parquet    as Hugging Face hubs hold image data sets
    hdf5       one key per image (REPA-E)
    safetensors  shards of latents (LightningDiT)

A source holds no open file: each process opens what it reads, so nothing is shared across a fork.
"""

import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sra2cli.core.errors import SetupError
from sra2cli.data.images import LFS
from sra2cli.data.sources import archive, folder, hdf5, parquet, safetensors
from sra2cli.data.sources.captioned import captioned
from sra2cli.data.sources.layout import CONVENTION, Choice, Source, VanishedError, is_image
from sra2cli.data.sources.texts import TABLES

__all__ = [
    "CONVENTION",
    "OPENERS",
    "Choice",
    "Source",
    "VanishedError",
    "is_pattern",
    "open_source",
]


@dataclass(frozen=True)
class Opener:
    """A row. open(root, files, choice): the source, root being what the user gave.

    several: whether many files may be one source.
    """

    open: Callable[[Path, list[Path], Choice], Source]
    several: bool = False


OPENERS: dict[str, Opener] = {  # by suffix; a folder without such files holds images
    ".zip": Opener(lambda root, files, choice: archive.open_zip(files[0], choice)),
    ".tar": Opener(archive.open_tars, several=True),
    ".parquet": Opener(parquet.open_parquet, several=True),
    ".h5": Opener(lambda root, files, choice: hdf5.open_hdf5(files[0], choice)),
    ".hdf5": Opener(lambda root, files, choice: hdf5.open_hdf5(files[0], choice)),
    ".safetensors": Opener(safetensors.open_safetensors, several=True),
}
SHARDS = (".tar", ".parquet")  # what a folder may hold instead of images
LATENTS = ".safetensors"  # the same; beside images or .npy they are weights of something


def open_source(path: Path, choice: Choice = CONVENTION) -> Source:
    """List what a folder, file or quoted pattern ("data/train-*.parquet") holds.

    Raises:
        SetupError: nothing there, no images in it, labels that do not fit, several ways to read
            it of which none is chosen, or images without a caption where these are asked for.
        DataError: a damaged archive.
    """
    return captioned(_open(path, choice), choice)


def _open(path: Path, choice: Choice) -> Source:
    if is_pattern(path):
        return _open_files(path, matching(path), choice)
    if path.is_file():
        return _open_files(path, [path], choice)
    if not path.is_dir():
        raise SetupError(f"no image folder {path}")
    listing = folder.walk(path)
    image = next((name for name in listing.names if is_image(name)), None)
    single = image is not None or any(name.lower().endswith(".npy") for name in listing.names)
    for suffix in SHARDS if single else (*SHARDS, LATENTS):
        shards = [name for name in listing.names if name.lower().endswith(suffix)]
        if image is not None:
            shards = [name for name in shards if name.rpartition("/")[2].lower() not in TABLES]
        shards.sort(key=lambda name: name.split("/"))
        if shards and image is None:
            source = _open_files(path, [path / name for name in shards], choice)
            rest = sorted(set(listing.names) - {*shards, safetensors.STATISTICS})
            _refuse_compressed(path, rest)
            return replace(source, ignored=[*source.ignored, *rest])
        if shards and ("/" not in shards[0] or suffix == ".parquet"):
            raise SetupError(
                f"{path} holds {suffix} files ({shards[0]}) beside images ({image}): "
                "move either away, or give the files as a quoted pattern"
            )
    return folder.open_folder(path, listing, choice)


def is_pattern(path: Path) -> bool:
    """Whether a path stands for several files: data/train-*.tar, data/{0..9}.tar."""
    return not path.exists() and any(c in str(path) for c in "*?[{")


def matching(pattern: Path) -> list[Path]:
    """The files of a pattern; SetupError where one of what its braces stand for has none."""
    found: dict[Path, None] = {}
    for part in _expanded(str(pattern)):
        files = sorted(glob.glob(part)) if glob.has_magic(part) else [part] * os.path.exists(part)
        if not files:
            raise SetupError(f"no files match {part}")
        found |= dict.fromkeys(Path(file) for file in files)
    return list(found)


def _expanded(pattern: str) -> list[str]:
    """A pattern for each of what braces stand for: {0000..0012} as WebDataset writes, {a,b}."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    first, last, listed = braces.groups()
    if listed is None and int(last[:12]) - int(first[:12]) > 1_000_000:
        raise SetupError(f"{pattern} stands for more than a million files")
    numbers = range(int(first[:12]), int(last[:12]) + 1) if listed is None else ()
    parts = [f"{k:0{len(first)}d}" for k in numbers] if listed is None else listed.split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [whole for part in parts for whole in _expanded(before + part + after)]


def _refuse_compressed(path: Path, names: list[str]) -> None:
    packed = [name for name in names if re.search(r"\.(tar\.\w+|tgz)$", name.lower())]
    if packed:
        raise SetupError(
            f"{path}: {packed[0]} cannot be read in any order: unpack it, or move it away"
        )


def _open_files(root: Path, files: list[Path], choice: Choice) -> Source:
    for file in files:
        if not file.is_file():
            raise SetupError(f"{file} is no file, or a link that leads nowhere")
        with file.open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise SetupError(f"{file} is a pointer of Git LFS to the file: git lfs pull")
    suffixes = {p.suffix.lower() for p in files}
    if len(suffixes) > 1:
        raise SetupError(f"{root} matches files of several kinds: {', '.join(sorted(suffixes))}")
    suffix = suffixes.pop()
    opener = OPENERS.get(suffix)
    if opener is not None and (opener.several or len(files) == 1):
        source = opener.open(root, files, choice)
        return replace(source, said=[*source.said, *_gaps(files)])
    if opener is not None:
        raise SetupError(f"{root} stands for {len(files)} {suffix} files: give them one by one")
    kinds = ", ".join(OPENERS)
    raise SetupError(
        f"{root} is not a source of images: expected a folder or a file of {kinds} "
        "(compressed tars cannot be read in any order: unpack them first)"
    )


def _gaps(files: list[Path]) -> list[str]:
    """A line if files that are numbered with leading zeros leave numbers out."""
    numbered: dict[tuple[Path, str, int], list[int]] = {}
    for file in files:
        found = re.fullmatch(r"(.*?)(\d{2,18})", file.stem)
        if found is not None:
            key = (file.parent, found[1], len(found[2]))
            numbered.setdefault(key, []).append(int(found[2]))
    for (_, before, width), numbers in numbered.items():
        there = set(numbers)
        gap = next((k for k in range(min(there), max(there)) if k not in there), None)
        if gap is not None and len(str(min(there))) < width:
            return [f"the files are numbered, but {before}{gap:0{width}d} is not there"]
    return []
