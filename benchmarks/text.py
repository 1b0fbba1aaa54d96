"""What captions cost: extraction with `words`, and reading ids or features of captions in batches.

    python benchmarks/text.py                # 3,000 digits; 2,000 latents, 540 MB

Extraction: seconds of `sra2 extract` with five captions an image over those without, in turns.
Reading: images a second of random batches of 256 SD-VAE moments and a caption's token ids (77) over
those of moments alone; and with a caption's features (77, 768) over those of moments with image
features of that size: as many bytes, from as large a data set. From warm pages, in turns, through
the prefetch thread of training. Prints medians and ranges, writes benchmarks/results/text.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import write
from PIL import Image
from torch import Tensor

from sra2cli.core import console
from sra2cli.core.prefetch import ahead
from sra2cli.data import digits
from sra2cli.data.batches import AHEAD
from sra2cli.data.captions import Packed, Text
from sra2cli.data.store import Store
from sra2cli.data.store_info import StoreInfo
from sra2cli.data.store_writer import StoreWriter
from sra2cli.extraction.extract import extract
from sra2cli.extraction.makers import Options

BATCH, CAPTIONS = 256, 5
LENGTH, WIDTH = 77, 768  # of CLIP L
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_images(root: Path, count: int) -> None:
    """Digits as PNGs, with a metadata.jsonl."""
    images, labels = digits.load_digits()
    lines = []
    for i in range(count):
        name = f"{i:06d}.png"
        Image.fromarray(images[i % len(images)]).save(root / name)
        of = WORDS[labels[i % len(images)]]
        texts = [
            f"the digit {of}, number {i}, drawn by hand in {k} strokes" for k in range(CAPTIONS)
        ]
        lines.append(json.dumps({"file_name": name, "text": texts}))
    (root / "metadata.jsonl").write_text("\n".join(lines))


def extraction(folder: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Ratios of seconds with captions to those without; and of the encoding process's CPU time."""
    images = folder / "images"
    images.mkdir()
    write_images(images, count)
    seconds: dict[str | None, list[tuple[float, float]]] = {"words": [], None: []}
    for number in range(rounds + 1):
        for encoder in list(seconds)[:: 1 if number % 2 else -1]:
            options = Options(vae="digits", resolution=32, text_encoder=encoder)
            begun = time.perf_counter(), time.process_time()
            extract(images, folder / "digits.h5", options, device="cpu")
            ended = time.perf_counter(), time.process_time()
            seconds[encoder].append((ended[0] - begun[0], ended[1] - begun[1]))
            (folder / "digits.h5").unlink()
    pairs = list(zip(seconds["words"][1:], seconds[None][1:], strict=True))  # the first ones import
    return {
        name: [with_text[k] / without[k] for with_text, without in pairs]
        for k, name in enumerate(("extraction", "extraction, CPU time"))
    }


def make_store(folder: Path, count: int) -> Store:
    """Random moments of 256 px images, a caption each; features of both, equally large."""
    info = StoreInfo(
        *("random", "0", 0.18215, 0.0),
        channels=4,
        latent=32,
        resolution=256,
        classes=0,
        encoder="random",
        feature_tokens=LENGTH,
        feature_width=WIDTH,
        text_encoder="random",
        text_fingerprint="0",
        text_tokens=LENGTH,
        text_width=WIDTH,
        text_vocabulary=49408,
        text_features=True,
    )
    rng = np.random.default_rng(0)
    text = Text(
        Packed.of([["a"]] * count),
        lambda texts: rng.integers(info.text_vocabulary, size=(len(texts), LENGTH)),
        lambda: np.zeros((LENGTH, WIDTH), np.float32),
    )
    names = [str(i) for i in range(count)]
    writer = StoreWriter(folder / "a.h5", info, names, [-1] * count, text=text)
    for k in range(0, count, BATCH):
        rows = range(k, min(k + BATCH, count))
        moments = rng.random((len(rows), 8, 32, 32), np.float32)
        features = rng.random((len(rows), LENGTH, WIDTH), np.float32)
        writer.write(rows, {"moments": moments, "features": features})
        writer.write_captions(rows, features)
    writer.finish()
    return Store(folder / "a.h5")


def reading(store: Store, rounds: int) -> dict[str, list[float]]:
    """Ratios of images a second with captions to those of as many bytes without."""
    captions, rng = store.captions, np.random.default_rng(0)
    assert captions is not None

    def rate(read: Callable[[np.ndarray], list[Tensor]]) -> float:
        rows = rng.integers(len(store), size=(200, BATCH))
        begun = time.perf_counter()
        for batch in ahead((read(some) for some in rows), depth=AHEAD):
            assert all(len(values) == BATCH for values in batch)
        return rows.size / (time.perf_counter() - begun)

    def picked(rows: np.ndarray) -> np.ndarray:
        return captions.pick(rows, rng.random(len(rows)))

    ways: dict[str, Callable[[np.ndarray], list[Tensor]]] = {
        "moments": lambda rows: [store.moments(rows)],
        "ids": lambda rows: [store.moments(rows), captions.ids(picked(rows))],
        "images' features": lambda rows: [store.moments(rows), store.features(rows)],
        "features": lambda rows: [store.moments(rows), captions.features(picked(rows))],
    }
    for read in ways.values():
        rate(read)  # warm
    found: dict[str, list[float]] = {"ids": [], "features": []}
    for _ in range(rounds):
        rates = {name: rate(read) for name, read in ways.items()}
        found["ids"].append(rates["ids"] / rates["moments"])
        found["features"].append(rates["features"] / rates["images' features"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--latents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        found = extraction(folder, arguments.images, arguments.rounds)
        read = reading(make_store(folder, arguments.latents), arguments.rounds)
        found |= {f"reading {name}": ratios for name, ratios in read.items()}
    bars = {"extraction": "at most 1.08", "extraction, CPU time": "", "reading ids": "at least 0.8"}
    bars["reading features"] = bars["reading ids"]
    rows = [
        (name, f"{statistics.median(r):.3f}", f"{min(r):.2f} – {max(r):.2f}", bars[name])
        for name, r in found.items()
    ]
    console.print_table("with captions, over without", ("", "median", "range", "wanted"), rows)
    write("text", {name: {"ratio": statistics.median(r), "ratios": r} for name, r in found.items()})


if __name__ == "__main__":
    main()
