"""Damaged files of captions, and stores that hold them."""

import csv
import io
import json
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as pq

from . import seeds
from .archives import files_of
from .damage import Damage
from .mutate import Rng, damaged, odd_json, pick
from .tables import damage_store


def _listed(rng: Rng, names: list[str]) -> dict[str, bytes]:
    """Whole files of captions, one of their kinds."""
    texts = {name: [f"a picture called {name}", "ein Bild"] for name in names}
    rows = [{"file_name": name, "text": text} for name, text in texts.items()]
    kind = pick(rng, ("jsonl", "csv", "parquet", "coco", "txt", "json"))
    if kind == "jsonl":
        return {"metadata.jsonl": "\n".join(json.dumps(row) for row in rows).encode()}
    if kind == "csv":
        out = io.StringIO()
        csv.writer(out).writerows([("file_name", "text"), *((n, t[0]) for n, t in texts.items())])
        return {"metadata.csv": out.getvalue().encode()}
    if kind == "parquet":
        sink = arrow.BufferOutputStream()
        pq.write_table(arrow.Table.from_pylist(rows), sink)
        return {"metadata.parquet": sink.getvalue().to_pybytes()}
    if kind == "coco":
        images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
        notes = [{"id": k, "image_id": k, "caption": "of it"} for k in range(len(names))]
        tree = {"images": images, "annotations": notes}
        return {"annotations/captions_train.json": json.dumps(tree).encode()}
    content = {"txt": "\n".join, "json": lambda text: json.dumps({"caption": text, "label": 0})}
    return {
        name.replace(".png", f".{kind}"): content[kind](t).encode() for name, t in texts.items()
    }


def caption_file(rng: Rng, base: Path, into: Path) -> Damage:
    """A folder of images with captions, of which one file is damaged."""
    images = files_of(base)
    listed = _listed(rng, list(images))
    name = pick(rng, list(listed))
    damage = odd_json if name.endswith("json") and rng.random() < 0.6 else damaged
    listed[name], note = damage(rng, listed[name])
    for path, data in {**images, **listed}.items():
        (into / "a" / path).parent.mkdir(parents=True, exist_ok=True)
        (into / "a" / path).write_bytes(data)
    return Damage(into / "a", f"{name}: {note}")


def caption_store(rng: Rng, base: Path, into: Path) -> Damage:
    """A store with captions: its data sets, its attributes, its bytes."""
    file = seeds.copy(base, "captioned.h5", into / "store.h5")
    note, must = damage_store(rng, file)
    return Damage(file, note, must)
