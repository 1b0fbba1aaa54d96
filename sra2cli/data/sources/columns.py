"""Which files and columns of a data set in parquet files are meant, where several might be."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources.layout import UNLABELLED, Choice, whole_numbers
from sra2cli.data.sources.texts import AUTO

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")  # the usual names of columns
LABELS = ("label", "labels", "cls", "class")
CAPTIONS = ("text", "caption", "captions", "sentences")

OF = re.compile(r"-(\d+)-of-(\d+)")  # as Hugging Face numbers files; it may add a hash
SHARD = re.compile(  # names by Spark and Dask, by the hub, and others; a year or "cifar-10" is none
    r"part[-._]\d.*|\d+|(.+?)(?:-\d+-of-\d+.*|[-_.](?:0\d*|\d{5,}))?"
)
ENCODED = re.compile(
    r"(large_)?binary(_view)?|fixed_size_binary.*|dictionary<values=(large_)?binary.*"
    r"|struct<(.*, )?bytes: (large_)?binary.*"
)
TEXTS = re.compile(  # texts or lists of them
    r"(large_)?string(_view)?|(large_|fixed_size_)?list<\w+: (large_)?string.*"
    r"|dictionary<values=(large_)?string.*"
)
MAYBE = re.compile("label|class|categor|target")  # in the name of a column of numbers


def of_one_split(root: Path, files: list[Path], split: str | None) -> tuple[list[Path], list[str]]:
    """The files of the split asked for, or of the only one; and what is to be said of that.

    Folders and a file's name without the number of its shard make up the name of a split (or of a
    configuration): train/0000 and train-00000-of-00002 are "train". A pattern is a choice already.

    Raises:
        SetupError: several, none of this name, or files missing.
    """
    top = root if root.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    splits: dict[str, list[Path]] = {}
    for file in files:
        found = SHARD.fullmatch(file.stem)
        parts = [*file.relative_to(top).parent.parts, found[1] if found else file.stem]
        splits.setdefault("/".join(part for part in parts if part), []).append(file)
    names = ", ".join(name or "without a name" for name in sorted(splits))
    if split is not None:
        chosen = [name for name in splits if split in (name, *name.split("/"))]
        if len(chosen) != 1:
            raise SetupError(f"{root}: --split {split} is none, or several, of its {names}")
        files = splits[chosen[0]]
    elif len(splits) > 1 and root.is_dir():
        raise SetupError(
            f"{root} holds several splits ({names}): choose one by --split NAME or by a quoted "
            f"pattern, as '{files[0].parent}/*.parquet'"
        )
    if root.is_dir():
        refuse_missing(root, files)
    said = f"split {split} is read of {names}" if split else f"several splits are read: {names}"
    return files, [said] if len(splits) > 1 else []


def refuse_missing(root: Path, files: Sequence[Path]) -> None:
    """Files that number themselves are all there, once."""
    numbers = [(int(m[1]), int(m[2])) for m in (OF.search(file.stem) for file in files) if m]
    totals = {total for _, total in numbers}
    first = min((number for number, _ in numbers), default=0)
    if numbers and sorted(numbers) != [(first + k, max(totals)) for k in range(max(totals))]:
        raise SetupError(
            f"{root} holds {len(numbers)} files as {files[0].name}: not each once, as their names "
            "say; to read those that are there, give them as a quoted pattern"
        )


@dataclass(frozen=True)
class Columns:
    """The columns of images, labels and captions; class_names where the file holds them.

    others: columns that are not read.
    """

    image: str
    label: str | None
    class_names: list[str]
    caption: str | None
    others: list[str] = field(compare=False)

    @property
    def said(self) -> list[str]:
        if not self.others:
            return []
        labels = f", labels from {self.label}" if self.label is not None else ""
        texts = f", captions from {self.caption}" if self.caption is not None else ""
        read = f"images are read from column {self.image}{labels}{texts}"
        return [f"{read}, not {', '.join(self.others)}"]

    def refuse_other(self, file: Path, other: "Columns", first: Path) -> None:
        """SetupError if `file`, read as `other`, does not belong to the first one."""
        if other == self:
            return
        for name in (self.image, self.label, self.caption):
            if name is not None and name not in (*vars(other).values(), *other.others):
                raise SetupError(f"{file} has no column {name!r}, which {first.name} has")
        if other.class_names != self.class_names:
            pairs = zip_longest(other.class_names, self.class_names)
            number, (its, theirs) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
            raise SetupError(
                f"{file} numbers its classes differently: {number} is {its!r} there, {theirs!r} in "
                f"{first.name}; give files of one numbering by a quoted pattern"
            )
        raise SetupError(
            f"{file} has columns that {first.name} has not: choose by --image and --label COLUMN"
        )


def find_columns(
    file: Path, types: Sequence[tuple[str, str]], about: bytes | None, choice: Choice
) -> Columns:
    """Those chosen, else from the data set's own description, else by their usual names.

    Args:
        types: names of the columns, and pyarrow's names of their types.
        about: the metadata "huggingface" of the file.

    Raises:
        SetupError: no images, or several columns that might be meant.
        DataError: a description that cannot be read.
    """
    features = described(file, about)
    kinds = {name: features.get(name, {}).get("_type") for name, _ in types}
    encoded = [name for name, kind in types if ENCODED.fullmatch(kind)]
    structures = [name for name, kind in types if name in encoded and kind.startswith("struct")]
    images = [name for name in encoded if kinds[name] == "Image"]
    images = images or [name for name in encoded if name in IMAGES or name in structures]
    labels = [name for name in kinds if kinds[name] == "ClassLabel" or name in LABELS]
    image = one_of(file, types, images, IMAGES, choice.image, "image")
    if image is None or image not in encoded:
        held = ", ".join(f"{name}: {kind}" for name, kind in types)
        raise SetupError(f"{file} has no column of images (it has {held}): --image COLUMN")
    if choice.label == UNLABELLED and UNLABELLED not in kinds:
        label = None
    else:
        label = one_of(file, types, labels, LABELS, choice.label, "label")
        maybe = [k for k, kind in types if re.match("u?int", kind) and MAYBE.search(k.lower())]
        if label is None and maybe:
            raise SetupError(
                f"{file}: {', '.join(maybe)} may be labels: choose by --label COLUMN, or --label "
                f"{UNLABELLED} for unconditional models"
            )
    caption = None if choice.captions is None else caption_column(file, types, choice.captions)
    others = [name for name in kinds if name not in (image, label, caption)]
    names = features.get(label, {}).get("names") or [] if label is not None else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: the names of the classes of {label} are no list of texts")
    return Columns(image, label, names, caption, others)


def caption_column(file: Path, types: Sequence[tuple[str, str]], wanted: str) -> str:
    """The column that is chosen, or the one with a usual name.

    Raises:
        SetupError: none, several, or one that holds no texts.
    """
    kinds = dict(types)
    found = [name for name in CAPTIONS if name in kinds] if wanted == AUTO else [wanted]
    if len(found) != 1 or found[0] not in kinds:
        what = (
            f"several columns of captions ({', '.join(found)})" if found[1:] else "no such column"
        )
        raise SetupError(
            f"--captions {wanted}: {file} has {what} (it has {', '.join(kinds)}): --captions COLUMN"
        )
    if not TEXTS.fullmatch(kinds[found[0]]):
        raise SetupError(
            f"--captions {wanted}: column {found[0]} of {file} holds {kinds[found[0]]}, not texts "
            "or lists of them"
        )
    return found[0]


def one_of(
    file: Path,
    types: Sequence[tuple[str, str]],
    found: list[str],
    usual: tuple[str, ...],
    chosen: str | None,
    option: str,
) -> str | None:
    """The column that is meant, by choice or by the usual name among several; None: there is none.

    Raises:
        SetupError: several, or not the one chosen.
    """
    names = [name for name, _ in types]
    named = [name for name in found if name in usual]
    if chosen is None and len(found) > 1 and len(named) != 1:
        raise SetupError(
            f"{file} has several columns of {option}s ({', '.join(found)}): choose one by "
            f"--{option} COLUMN"
        )
    taken = chosen or next(iter(named or found), None)
    if taken is not None and names.count(taken) != 1:
        count = "several columns" if taken in names else "no column"
        raise SetupError(f"{file} has {count} {taken!r} (it has {', '.join(names)})")
    return taken


def described(file: Path, about: bytes | None) -> dict[str, dict[str, Any]]:
    """The columns as the datasets library describes them; DataError for anything else."""
    try:
        tree = json.loads(about or b"{}")
        features = tree.get("info", {}).get("features", {})
        return {k: feature for k, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError, RecursionError):
        raise DataError(
            f"{file}: its 'huggingface' metadata is not as the datasets library writes it"
        ) from None


def class_numbers(root: Path, labels: Sequence[Any], class_names: Sequence[str]) -> list[int]:
    """Labels as classes; SetupError for others than whole numbers, below the count of names."""
    numbers = whole_numbers(root, labels)
    if class_names and max(numbers, default=0) >= len(class_names):
        raise SetupError(f"{root} has label {max(numbers)}, but names {len(class_names)} classes")
    return numbers
