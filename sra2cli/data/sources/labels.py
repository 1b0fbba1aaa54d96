"""Labels that lie in files: a dataset.json, or .cls and .json beside each image."""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sra2cli.core.errors import SetupError
from sra2cli.data.sources.found import Found, Key, after_first_dot
from sra2cli.data.sources.layout import DATASET, whole_numbers

KEYS = ("label", "cls", "class")  # of a .json beside an image, one of which holds its class
Beside = dict[str, dict[Key, list[int]]]  # suffix → key → numbers of the files


def from_files(found: Found, dataset: bytes | None) -> bool:
    """Labels from a dataset.json, or from .cls or .json files beside the images.

    Args:
        dataset: one that lies elsewhere.

    Returns:
        whether they give any, or say that there are none.

    Raises:
        SetupError: several of them may be meant, what is chosen is not there, or does not fit.
    """
    choice, root = found.choice, found.root
    if dataset is None and choice.classes_from != "folders" and choice.label is None:
        dataset = _dataset_of(found)
    if choice.classes_from == DATASET and dataset is None:
        raise SetupError(f"--classes-from {DATASET}: {root} has none")
    beside = _beside(found)
    if choice.label is not None and (choice.classes_from is not None or not beside):
        raise SetupError(
            f"--label {choice.label}: "
            + ("not with --classes-from" if beside else f"{root} has no .cls or .json files")
        )
    if choice.classes_from == "folders":
        return False
    if dataset is not None and choice.label is None:
        if ".cls" in beside and choice.classes_from is None:
            raise SetupError(
                f"{root} holds a {DATASET} and .cls files: choose by --classes-from {DATASET} or "
                "--label cls"
            )
        _from_dataset(found, dataset)
        return True
    return bool(beside) and _from_beside(found, beside)


def _dataset_of(found: Found) -> bytes | None:
    for i, name in enumerate(found.listing.names):
        if name == found.prefix + DATASET:
            found.taken.add(i)
            return found.bytes_of(i)
    return None


def _from_dataset(found: Found, dataset: bytes) -> None:
    partly = found.choice.classes_from == DATASET
    names = found.inside()
    found.labels, found.listed, said = dataset_labels(found.root, names, dataset, partly=partly)
    found.said += said
    tops = {name.split("/")[0] for name in names if "/" in name}
    if len(tops) < 2 or all(top.isdecimal() for top in tops):
        return
    if found.labels is None and not partly:
        raise SetupError(
            f"{found.root} holds class folders, and a {DATASET} without labels: choose by "
            f"--classes-from folders or --classes-from {DATASET}"
        )
    found.said.append(f"the labels are those of {DATASET}, not of the folders")


def _beside(found: Found) -> Beside:
    """The .cls and .json files that share their key with an image.

    Raises:
        SetupError: several images share it too.
    """
    names = found.listing.names
    suffixes = [os.path.splitext(name)[1].lower() for name in names]
    files = [i for i, suffix in enumerate(suffixes) if suffix in (".cls", ".json", ".txt")]
    files = [i for i in files if names[i] != found.prefix + DATASET]
    first: dict[Key, int] = {}
    second: dict[Key, int] = {}
    for i in found.order if files else ():
        if first.setdefault(found.key(i), i) != i:
            second[found.key(i)] = i
    beside: Beside = {}
    for i in files:
        key = found.key(i)
        if key in first and suffixes[i] != ".txt":
            beside.setdefault(suffixes[i], {}).setdefault(key, []).append(i)
        if key in second and found.choice.classes_from is None:
            a, b = names[first[key]], names[second[key]]
            raise SetupError(
                f"{found.root}: several images share the key '{key[1]}' of {names[i]}, {a} and "
                f"{b}: name them apart before their first dot, or choose one of each by --image "
                f"{after_first_dot(a)}"
            )
    return beside


def _from_beside(found: Found, beside: Beside) -> bool:
    wanted = found.choice.label
    suffix = ".cls" if ".cls" in beside and wanted in (None, "cls") else ".json"
    files = beside.get(suffix, {})
    labels: dict[Key, int] = {}
    for key, those in files.items():
        i = _only(found, those)
        name, data = f"{found.root}: {found.listing.names[i]}", found.bytes_of(i)
        one = None if wanted == "json" else wanted
        label = cls_label(name, data) if suffix == ".cls" else json_label(name, data, one)
        if label is not None:
            labels[key] = label
    if not labels and wanted is not None:
        raise SetupError(f"--label {wanted}: no {suffix} file of {found.root} holds it")
    if not labels:
        return False
    if suffix == ".json" and wanted is None and all("/" in name for name in found.inside()):
        raise SetupError(
            f"{found.root} has class folders, and labels in .json files: choose by "
            "--classes-from folders or --label json"
        )
    keys = [found.key(i) for i in found.order]
    missing = [name for name, key in zip(found.names, keys, strict=True) if key not in labels]
    if missing:
        raise SetupError(f"{found.root}: no {suffix} file gives a label for {missing[0]}")
    found.labels = whole_numbers(found.root, [labels[key] for key in keys])
    found.taken |= {i for those in files.values() for i in those}
    found.said.append(f"the labels are those of the {suffix} files")
    return True


