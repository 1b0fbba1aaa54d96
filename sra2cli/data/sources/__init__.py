"""Where images (or the latents of others) come from: one interface, whatever holds them.

    folder     of class folders (ImageNet), flat, or with a dataset.json; also of .npy latents
    archive    a zip or tar of such a folder; WebDataset tar shards
    parquet    as Hugging Face hubs hold image data sets
    hdf5       one key per image (REPA-E)

A source holds no open file: each process opens what it reads, so nothing is shared across a fork.
"""

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sra2cli.core.errors import SetupError
from sra2cli.data.sources import archive, folder, hdf5, parquet
from sra2cli.data.sources.layout import CONVENTION, Choice, Source, VanishedError

__all__ = ["OPENERS", "Choice", "Source", "VanishedError", "open_source"]


@dataclass(frozen=True)
class Opener:
    """A row. open(root, files, choice): the source, root being what the user gave.

    several: whether many files may be one source.
    """

    open: Callable[[Path, list[Path], Choice], Source]
    several: bool = False


OPENERS: dict[str, Opener] = {  # by suffix; a folder without such files holds images
    ".zip": Opener(lambda root, files, choice: archive.open_zip(files[0])),
    ".tar": Opener(lambda root, files, choice: archive.open_tars(root, files), several=True),
    ".parquet": Opener(parquet.open_parquet, several=True),
    ".h5": Opener(lambda root, files, choice: hdf5.open_hdf5(files[0])),
    ".hdf5": Opener(lambda root, files, choice: hdf5.open_hdf5(files[0])),
}


def open_source(path: Path, choice: Choice = CONVENTION) -> Source:
    """List what a folder, file or quoted pattern ("data/train-*.parquet") holds.

    Raises:
        SetupError: nothing there, no images in it, or labels that do not fit.
        DataError: a damaged archive.
    """
    if any(c in path.name for c in "*?[") and not path.exists():
        files = [Path(p) for p in sorted(glob.glob(str(path)))]
        if not files:
            raise SetupError(f"no files match {path}")
        return _open_files(path, files, choice)
    if path.is_file():
        return _open_files(path, [path], choice)
    if not path.is_dir():
        raise SetupError(f"no image folder {path}")
    shards = sorted(path.glob("*.tar")) or sorted(path.glob("**/*.parquet"))
    if not shards:
        return folder.open_folder(path)
    image = folder.any_image(path)
    if image is not None:
        raise SetupError(
            f"{path} holds {shards[0].suffix} files ({shards[0].name}) beside images ({image}): "
            "move either away, or give the files as a quoted pattern"
        )
    return _open_files(path, shards, choice)


def _open_files(root: Path, files: list[Path], choice: Choice) -> Source:
    suffixes = {p.suffix.lower() for p in files}
    if len(suffixes) > 1:
        raise SetupError(f"{root} matches files of several kinds: {', '.join(sorted(suffixes))}")
    opener = OPENERS.get(suffixes.pop())
    if opener is not None and (opener.several or len(files) == 1):
        return opener.open(root, files, choice)
    kinds = ", ".join(OPENERS)
    raise SetupError(
        f"{root} is not a source of images: expected a folder or a file of {kinds} "
        "(compressed tars cannot be read in any order: unpack them first)"
    )
