"""Cost of a training step of each method, backbone and mode: medians of paired ratios; its parts.

    python benchmarks/train_step.py                    # B/2, batch 8, fp32, 6 rounds; 26 GB
    python benchmarks/train_step.py --methods sit --modes lightningdit "sit compiled"   # 8 GB

A step is what `sra2 train` runs, with data from a store. The variants take turns in one process,
one step each a round, so that a drifting machine slows all alike. The parts of a step are timed
over whole steps of the plain network: what is not forward, backward, optimiser, clipping or EMA is
data wait and host overhead. Prints tables with each method's share of multiply-accumulates and
writes benchmarks/results/train_step.json.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import METHODS, STORED, make_engine, make_store, write

from sra2cli.config import recipe
from sra2cli.core import console
from sra2cli.data.store import Store
from sra2cli.training.counting import method_cost
from sra2cli.training.engine import Engine

MODES = {  # settings beside the plain ones: fp32, eager
    "lightningdit": ["model.kind=lightningdit"],  # of equal size, depth and width
    "lightningdit compiled": ["model.kind=lightningdit", "train.compile=true"],
    "sit compiled": ["train.compile=true"],
    "sit bf16": ["train.precision=bf16"],
    "sit bf16 compiled": ["train.precision=bf16", "train.compile=true"],
}


def stepper(engine: Engine, source: Any) -> Callable[[], float]:
    """A function that trains one step, data included, and returns its seconds."""
    steps = engine.steps_from(source.from_step(0, 10**6))

    def step() -> float:
        begun = time.perf_counter()
        next(steps)
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return step


def macs_share(size: str, method: str) -> float:
    """Of a step, over the plain network's: what only guides runs forward alone, a third."""
    plain = method_cost(recipe.load(f"{size}-sit")).macs
    wanted = recipe.load(f"{size}-{method.removesuffix(STORED)}")
    cost = method_cost(wanted, stored_features=method.endswith(STORED))
    external = sum(c.macs for c in cost.external.values())
    return (cost.macs - external + external / 3) / plain


class Timer:
    """Wraps functions and adds up the time spent in them (on a CPU, where calls wait)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                taken = time.perf_counter() - begun
                self.seconds[name] = self.seconds.get(name, 0.0) + taken

        return timed


def parts(size: str, batch: int, store: Store, steps: int) -> dict[str, float]:
    """Share of each part in whole training steps."""
    engine, source = make_engine(size, "sit", store, "cpu", [f"train.batch={batch}", PLAIN])
    timer = Timer()
    engine.wrapped.forward = timer.wrap("forward", engine.wrapped.forward)
    engine.optimizer.step = timer.wrap("optimiser", engine.optimizer.step)
    engine.ema.update = timer.wrap("ema", engine.ema.update)
    clip, backward = torch.nn.utils.clip_grad_norm_, torch.Tensor.backward
    torch.nn.utils.clip_grad_norm_ = timer.wrap("clipping", clip)
    torch.Tensor.backward = timer.wrap("backward", backward)
    try:
        step = stepper(engine, source)
        step()
        timer.seconds.clear()
        total = sum(step() for _ in range(steps))
    finally:
        torch.nn.utils.clip_grad_norm_, torch.Tensor.backward = clip, backward
    found = {name: seconds / total for name, seconds in timer.seconds.items()}
    return {**found, "data wait and host": 1 - sum(found.values())}


PLAIN = "train.precision=fp32"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="b", choices=["b", "xl"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    size, batch, chosen = arguments.size, arguments.batch, arguments.methods
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(Path(scratch), 64, features=any(m.endswith(STORED) for m in chosen))
        wanted = {m: (m, [PLAIN, f"train.batch={batch}"]) for m in chosen}
        for mode in arguments.modes:
            wanted[mode] = ("sit", [PLAIN, f"train.batch={batch}", *MODES[mode]])
        steps = {}
        for name, (method, settings) in wanted.items():
            steps[name] = stepper(*make_engine(size, method, store, "cpu", settings))
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        with console.progress("warm-up and rounds", arguments.rounds + 1, unit="rounds") as bar:
            for round_ in range(arguments.rounds + 1):
                for name, step in steps.items():
                    taken = step()
                    if round_:  # the first is warm-up
                        seconds[name].append(taken)
                bar.advance()
        del steps
        shares = parts(size, batch, store, arguments.rounds)
    rows, cells = [], []
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(found, seconds["sit"], strict=True)]
        share = macs_share(size, name) if name in METHODS else None
        row = {
            "name": name,
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "seconds": statistics.median(found),
            "macs_share": share,
        }
        rows.append(row)
        spread = f"{row['ratio_min']:.3f} – {row['ratio_max']:.3f}"
        cells.append((name, f"{row['ratio']:.3f}", spread, f"{share:.3f}" if share else ""))
    title = f"step of {size.upper()}/2, batch {batch}, cpu, fp32 and eager unless named"
    console.print_table(title, ("", "median ratio to sit", "range", "share of MACs"), cells)
    part_cells = [(name, f"{share:.2%}") for name, share in shares.items()]
    console.print_table("parts of a step of sit", ("", "of the step"), part_cells)
    write("train_step", {"arguments": vars(arguments), "rows": rows, "parts": shares})


if __name__ == "__main__":
    main()
