"""A folder of images on a disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from sra2cli.core.errors import DataError
from sra2cli.data.sources.classes import lay_out
from sra2cli.data.sources.layout import Choice, Source, check_size
from sra2cli.data.sources.listing import DEEPEST, Listing, hidden, may_be_folder, too_deep


def open_folder(root: Path, listing: Listing, choice: Choice) -> Source:
    """A folder of class folders, a flat folder, or one with a dataset.json."""
    layout = lay_out(root, listing, choice, FolderReader(root, listing.names))
    names = [listing.names[i] for i in layout.order]
    return layout.source(FolderReader(root, names))


@dataclass(frozen=True)
class FolderReader:
    """Reads a file by its number."""

    root: Path
    names: list[str]

    def file_of(self, index: int) -> Path:
        """The file of an image."""
        return self.root / self.names[index]

    def __call__(self, index: int) -> bytes:
        file = os.path.join(self.root, self.names[index])
        try:
            with open(file, "rb") as f:
                check_size(os.fstat(f.fileno()).st_size)
                return f.read()
        except FileNotFoundError:
            if os.path.islink(file):  # as large files of git-annex or a hub's cache may be missing
                there = os.readlink(file)
                raise DataError(f"a link to {there}, which is not there") from None
            raise


def walk(root: Path) -> Listing:
    """Everything below a folder, without a stat for each file: a million on a network disk take
    minutes. Links are followed."""
    found = Listing()
    _walk(str(root), "", frozenset(), found)
    return found


def _walk(folder: str, path: str, above: frozenset[tuple[int, int]], found: Listing) -> None:
    about = os.stat(folder)
    above = above | {(about.st_dev, about.st_ino)}
    if len(above) > DEEPEST:
        raise too_deep(folder[:80] + "…")
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = path + entry.name
            if hidden(entry.name):
                found.hidden.append(name)
                continue
            kind = _kind(entry, above)
            if kind == "odd":
                found.odd.append(name)
            elif kind == "folder":
                found.folders.append(name)
                _walk(entry.path, name + "/", above, found)
            elif kind == "broken" and may_be_folder(name):
                found.lost.append(name)
            else:
                found.names.append(name)


def _kind(entry: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> str:
    """file, folder, broken (a link that leads nowhere) or odd; asks the disk about links alone."""
    try:
        if entry.is_dir():
            if entry.is_symlink() and (entry.stat().st_dev, entry.stat().st_ino) in above:
                return "odd"
            return "folder"
        if entry.is_file():
            return "file"
        return "broken" if entry.is_symlink() and not os.path.exists(entry.path) else "odd"
    except OSError:  # links in a circle
        return "broken"
