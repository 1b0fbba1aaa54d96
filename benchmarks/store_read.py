"""Reading random batches of 256 SD-VAE moments: our store against the peers' .npy files.

    python benchmarks/store_read.py                  # 20,000 images, 655 MB each way

The peers: one `np.load` an image (as REPA and SRA do) through a DataLoader, at its best of 0, 2
and 4 workers. Ours: `Store.moments` in a prefetch
thread, as many batches ahead as in training. Both give float32 tensors
(256, 8, 32, 32), the same rows in the same order, from the same disk. Warm: everything was read
once before. Cold: the pages are dropped from the cache first (as far as the system lets them go).
Prints a table and writes benchmarks/results/store_read.json.
"""

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sra2cli.core import console
from sra2cli.core.environment import environment
from sra2cli.core.prefetch import ahead
from sra2cli.data.batches import AHEAD
from sra2cli.data.store import Store
from sra2cli.data.store_info import StoreInfo
from sra2cli.data.store_writer import StoreWriter

RESULTS = Path(__file__).parent / "results" / "store_read.json"
BATCH = 256
SHAPE = (8, 32, 32)
SKIPPED = 16  # batches at the start that do not count


class NpyFiles(Dataset[np.ndarray]):
    """One .npy an image, in folders of a thousand, as the peers store them."""

    def __init__(self, root: Path, count: int):
        self.files = [str(npy_file(root, i)) for i in range(count)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.load(self.files[index])


def npy_file(root: Path, index: int) -> Path:
    return root / f"{index // 1000:05d}" / f"img-mean-std-{index:08d}.npy"


def make(folder: Path, count: int) -> Store:
    """The same moments in both forms."""
    info = StoreInfo("random", "0", 0.18215, 0.0, channels=4, latent=32, resolution=256, classes=0)
    writer = StoreWriter(folder / "store.h5", info, [str(i) for i in range(count)], [-1] * count)
    for k in range(0, count, 1000):
        rows = list(range(k, min(k + 1000, count)))
        rng = np.random.default_rng(k)
        moments = rng.normal(size=(len(rows), *SHAPE)).astype(np.float32)
        writer.write(rows, {"moments": np.abs(moments)})
        (folder / f"{k // 1000:05d}").mkdir()
        for row, image in zip(rows, np.abs(moments), strict=True):
            np.save(npy_file(folder, row), image)
    writer.finish()
    return Store(folder / "store.h5")


def ours(store: Store, order: np.ndarray) -> Iterator[torch.Tensor]:
    batches = (order[k : k + BATCH] for k in range(0, len(order), BATCH))
    return ahead((store.moments(rows) for rows in batches), depth=AHEAD)


def theirs(files: NpyFiles, order: np.ndarray, workers: int) -> Iterator[torch.Tensor]:
    sampler = [order[k : k + BATCH].tolist() for k in range(0, len(order), BATCH)]
    return iter(DataLoader(files, batch_sampler=sampler, num_workers=workers))


def images_per_second(make_iterator: Callable[[], Iterator[torch.Tensor]], count: int) -> float:
    """Without the first batches: neither the start of workers counts, nor what they hold ready."""
    iterator = make_iterator()
    for _ in range(SKIPPED):
        next(iterator)
    begun = time.perf_counter()
    for batch in iterator:
        assert batch.shape == (BATCH, *SHAPE)
    return (count - SKIPPED * BATCH) / (time.perf_counter() - begun)


def drop(paths: list[Path]) -> None:
    """Ask the system to forget these files."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    count = arguments.images // BATCH * BATCH
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        store = make(folder, count)
        files = NpyFiles(folder, count)
        rng = np.random.default_rng(0)
        first = rng.permutation(count)
        for a, b in zip(ours(store, first), theirs(files, first, 0), strict=True):
            assert torch.equal(a, b)  # the same numbers; and now everything is warm
        rates: dict[str, list[float]] = {"sra2 store": []}
        for _ in range(arguments.rounds):
            order = rng.permutation(count)
            for workers in (0, 2, 4):
                rates.setdefault(f".npy, {workers} workers", []).append(
                    images_per_second(partial(theirs, files, order, workers), count)
                )
            long = np.concatenate([rng.permutation(count) for _ in range(4)])
            rates["sra2 store"].append(images_per_second(partial(ours, store, long), len(long)))
        order = rng.permutation(count)
        del store  # pages that are mapped do not leave the cache
        drop([folder / "store.h5"])
        fresh = Store(folder / "store.h5")
        cold = {"sra2 store": images_per_second(lambda: ours(fresh, order), count)}
        drop([Path(f) for f in files.files])
        cold[".npy, 4 workers"] = images_per_second(lambda: theirs(files, order, 4), count)
    warm = {name: statistics.median(found) for name, found in rates.items()}
    best = max(rate for name, rate in warm.items() if name != "sra2 store")
    rows = [(f"{name}, warm", f"{rate:,.0f}") for name, rate in warm.items()]
    rows.append(("ratio to the best of .npy, warm", f"{warm['sra2 store'] / best:.1f}"))
    rows += [(f"{name}, cold", f"{rate:,.0f}") for name, rate in cold.items()]
    console.print_table(f"random batches of {BATCH} from {count:,} images", ("", "images/s"), rows)
    result = {
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "images": count,
        "warm": warm,
        "cold": cold,
        "ratio": warm["sra2 store"] / best,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
