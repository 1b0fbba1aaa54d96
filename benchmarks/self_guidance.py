"""Guidance by SRA 2's own head: what it costs, and what it gives on the digits and the emoji.

    python benchmarks/self_guidance.py cost                       # B/2, 12 paired rounds; 4 minutes
    python benchmarks/self_guidance.py sweep RUN...               # runs of one recipe, a seed each

cost: sampling of B/2 with random weights, guided and plain in turns in one process.
sweep: fd of {none, self, classifier-free, both} over scales, at equal multiply-accumulates per
image: all have what 25 plain Euler steps take, so those with dearer steps take fewer. `both` is
self-guidance with classifier-free guidance at the scale CFG. The runs are those of `sra2 ablate
methods` (OUT/runs/sra2-seed0 and so on), of classes; 500 images a point.
Prints tables and writes benchmarks/results/self-guidance-*.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import write

from sra2cli.config import recipe
from sra2cli.config.settings import Recipe
from sra2cli.core import console
from sra2cli.models.build import build
from sra2cli.runs.run import Run
from sra2cli.sampling.draw import draw_latents
from sra2cli.sampling.settings import SELF_INTERVAL, Sampling
from sra2cli.training.counting import method_cost
from sra2cli.training.objective import build_heads

SCALES = (0.8, 1.2, 1.4, 1.8)
CFG = 1.4  # beside self-guidance, in `both`; fixed before anything was drawn
BUDGET = 25  # plain evaluations for one image, as fd-digits is defined
DRAWN = {"digits": ("fd-digits", 500), "emoji": ("fd-emoji", 500)}


def head_share(wanted: Recipe) -> float:
    """Multiply-accumulates of the head over those of the network."""
    cost = method_cost(wanted)
    return cost.heads["sra2"].macs / cost.network.macs


def cost(arguments: argparse.Namespace) -> None:
    wanted = recipe.load(f"{arguments.size}-sra2")
    torch.manual_seed(0)
    model, guide = build(wanted).eval(), build_heads(wanted, feature_width=None)["sra2"].eval()
    plain = Sampling(solver="euler", steps=arguments.steps, labels="balanced")
    ways = {"plain": plain, "self": Sampling(**{**vars(plain), "self_guidance": 1.4})}
    images, device = range(arguments.batch), torch.device("cpu")
    rounds: list[dict[str, float]] = []
    with console.progress("sampling", arguments.rounds + 1, unit="rounds") as bar:
        for _ in range(arguments.rounds + 1):
            taken = {}
            for name, sampling in ways.items():
                begun = time.perf_counter()
                draw_latents(model, images, sampling, kind="linear", device=device, guide=guide)
                taken[name] = time.perf_counter() - begun
            rounds.append(taken)
            bar.advance()
    ratios = sorted(taken["self"] / taken["plain"] for taken in rounds[1:])  # the first warms up
    found = {
        "model": f"SiT-{arguments.size.upper()}/2",
        "batch": arguments.batch,
        "steps": arguments.steps,
        "rounds": len(ratios),
        "threads": torch.get_num_threads(),
        "ratio": statistics.median(ratios),
        "range": [ratios[0], ratios[-1]],
        "by_count": 1 + head_share(wanted),
    }
    console.print_table(
        "self-guidance over plain sampling, fp32, CPU",
        ("model", "by count", "measured", "range", "rounds"),
        [
            (
                found["model"],
                f"{found['by_count']:.3f}",
                f"{found['ratio']:.3f}",
                f"{ratios[0]:.3f}-{ratios[-1]:.3f}",
                str(len(ratios)),
            )
        ],
    )
    write("self-guidance-cost", found)


def passes(steps: int, share: float, *, own: bool, cfg: bool) -> float:
    """Plain evaluations that the Euler steps of one image are worth."""
    times = [1 - k / steps for k in range(steps)]
    inside = sum(SELF_INTERVAL[0] <= t <= SELF_INTERVAL[1] for t in times) if own else 0
    return (2 if cfg else 1) * (steps + inside * share)


def steps_for(share: float, *, own: bool, cfg: bool) -> int:
    """The number of steps whose cost is nearest to the budget."""
    return min(range(1, BUDGET + 1), key=lambda n: abs(passes(n, share, own=own, cfg=cfg) - BUDGET))


def judged(run: Path, metric: str, num: int, options: list[object]) -> dict[str, float]:
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    ask = ["eval", run, "--num", num, "--metrics", metric, "--solver", "euler"]
    ask += ["--labels", "balanced", "--seed", Run(run).recipe.seed, "--device", "cpu", *options]
    command = [sys.executable, "-m", "sra2cli", *map(str, ask), "--json"]
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
    (row,) = json.loads(done.stdout)["rows"]
    return {key: row[key] for key in (metric, "accuracy") if key in row}


def sweep(arguments: argparse.Namespace) -> None:
    runs: list[Path] = arguments.runs
    wanted = Run(runs[0]).recipe
    share = head_share(wanted)
    name = "digits" if "digits" in wanted.name or wanted.data.channels == 16 else "emoji"
    metric, num = DRAWN[name]
    points: list[tuple[str, float, float, list[object], int]] = []
    for kind, scales in (("none", (1.0,)), ("self", SCALES), ("cfg", SCALES), ("both", SCALES)):
        own, cfg = kind in ("self", "both"), kind in ("cfg", "both")
        steps = steps_for(share, own=own, cfg=cfg)
        worth = passes(steps, share, own=own, cfg=cfg)
        for scale in scales:
            options: list[object] = ["--steps", steps]
            options += ["--self-guidance", scale] if own else []
            options += ["--cfg", CFG if own else scale] if cfg else []
            points.append((kind, scale, worth, options, steps))
    with (
        ThreadPoolExecutor(arguments.jobs) as pool,
        console.progress(name, len(points) * len(runs), unit="evaluations") as bar,
    ):

        def one(run: Path, options: list[object]) -> dict[str, float]:
            found = judged(run, metric, num, options)
            bar.advance()
            return found

        jobs = [[pool.submit(one, run, options) for run in runs] for _, _, _, options, _ in points]
        found = [[job.result() for job in of] for of in jobs]
    rows: list[dict[str, Any]] = []
    for (kind, scale, worth, _, steps), results in zip(points, found, strict=True):
        row: dict[str, Any] = {"kind": kind, "scale": scale, "steps": steps, "passes": worth}
        for key in results[0]:
            values = [result[key] for result in results]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[key] = {"mean": statistics.fmean(values), "std": spread, "values": values}
        rows.append(row)
    show(name, rows, metric)
    about = {"runs": [run.name for run in runs], "seeds": [Run(r).recipe.seed for r in runs]}
    about |= {"recipe": wanted.to_dict(), "head_share": share, "cfg_of_both": CFG, "images": num}
    write(f"self-guidance-{name}", {**about, "metric": metric, "rows": rows})


def show(name: str, rows: list[dict[str, Any]], metric: str) -> None:
    keys = [key for key in (metric, "accuracy") if key in rows[0]]
    cells = []
    for row in rows:
        values = [f"{row[k]['mean']:.3f} ± {row[k]['std'] or 0:.3f}" for k in keys]
        cells.append(
            (row["kind"], f"{row['scale']:g}", str(row["steps"]), f"{row['passes']:.1f}", *values)
        )
    console.print_table(
        f"{name}: guidance at equal cost", ("kind", "scale", "steps", "passes", *keys), cells
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    of_cost = parts.add_parser("cost")
    of_cost.add_argument("--size", choices=["b", "xl"], default="b")
    of_cost.add_argument("--batch", type=int, default=8)
    of_cost.add_argument("--steps", type=int, default=2)
    of_cost.add_argument("--rounds", type=int, default=12)
    of_sweep = parts.add_parser("sweep")
    of_sweep.add_argument("runs", type=Path, nargs="+")
    of_sweep.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    (cost if arguments.part == "cost" else sweep)(arguments)


if __name__ == "__main__":
    main()
