"""A folder of images on a disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from sra2cli.core.errors import SetupError
from sra2cli.data.sources.layout import DATASET, Source, is_image, lay_out


def open_folder(root: Path) -> Source:
    """A folder of class folders, a flat folder, or one with a dataset.json."""
    names = sorted(_walk(str(root), top=True))
    dataset = root / DATASET
    layout = lay_out(root, names, dataset.read_bytes() if dataset.is_file() else None)
    if layout.class_names:
        _refuse_empty(root, layout.class_names)
    return layout.source(root, FolderReader(root, layout.names))


def _refuse_empty(root: Path, class_names: list[str]) -> None:
    """A class folder without images: the classes after it would get other numbers."""
    with os.scandir(root) as entries:
        folders = {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    empty = sorted(folders - set(class_names))
    if empty:
        raise SetupError(
            f"{root / empty[0]} holds no images: without it, {len(class_names)} classes are "
            "numbered; put its images there, or move the folder away"
        )


@dataclass(frozen=True)
class FolderReader:
    """Reads a file by its number."""

    root: Path
    names: list[str]

    def __call__(self, index: int) -> bytes:
        with open(os.path.join(self.root, self.names[index]), "rb") as f:
            return f.read()


def _walk(folder: str, *, top: bool = False) -> list[str]:
    """Files below a folder, without a stat for each: a million on a network disk take minutes.

    Links to folders are followed at the top alone, as class folders may be links.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=top):
                found += [f"{entry.name}/{name}" for name in _walk(entry.path)]
            elif entry.is_file():
                found.append(entry.name)
    return found


def any_image(root: Path) -> str | None:
    """The name of an image in a folder or its class folders, if there is one."""
    for folder in [root, *sorted(p for p in root.iterdir() if p.is_dir())]:
        with os.scandir(folder) as entries:
            found = next((e.name for e in entries if is_image(e.name) and e.is_file()), None)
        if found is not None:
            return found
    return None