def _only(found: Found, files: list[int]) -> int:
    """The file of labels of a sample: KEY.cls, of several."""
    names = {i: found.listing.names[i] for i in files}
    exact = [i for i, name in names.items() if after_first_dot(name) in ("cls", "json")]
    if len(files) > 1 and len(exact) != 1:
        a, b = list(names.values())[:2]
        raise SetupError(
            f"{found.root}: {a} and {b} share their key: name them apart before the dot"
        )
    return exact[0] if len(files) > 1 else files[0]


def parse(data: bytes) -> Any:
    """JSON; ValueError for anything wrong with it, also for a key that is there twice."""
    try:
        return json.loads(data, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def dataset_labels(
    root: Path, names: Sequence[str], dataset: bytes, *, partly: bool
) -> tuple[list[int] | None, int, list[str]]:
    """Labels from a dataset.json, the number of its classes, and what is to be said.

    Names are matched as they are, else by what they mean on other systems, else by the number that
    ends them: latents are listed under the names of their images by some tools.

    Args:
        partly: take the images that are there, where it lists more.

    Raises:
        SetupError: it is no list of labels, or images and list are not the same.
    """
    pairs = _pairs(root, dataset)
    if all(value is None for value in pairs.values()):
        return None, 0, []
    said: list[str] = []
    for rule in (str, plain, _number):
        table = {rule(name): name for name in pairs}
        found = [table.get(rule(name)) for name in names]
        if len(table) == len(pairs) and any(name is not None for name in found):
            break
    if rule is _number:
        said.append(f"{DATASET} has other names: matched by the numbers that end them")
    labels = [None if name is None else pairs[name] for name in found]
    unlabelled = [name for name, label in zip(names, labels, strict=True) if label is None]
    if unlabelled:
        raise SetupError(
            f"{root}: its {DATASET} has no label for {unlabelled[0]}"
            + (f" and {len(unlabelled) - 1} others" if unlabelled[1:] else "")
        )
    if len(set(found)) < len(found):
        raise SetupError(f"{root}: its {DATASET} has one label for several images")
    there = set(found)
    gone = [name for name in pairs if name not in there]
    if gone and not partly:
        raise SetupError(
            f"{root}: its {DATASET} lists {len(pairs):,} images, {len(gone):,} of which are not "
            f"there, as {gone[0]}: complete the copy, or take those that are there by "
            f"--classes-from {DATASET}"
        )
    if gone:
        said.append(f"{len(gone):,} images of {DATASET} are not there, as {gone[0]}")
    numbers = whole_numbers(root, [v for v in pairs.values() if v is not None])
    return whole_numbers(root, labels), max(numbers) + 1, said


def _pairs(root: Path, dataset: bytes) -> dict[str, Any]:
    """Names and labels, as a dataset.json lists them."""
    try:
        tree = parse(dataset)
        listed = tree["labels"] if isinstance(tree, dict) else tree
        if listed is None:
            return {}
        rows = list(listed.items()) if isinstance(listed, dict) else listed
        pairs = {str(name): label for name, label in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise SetupError(
            f"{root}: its {DATASET} is not a list of [path, class] pairs under 'labels' "
            f"({' '.join(str(error).split())[:80]}): mend it, move it away, or "
            "--classes-from folders"
        ) from None
    if len(pairs) < len(rows):
        [(twice, _)] = Counter(name for name, _ in rows).most_common(1)
        raise SetupError(f"{root}: its {DATASET} lists {twice} twice")
    return pairs


def plain(name: str) -> str:
    """A path as it is meant: with accents composed (macOS takes them apart), slashes of Windows."""
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


def _number(name: str) -> str:
    """The digits that end a name, without its suffix."""
    stem = name.rpartition("/")[2].split(".")[0]
    return stem[len(stem.rstrip("0123456789")) :]


def _whole(text: str) -> int:
    """A number as it is written in a file: 1_0 is none, unlike in Python."""
    if "_" in text:
        raise ValueError(text)
    return int(text)


def cls_label(name: str, data: bytes) -> int:
    """The class in a .cls file."""
    try:
        return _whole(data.decode())
    except ValueError:
        raise SetupError(f"{name} holds no class number") from None


def json_label(name: str, data: bytes, key: str | None) -> int | None:
    """The class in a .json beside an image; None where it has none.

    Args:
        key: under which it stands; None: one of `KEYS`.

    Raises:
        SetupError: it is no whole number, or the .json has several of the keys.
    """
    try:
        tree = parse(data)
        keys = [k for k in ((key,) if key else KEYS) if isinstance(tree, dict) and k in tree]
        if not keys:
            return None
        value = tree[keys[0]]
        if isinstance(value, bool | float):
            raise ValueError(f"{keys[0]} is {value}")
        number = _whole(str(value))
    except (ValueError, TypeError):
        raise SetupError(f"{name} holds no class number") from None
    if len(keys) > 1 and any(tree[k] != value for k in keys):
        raise SetupError(f"{name} holds {' and '.join(keys)}: choose one by --label")
    return number
