"""Which folder the classes lie in: below those that hold everything, in one of several splits."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sra2cli.core.errors import SetupError
from sra2cli.data.sources.found import Found
from sra2cli.data.sources.layout import DATASET, Choice

SPLIT = re.compile(  # what is called so is one of several splits, rather than a class
    r"(train|training|val|valid|validation|test|testing|eval|evaluation|dev|holdout|unlabell?ed)"
    r"([-_ ]?(set|data|images|\d+))?",
    re.IGNORECASE,
)


def descend(found: Found) -> None:
    """Go down the folders that hold everything, and into the split that was chosen.

    Raises:
        SetupError: several splits and none chosen, or one that is not there.
    """
    wanted, every = found.choice.split, found.choice.classes_from == "folders"
    while True:
        inside = found.inside()
        tops = sorted({name.split("/")[0] for name in inside if "/" in name})
        tables = {n for n in found.inside(found.listing.names) if n.endswith(DATASET)}
        splits = [top for top in tops if SPLIT.fullmatch(top)]
        if wanted is not None and wanted in tops:
            _go_down(found, wanted, f"--split {wanted}")
            wanted = None
        elif DATASET in tables and not every:  # it says what belongs together
            if wanted is not None:
                raise SetupError(f"--split {wanted}: {found.root} holds what its {DATASET} lists")
            return
        elif any("/" not in name for name in inside):
            break
        elif len(splits) > 1 and not every:
            raise _several(found.root, found.prefix, splits)
        elif len(tops) == 1 and _is_wrapper(found, tops[0], inside, tables):
            _go_down(found, tops[0], "all of them lie there")
        else:
            break
    if wanted is not None or not every:
        _below_classes(found, wanted)


def _is_wrapper(found: Found, top: str, inside: Sequence[str], tables: set[str]) -> bool:
    """Whether the only folder with images lies above the classes, rather than being one."""
    nested = all(name.count("/") > 1 for name in inside) or f"{top}/{DATASET}" in tables
    beside = {name.split("/")[0] for name in found.inside(found.listing.folders)} - {"", top}
    if not SPLIT.fullmatch(top):
        return nested and not beside
    every = found.choice.classes_from == "folders"
    return nested or not (every or any(not SPLIT.fullmatch(name) for name in beside))


def _go_down(found: Found, top: str, why: str) -> None:
    found.prefix += top + "/"
    found.said.append(f"the images are those of {found.prefix} ({why})")
    names = found.listing.names
    found.keep(
        [i for i in found.order if names[i].startswith(found.prefix)],
        f"images beside {found.prefix}",
    )


def _several(root: Path, prefix: str, splits: Sequence[str]) -> SetupError:
    folder = root / prefix / splits[0]
    give = f"give one, as {folder} or" if folder.is_dir() else "choose one by"
    return SetupError(
        f"{root} holds several splits ({', '.join(splits)}): {give} --split {splits[0]}; "
        "where they are classes, --classes-from folders"
    )


def _below_classes(found: Found, wanted: str | None) -> None:
    """The chosen of several splits below each class, as ant/train/0.png."""
    parts = dict(zip(found.order, (name.split("/") for name in found.inside()), strict=True))
    split_of = {i: part[1] if len(part) > 2 else None for i, part in parts.items()}
    splits = sorted({split for split in split_of.values() if split and SPLIT.fullmatch(split)})
    if wanted is not None and wanted not in split_of.values():
        raise SetupError(f"--split {wanted}: {found.root} holds no folder of images with this name")
    if wanted is not None:
        kept = [i for i in found.order if split_of[i] == wanted]
        found.keep(kept, f"images of other splits than {wanted}")
    elif len(splits) > 1:
        raise SetupError(
            f"{found.root} holds several splits in its classes ({', '.join(splits)}): choose one "
            f"by --split {splits[0]}; or --classes-from folders takes all"
        )


def of_one_split(
    root: Path, shards: list[Path], choice: Choice
) -> tuple[list[Path], Choice, list[str]]:
    """Of several archives those of the split that was chosen, what is left to be chosen in them,
    and what is passed over.

    Splits are words of their names or, where they lie in several folders, of these.

    Raises:
        SetupError: several splits, and none chosen.
    """
    if len(shards) < 2:
        return shards, choice, []
    common = os.path.commonpath([shard.parent for shard in shards])
    split_of: dict[Path, str] = {}
    for shard in shards:
        words = re.split(r"[^A-Za-z]+", str(shard.relative_to(common).with_suffix("")))
        split_of[shard] = next((word for word in words if SPLIT.fullmatch(word)), "")
    splits = sorted(set(split_of.values()) - {""})
    if choice.split in splits:
        rest = [shard for shard in shards if split_of[shard] != choice.split]
        said = [f"{len(rest):,} archives of other splits are passed over, as {rest[0].name}"]
        kept = [shard for shard in shards if split_of[shard] == choice.split]
        return kept, replace(choice, split=None), said if rest else []
    if len(splits) > 1 and choice.classes_from != "folders":
        raise SetupError(
            f"{root} holds several splits ({', '.join(splits)}): choose one by --split {splits[0]} "
            "or a quoted pattern; where they are classes, --classes-from folders"
        )
    return shards, choice, []
