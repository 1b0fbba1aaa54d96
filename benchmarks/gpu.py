"""Training SiT-XL/2 on one GPU under each method: throughput, MFU, peak memory.

    bash benchmarks/gpu.sh                  # begins nothing after eight; run again, it goes on

bf16, blocks compiled once, micro-batches of 32 and 256 with data from a store. MFU is counted
twice: against the matrix rate measured in the same run, and against the maker's figure. Results are
written as they come to benchmarks/results/gpu-DEVICE.json; what is there is not measured again.
"""

import argparse
import datetime
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import METHODS, RESULTS, make_engine, make_store

from sra2cli.core import console
from sra2cli.core.environment import environment
from sra2cli.tables.timing import release
from sra2cli.training.counting import flops_per_image
from sra2cli.training.rates import matrix_rate, named_rate, wait

MICRO = (32, 256)


def measure(size: str, method: str, micro: int, store: Any, device: str) -> dict[str, float]:
    """Median images/s of a few runs of steps, compile and warm-up kept out."""
    settings = [
        f"train.batch={micro}",
        "train.micro_batch=null",
        "train.precision=bf16",
        "train.compile=true",
    ]
    torch.compiler.reset()
    release()  # the engine before this one, which refers to itself
    left = 0
    if device.startswith("cuda"):
        left = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    engine, source = make_engine(size, method, store, device, settings)
    steps = engine.steps_from(source.from_step(0, 10**6))
    for _ in range(4):
        next(steps)
    wait(device)
    runs, count = [], 8 if device.startswith("cuda") else 1
    for _ in range(5 if device.startswith("cuda") else 2):
        begun = time.perf_counter()
        for _ in range(count):
            next(steps)
        wait(device)
        runs.append(count * micro / (time.perf_counter() - begun))
    engine.check("this benchmark")
    peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    return {
        "images_per_second": statistics.median(runs),
        "slowest": min(runs),
        "fastest": max(runs),
        "peak_memory_gb": peak / 1e9,
        "left_by_others_gb": left / 1e9,
        "flops_per_image": flops_per_image(engine.recipe, encoder=method == "repa"),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="xl", choices=["xl", "b"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--micro", type=int, nargs="+", default=list(MICRO))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=480, help="begin nothing after that")
    arguments = parser.parse_args()
    device, begun = arguments.device, time.perf_counter()
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    file = RESULTS / f"gpu-{name.replace(' ', '-').lower()}.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    result |= {"date": datetime.date.today().isoformat(), "environment": environment(device)}
    rate = matrix_rate(device, 8192 if device.startswith("cuda") else 512)
    peak = named_rate(name)
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(Path(scratch), 512, features=True)
        for micro in arguments.micro:
            for method in arguments.methods:
                key = f"{arguments.size}-{method}-{micro}"
                if key in result["rows"] or time.perf_counter() - begun > arguments.seconds:
                    continue
                try:
                    row = measure(arguments.size, method, micro, store, device)
                except torch.cuda.OutOfMemoryError:
                    row = {"out_of_memory": True}
                else:
                    done = row["images_per_second"] * row["flops_per_image"]
                    row |= {"matrix_rate": rate, "of_matrix_rate": done / rate}
                    row |= {"mfu": done / peak if peak else None}
                result["rows"][key] = row
                RESULTS.mkdir(exist_ok=True)
                file.write_text(json.dumps(result, indent=1) + "\n")
                console.say(f"{key}: {row}")
    show(result["rows"], name)


def show(rows: dict[str, Any], name: str) -> None:
    """A table, with each method's throughput over that of SiT."""
    cells = []
    for key, row in rows.items():
        if "out_of_memory" in row:
            cells.append((key, "out of memory", "", "", ""))
            continue
        size, _, rest = key.partition("-")
        base = rows.get(f"{size}-sit-{rest.rpartition('-')[2]}", {}).get("images_per_second")
        ratio = f"{row['images_per_second'] / base - 1:+.1%}" if base else ""
        cells.append(
            (
                key,
                f"{row['images_per_second']:,.1f}",
                ratio,
                f"{row['of_matrix_rate']:.1%}",
                f"{row['peak_memory_gb']:.1f}",
            )
        )
    header = ("size-method-micro", "images/s", "over SiT", "of matrix rate", "GB")
    console.print_table(f"training on {name}, bf16, compiled", header, cells)


if __name__ == "__main__":
    main()
