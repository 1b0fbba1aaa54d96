"""Where a training step and a sampling step spend their time, and what the floor is.

    python benchmarks/profile_step.py                 # SRA 2, B/2, batch 8, fp32, eager; 5 minutes
    python benchmarks/profile_step.py --bf16 --compile

The floor is what the step's matrix products alone would take at the rate that products of the
network's own shapes reach here, measured between the steps of the same run. Time by operator is the
torch profiler's own time of CPU operators, summed by kind. Prints tables and writes
benchmarks/results/profile-MODE.json.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import make_engine, make_store, write
from torch.profiler import ProfilerActivity, profile

from sra2cli.core import console
from sra2cli.models.contract import Backbone
from sra2cli.sampling.draw import draw_latents
from sra2cli.sampling.settings import Sampling
from sra2cli.training.counting import method_cost

KINDS = {  # of operators, by how their names begin
    "matrix products": ("aten::addmm", "aten::mm", "aten::bmm", "mkldnn::", "aten::_addmm"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash_attention"),
    "optimiser and EMA": ("aten::_fused_adamw", "aten::_foreach"),
    "compiled kernels": ("## Call CompiledFx", "Torch-Compiled", "CompiledF"),
    "norms": ("aten::native_layer_norm", "aten::native_group_norm"),
    "activations": ("aten::gelu", "aten::silu"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::clone", "aten::_to_copy"),
    "element-wise": ("aten::add", "aten::mul", "aten::sub", "aten::div", "aten::sum", "aten::mean"),
}


def matrix_rate(tokens: int, width: int, dtype: torch.dtype) -> float:
    """Multiply-accumulates a second of the products of a block's shapes."""
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    pairs = [
        (torch.randn(tokens, a, dtype=dtype), torch.randn(a, b, dtype=dtype)) for a, b in shapes
    ]
    macs = sum(tokens * a * b for a, b in shapes)
    for x, w in pairs:
        x @ w
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        for x, w in pairs:
            x @ w
        times.append(time.perf_counter() - begun)
    return macs / min(times)


def by_kind(step: Callable[[], Any]) -> dict[str, float]:
    """Share of one step's operator time of each kind."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    seconds = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in found.key_averages():
        kind = next((k for k, begin in KINDS.items() if event.key.startswith(begin)), "rest")
        seconds[kind] += event.self_cpu_time_total
    total = sum(seconds.values())
    return {kind: value / total for kind, value in seconds.items()}


def measured(
    name: str, step: Callable[[], Any], macs: float, rate: Callable[[], float], rounds: int
) -> dict[str, Any]:
    """Steps and the matrix rate in turns: the median of step over floor, and the profile."""
    step()
    ratios, seconds = [], []
    with console.progress(name, rounds, unit="rounds") as bar:
        for _ in range(rounds):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
            ratios.append(seconds[-1] / (macs / rate()))
            bar.advance()
    return {
        "name": name,
        "gmacs": macs / 1e9,
        "seconds": statistics.median(seconds),
        "over_floor": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "kinds": by_kind(step),
    }


def sampling_step(model: Backbone, batch: int, dtype: torch.dtype | None) -> Callable[[], Any]:
    one = Sampling(solver="euler", steps=1, labels="balanced")
    device = torch.device("cpu")

    def step() -> None:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            draw_latents(model, range(batch), one, kind="linear", device=device)

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    precision, batch = "bf16" if arguments.bf16 else "fp32", arguments.batch
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    settings = [f"train.batch={batch}", f"train.precision={precision}"]
    settings.append(f"train.compile={str(arguments.compile).lower()}")
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(Path(scratch), 64, features=False)
        engine, batches = make_engine("b", "sra2", store, "cpu", settings)
        cost, shape = method_cost(engine.recipe), engine.objective.network.shape

        def rate() -> float:
            return matrix_rate(batch * shape.tokens, shape.width, dtype)

        steps = engine.steps_from(batches.from_step(0, 10**6))
        macs = 3.0 * cost.macs * batch
        rows = [measured("training", lambda: next(steps), macs, rate, arguments.rounds)]
        step = sampling_step(engine.ema.model, batch, dtype if arguments.bf16 else None)
        macs = float(cost.network.macs * batch)
        rows.append(measured("sampling", step, macs, rate, arguments.rounds))
    for row in rows:
        shares = [(kind, f"{share:.1%}") for kind, share in row["kinds"].items() if share > 0.0005]
        title = f"{row['name']} step, B/2, batch {batch}, {precision}"
        console.print_table(title, ("operators", "share"), shares)
        low, high = row["range"]
        console.say(f"{row['over_floor']:.2f} times its matrix products ({low:.2f} to {high:.2f})")
    how = {**vars(arguments), "threads": torch.get_num_threads()}
    mode = f"{precision}-compiled" if arguments.compile else precision
    write(f"profile-{mode}", {"arguments": how, "rows": rows})


if __name__ == "__main__":
    main()
