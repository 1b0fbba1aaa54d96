"""What losses to expect: the packaged recipes that a laptop can train, and what their metrics say.

    python benchmarks/losses.py                                  # the digits', 1,000 steps
    python benchmarks/losses.py emoji-sit emoji-sra2 --steps 200 # others beside them

One after the other, on one thread, seed 0; run again, a training goes on. Writes every row of
metrics.jsonl to benchmarks/results/losses.json, beside those of recipes that are there, and their
curves to docs/figures/losses-FAMILY.png; docs/recipes.md shows both.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, write

from sra2cli.core import pictures
from sra2cli.data import digits, emoji

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
LEFT_OUT = ("step", "loss", "grad_norm", "images_per_second", "memory_gb")


def sra2(*arguments: object) -> None:
    command = [sys.executable, "-m", "sra2cli", *map(str, arguments), "--device", "cpu"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def make_store(out: Path, name: str) -> Path:
    """Of what the recipe is for: digits, emoji by class or by caption."""
    if name.startswith("digits"):
        images, told = out / "digits", ["--vae", "digits"]
        digits.write_folder(images)
    elif "mmdit" in name:
        emoji.write_folder(out / "text", form="text")
        images, told = out / "text" / "train", ["--vae", "emoji", "--text-encoder", "words"]
    else:
        images, told = out / "class", ["--vae", "emoji"]
        emoji.write_folder(images, form="class")
    store = images.with_suffix(".h5")
    sra2("extract", images, "--out", store, "--resolution", 32, *told)
    return store


def losses(out: Path, name: str, steps: int) -> list[dict[str, float]]:
    """The rows of a training: steps, and each loss as the mean since the row before."""
    run = out / name
    sets = ["--set", f"train.steps={steps}", "--set", "log.preview_every=0"]
    sra2("train", "--recipe", name, "--data", make_store(out, name), "--out", run, *sets)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {"step": row["step"], **{k: round(v, 4) for k, v in row.items() if k not in LEFT_OUT}}
        for row in rows
        if "event" not in row
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", default=["digits-sit", "digits-sra2"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-losses"))
    arguments = parser.parse_args()
    file = RESULTS / "losses.json"
    found: dict[str, Any] = json.loads(file.read_text())["recipes"] if file.exists() else {}
    for name in arguments.recipes:
        found[name] = losses(arguments.out, name, arguments.steps)
    write("losses", {"recipes": dict(sorted(found.items()))})
    for family in sorted({name.split("-")[0] for name in found}):
        curves = {}
        for name, rows in found.items():
            if name.startswith(family):
                for loss in rows[0].keys() - {"step"}:
                    steps = [row["step"] for row in rows]
                    curves[f"{name}: {loss}"] = (steps, [row[loss] for row in rows])
        drawn = FIGURES / f"losses-{family}.png"
        pictures.curves(dict(sorted(curves.items())), drawn, x="training step", y="loss")


if __name__ == "__main__":
    main()
