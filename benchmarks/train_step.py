"""Cost of a training step of each method, as medians of paired ratios against vanilla SiT.

    python benchmarks/train_step.py        # B/2, batch 8, fp32, 10 rounds

The methods take turns in one process, one step each a round, so that a drifting machine slows all
alike. A step is what `sra2 train` runs: forward, backward, clipping, optimiser, EMA. Prints a
table with each method's share of multiply-accumulates beside it, and writes
benchmarks/results/train_step.json.
"""

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sra2cli import console, recipe
from sra2cli.counting import method_cost
from sra2cli.ema import Ema
from sra2cli.objective import Batch, Objective
from sra2cli.run import environment

RESULTS = Path(__file__).parent / "results" / "train_step.json"
FEATURE_WIDTH = 768


def make_batch(settings: recipe.Recipe, size: int, device: str) -> Batch:
    data = settings.data
    shape = (size, data.channels, data.latent, data.latent)
    return Batch(
        z=torch.randn(shape, device=device),
        mean=torch.randn(shape, device=device),
        noise=torch.randn(shape, device=device),
        t=torch.rand(size, device=device),
        y=torch.randint(0, data.classes + 1, (size,), device=device),
        teacher_uniform=torch.rand(size, device=device),
        features=torch.randn(size, (data.latent // 2) ** 2, FEATURE_WIDTH, device=device),
    )


def make_step(settings: recipe.Recipe, size: int, device: str) -> Callable[[], float]:
    """A function that runs one training step and returns its seconds."""
    objective = Objective(settings, feature_width=FEATURE_WIDTH).to(device)
    ema = Ema(objective.sit, settings.train.ema)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4, weight_decay=0, fused=True)
    batch = make_batch(settings, size, device)

    def step() -> float:
        begun = time.perf_counter()
        objective(batch, 0, ema.teacher)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), settings.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(objective.sit)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="b", choices=["b", "xl"])
    parser.add_argument("--methods", nargs="+", default=["sit", "sra2", "repa", "sra"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    recipes = {m: recipe.load(f"{arguments.size}-{m}") for m in arguments.methods}
    steps = {m: make_step(r, arguments.batch, arguments.device) for m, r in recipes.items()}
    seconds: dict[str, list[float]] = {m: [] for m in steps}
    with console.progress("warm-up and rounds", arguments.rounds + 1, unit="rounds") as bar:
        for round_ in range(arguments.rounds + 1):
            for method, step in steps.items():
                taken = step()
                if round_:  # the first is warm-up
                    seconds[method].append(taken)
            bar.advance()
    rows, cells = [], []
    for method in steps:
        ratios = [a / b for a, b in zip(seconds[method], seconds["sit"], strict=True)]
        cost = method_cost(recipes[method], stored_features=True)
        external = sum(c.macs for c in cost.external.values()) / cost.network.macs
        heads = sum(c.macs for c in cost.heads.values()) / cost.network.macs
        share = 1 + heads + external / 3  # a guiding network runs forward alone: a third of a step
        row = {
            "method": method,
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "seconds": statistics.median(seconds[method]),
            "macs_share": share,
        }
        rows.append(row)
        cells.append(
            (
                method,
                f"{row['ratio']:.3f}",
                f"{row['ratio_min']:.3f} – {row['ratio_max']:.3f}",
                f"{share:.3f}",
            )
        )
    title = f"step of {arguments.size.upper()}/2, batch {arguments.batch}, {arguments.device}, fp32"
    header = ("method (repa: stored features)", "median ratio to sit", "range", "share of MACs")
    console.print_table(title, header, cells)
    result = {
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "arguments": vars(arguments),
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
