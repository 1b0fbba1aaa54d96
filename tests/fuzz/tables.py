"""Damaged HDF5 (stores, and images by key) and parquet files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as pq

from . import seeds
from .archives import files_of, labels_of
from .damage import Damage
from .mutate import Rng, as_json, damaged, odd_json, odd_tree, pick

# --- the store


def _odd_set(rng: Rng, file: h5py.File) -> tuple[str, bool]:
    """One of its data sets is something else; whether that must be refused."""
    name = pick(rng, list(file))
    values, dtype, shape = file[name][()], file[name].dtype, file[name].shape
    del file[name]
    how = pick(
        rng,
        ("gone", "group", "short", "long", "type", "link", "external", "fill", "chunked", "scalar",
         "text", "compound", "flat", "swapped", "nan", "empty", "zeros"),
    )  # fmt: skip
    if how == "group":
        file.create_group(name)["inner"] = values
    elif how == "short":
        file[name] = values[:-1]
    elif how == "long":
        file[name] = np.concatenate([values, values])
    elif how == "type":
        other = pick(rng, ("f8", "i1", "u8", "f2", ">i4"))
        file[name] = np.zeros(shape, other) if dtype.kind == "O" else values.astype(other)
    elif how == "link":
        file[name] = h5py.SoftLink(pick(rng, ("/nowhere", f"/{name}", "/labels")))
    elif how == "external":
        file[name] = h5py.ExternalLink(pick(rng, ("nowhere.h5", "/etc/passwd", "store.h5")), name)
    elif how == "fill":
        file.create_dataset(name, (10**9, *shape[1:]), "f4", fillvalue=1.0)
    elif how == "chunked" and shape[0]:
        file.create_dataset(name, data=values, chunks=(1, *shape[1:]), compression="gzip")
    elif how == "scalar":
        file[name] = pick(rng, (3, 0.5, "text"))
    elif how == "text":
        file[name] = ["x"] * len(values)
    elif how == "compound":
        file[name] = np.zeros(len(values), [("a", "i4"), ("b", "f4")])
    elif how == "flat":
        file[name] = values.reshape(-1)
    elif how == "swapped":
        file[name] = values[::-1] if len(values) else values
    elif how == "nan" and dtype.kind == "f":
        file[name] = np.full(shape, np.nan, dtype)
    elif how == "empty":
        file[name] = h5py.Empty("f4")
    elif how == "zeros" and dtype.kind != "O":
        file[name] = np.zeros(shape, dtype)
    same = (how == "flat" and len(shape) == 1) or (
        how == "swapped" and np.array_equal(values, values[::-1])
    )
    return f"{name}: {how}", how != "chunked" and not same


def _odd_attribute(rng: Rng, file: h5py.File) -> tuple[str, bool]:
    name = pick(rng, list(file.attrs))
    before = file.attrs[name]
    how = int(rng.integers(4))
    if how == 0:
        del file.attrs[name]
        return f"no attribute {name}", False
    if how == 1 and isinstance(before, str) and before[:1] in "[{":
        odd, note = odd_tree(rng, json.loads(before))
        file.attrs[name] = as_json(odd).encode("utf-8", "replace")[:60_000].decode(errors="replace")
        return f"attribute {name}: {note}", False
    odd: Any = pick(
        rng,
        (-1, 0, 1, 2**62, -(2**62), 0.5, np.nan, np.inf, "", "x" * 1000, "[]", "{}", "null",
         b"\xff\xfe", [1, 2, 3], np.zeros((2, 2)), True, h5py.Empty("f4"), "9" * 5000,
         np.float16(3), "[" * 5000, np.array(["a", "b"], dtype=h5py.string_dtype()),
         np.zeros(1, [("a", "i4")])),
    )  # fmt: skip
    file.attrs[name] = odd
    return f"attribute {name} = {str(odd)[:20]!r}", False


def damage_store(rng: Rng, file: Path) -> tuple[str, bool]:
    if rng.random() < 0.35:
        data, note = damaged(rng, file.read_bytes())
        file.write_bytes(data)
        return note, False
    with h5py.File(file, "r+") as opened:
        return pick(rng, (_odd_set, _odd_set, _odd_attribute))(rng, opened)


def store(rng: Rng, base: Path, into: Path) -> Damage:
    """A latent store: its data sets, its attributes, its bytes."""
    file = seeds.copy(base, "store.h5", into / "store.h5")
    note, must = damage_store(rng, file)
    return Damage(file, note, must)


def partial(rng: Rng, base: Path, into: Path) -> Damage:
    """A store that extraction would take up again."""
    file = seeds.copy(base, "store.h5", into / "out" / "store.h5.partial")
    with h5py.File(file, "r+") as opened:
        opened.attrs["complete"] = False
        opened["state"][3:] = 0
    note, _ = damage_store(rng, file)
    if rng.random() < 0.3:
        file.rename(file.with_name("store.h5"))
    return Damage(file.parent, note)


# --- images by key


def hdf5(rng: Rng, base: Path, into: Path) -> Damage:
    """Encoded images under their names, with a dataset.json."""
    path, files, must = into / "images.h5", files_of(base), False
    labels, note = labels_of(files), "bytes"
    how = pick(rng, ("bytes", "labels", "labels", "key", "key", "key", "latents"))
    if how == "labels":
        labels, note = odd_json(rng, labels)
    with h5py.File(path, "w") as file:
        for name, data in files.items():
            file[name] = np.frombuffer(data, np.uint8)
        file["dataset.json"] = labels if b"\0" not in labels else np.frombuffer(labels, np.uint8)
        if how == "key":
            note = _odd_key(rng, file, pick(rng, [*files, "dataset.json"]))
        elif how == "latents":
            for name in files:
                del file[name]
                made = pick(
                    rng, (np.ones((32, 8, 8)), np.full((32, 8, 8), np.nan), np.ones(3), np.array(0))
                )
                file[name.replace(".png", ".npy")] = made.astype(pick(rng, ("f4", "i8", "f2")))
            note = "latents of several shapes"
    if how == "bytes":
        data, note = damaged(rng, path.read_bytes())
        path.write_bytes(data)
    return Damage(path, note, must)


def _odd_key(rng: Rng, file: h5py.File, name: str) -> str:
    del file[name]
    options: dict[str, Callable[[], Any]] = {
        "a group": lambda: file.create_group(name),
        "numbers": lambda: file.__setitem__(name, np.ones(5)),
        "an image as pixels": lambda: file.__setitem__(name, np.zeros((32, 32, 3), np.uint8)),
        "text": lambda: file.__setitem__(name, "text"),
        "a list of texts": lambda: file.__setitem__(name, ["a", "b"]),
        "bytes of any length": lambda: file.create_dataset(name, (2,), h5py.vlen_dtype("u1")),
        "a compound": lambda: file.__setitem__(name, np.zeros(3, [("a", "i4")])),
        "a reference": lambda: file.create_dataset(name, data=file.ref, dtype=h5py.ref_dtype),
        "5 GB of one value": lambda: file.create_dataset(name, (5 << 30,), "u1", fillvalue=7),
        "opaque": lambda: file.__setitem__(name, np.void(b"abc")),
        "nothing": lambda: file.__setitem__(name, h5py.Empty("u1")),
        "gone": lambda: None,
        "a link to nowhere": lambda: file.__setitem__(name, h5py.SoftLink("/nowhere")),
        "another file": lambda: file.__setitem__(name, h5py.ExternalLink("/etc/hostname", "x")),
        "a true or false": lambda: file.__setitem__(name, True),
        "no elements": lambda: file.__setitem__(name, np.zeros((0,), np.uint8)),
        "objects": lambda: file.create_dataset(name, (2,), dtype=h5py.string_dtype()),
    }
    how = pick(rng, options)
    options[how]()
    return f"{name} is {how}"


# --- parquet

LABELS: dict[str, tuple[Any, bool]] = {  # a column of labels, and whether it must be refused
    "negative": ([-1, 0] * 4, True),
    "fractions": ([0.5, 1.0] * 4, True),
    "whole fractions": ([0.0, 1.0] * 4, False),
    "not a number": ([float("nan"), 1.0] * 4, True),
    "text": (["cat", "dog"] * 4, False),
    "missing": ([None, 1] * 4, True),
    "all missing": ([None] * 8, False),
    "lists": ([[1], [2]] * 4, True),
    "structures": ([{"a": 1}] * 8, True),
    "true or false": ([True, False] * 4, False),
    "huge": ([2**62, 0] * 4, True),
    "bytes": ([b"a"] * 8, True),
}
CELLS: dict[str, Any] = {
    "missing": None,
    "empty": b"",
    "text": b"not an image",
    "no bytes": {"bytes": None, "path": "x.png"},
    "a path outside": {"bytes": None, "path": "/etc/passwd"},
}


def _metadata(rng: Rng) -> tuple[bytes, str]:
    names = {"names": ["a", "b"], "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": names}
    return odd_json(rng, json.dumps({"info": {"features": features}}).encode())


def parquet(rng: Rng, base: Path, into: Path) -> Damage:
    """Two columns as the hub has them, their description, or the file's bytes."""
    images = list(files_of(base).values())
    cells: list[Any] = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    labels, description = arrow.array([i % 2 for i in range(8)]), b""
    note, must = "", False
    how = pick(rng, ("bytes", "metadata", "metadata", "label", "cell", "image", "columns", "rows"))
    if how == "metadata":
        description, note = _metadata(rng)
    elif how == "label":
        name = pick(rng, LABELS)
        values, must = LABELS[name]
        labels, note = arrow.array(values), f"labels {name}"
    elif how == "cell":
        name = pick(rng, CELLS)
        value = CELLS[name]
        cells[3] = (
            value if value is None or isinstance(value, dict) else {"bytes": value, "path": ""}
        )
        note = f"an image is {name}"
    image: Any = arrow.array(cells)
    if how == "image":
        note, image, must = pick(
            rng,
            (
                ("images are bytes", arrow.array(images), False),
                ("images are numbers", arrow.array(range(8)), True),
                ("images are texts", arrow.array(["x"] * 8), True),
                ("images are lists", arrow.array([list(d[:64]) for d in images]), True),
                ("images are paths", arrow.array([{"path": "x.png"}] * 8), True),
                ("images are large", arrow.array(images, arrow.large_binary()), False),
                ("images have keys", arrow.array(images).dictionary_encode(), False),
                ("images are of one size", arrow.array([b"x" * 4] * 8, arrow.binary(4)), True),
            ),
        )
    columns = {"image": image, "label": labels}
    if how == "columns":
        note, columns, must = pick(
            rng,
            (
                ("no image", {"label": labels}, True),
                ("no label", {"image": image}, False),
                ("two labels", {"image": image, "label": labels, "cls": labels}, False),
                ("two images", {"image": image, "img": image, "label": labels}, False),
                ("an odd name", {"image": image, "\ud83d.x/": labels}, False),
                ("no columns", {}, True),
            ),
        )
    try:
        table = arrow.table(columns)
    except (ValueError, UnicodeError):
        table, note = arrow.table({"image": image, "la.bel": labels}), "a dot in a name"
    if how == "rows":
        note, table, must = pick(
            rng,
            (
                ("no rows", table.slice(0, 0), True),
                (
                    "a name twice",
                    arrow.table([image, image, labels], ["image", "image", "label"]),
                    False,
                ),
            ),
        )
    if description:
        table = table.replace_schema_metadata({"huggingface": description})
    file = into / "train-00000-of-00001.parquet"
    pq.write_table(table, file, row_group_size=3)
    if how == "bytes":
        data, note = damaged(rng, file.read_bytes())
        file.write_bytes(data)
    elif rng.random() < 0.1:
        pq.write_table(arrow.table({"other": [1, 2]}), into / "train-00001-of-00002.parquet")
        note, must = f"{note}; a second file of other columns", True
    os.utime(file, (0, 0))
    return Damage(pick(rng, (file, into)) if len(list(into.iterdir())) == 1 else into, note, must)
