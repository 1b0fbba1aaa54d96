"""What a folder or an archive holds, before anything is made of it: files, folders, links.

The same data give the same listing, whether they lie in a folder, a zip or a tar, and whether a
file is there itself or as a link.
"""

from dataclasses import dataclass, field
from typing import Any

from sra2cli.core.errors import SetupError

NO_DATA = {  # what systems leave in the folders of users
    *("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    "__pycache__",
}
DEEPEST = 64  # folders in each other: more are no data set


@dataclass
class Listing:
    """Entries by their paths from the root, sorted.

    Attributes:
        names: of the files, also of links to files that are not there.
        items: of an archive, what reads each file.
        folders: all, also empty ones.
        hidden: entries that begin with a dot, or of NO_DATA; nothing below them is listed.
        lost: links that lead nowhere, to a folder by their names.
        odd: pipes, devices, links back to a folder that they lie in.
        shards: of several archives, the one that each file lies in. every_shard: all of them.
    """

    names: list[str] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    every_shard: list[str] = field(default_factory=list)


def hidden(part: str) -> bool:
    """Whether a file or folder of this name is passed over: everywhere, at any depth."""
    return part.startswith(".") or part in NO_DATA


def may_be_folder(name: str) -> bool:
    """Whether what cannot be looked at would be a folder, by its name."""
    return "." not in name.rpartition("/")[2]


@dataclass(frozen=True)
class Broken:
    """An entry that cannot be read, and why."""

    why: str


@dataclass(frozen=True)
class Link:
    """target: a path from the folder that holds the link; of a hard link, from the root."""

    target: str
    hard: bool = False


class Folder(dict[str, Any]):
    """Entries by name: folders, links, or what reads a file."""

    def __init__(self, parent: "Folder | None" = None):
        super().__init__()
        self.parent = parent


class Tree:
    """The entries of an archive, so that links lead where they would in a folder."""

    def __init__(self, of: object):
        self.root, self.of = Folder(), of

    def add(self, path: str, item: Any) -> None:
        """A file or link; None: a folder.

        Raises:
            SetupError: something else has this name already.
        """
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        if len(parts) > DEEPEST:
            raise too_deep(f"{self.of}: {path[:80]}…")
        if not parts:
            return
        folder = self.root
        for part in parts[:-1]:
            if part not in folder:
                folder[part] = Folder(folder)
            folder = folder[part]
            if not isinstance(folder, Folder):
                raise SetupError(f"{self.of} holds {path}, but also {part} as a file")
        there = folder.get(parts[-1])
        if there is not None and not (item is None and isinstance(there, Folder)):
            raise SetupError(
                f"{self.of} holds {path} twice: which is meant? Unpack it and pack it again"
            )
        if there is None:
            folder[parts[-1]] = Folder(folder) if item is None else item

    def follow(self, link: Link, folder: Folder, links: int = 8) -> Any:
        """What a link in a folder leads to; None if that is not in the archive."""
        if links == 0 or (link.target.startswith("/") and not link.hard):
            return None
        here: Any = self.root if link.hard else folder
        for part in link.target.split("/"):
            if part in ("", "."):
                continue
            if not isinstance(here, Folder):
                return None
            found = here.parent if part == ".." else here.get(part)
            here = self.follow(found, here, links - 1) if isinstance(found, Link) else found
        return here

    def listing(self) -> Listing:
        """All entries; a link as what it leads to."""
        found = Listing()
        self._walk(self.root, "", (self.root,), found)
        return found

    def _walk(self, folder: Folder, path: str, above: tuple[Folder, ...], found: Listing) -> None:
        if len(above) > DEEPEST:
            raise too_deep(f"{self.of}: {path[:80]}…")
        for part, item in sorted(folder.items(), key=lambda pair: pair[0]):
            name = path + part
            if hidden(part):
                found.hidden.append(name)
                continue
            if isinstance(item, Link):
                target = self.follow(item, folder)
                if target is None and may_be_folder(part):
                    found.lost.append(name)
                    continue
                gone = Broken(f"a link to {item.target}, which is not there")
                item = gone if target is None else target
            if not isinstance(item, Folder):
                found.names.append(name)
                found.items.append(item)
            elif any(item is one for one in above):
                found.odd.append(name)
            else:
                found.folders.append(name)
                self._walk(item, name + "/", (*above, item), found)


def too_deep(where: str) -> SetupError:
    return SetupError(f"{where} lies more than {DEEPEST} folders deep: no data set is so")
