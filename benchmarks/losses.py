"""What losses to expect: those of packaged recipes that a laptop can train, over their steps.

    python benchmarks/losses.py                  # trains digits-sit and digits-sra2, seed 0
    python benchmarks/losses.py --of RUN ...     # of runs that are there, as of benchmarks/emoji.py

Writes rows of metrics.jsonl, by recipe and seed, to benchmarks/results/losses.json beside those
that are there, and their curves to docs/figures/losses-FAMILY.png. docs/recipes.md shows both.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from common import RESULTS, write

from sra2cli.config import recipe
from sra2cli.core import pictures
from sra2cli.data import digits

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
LEFT_OUT = ("loss", "grad_norm")
FREE = ("steps", "micro_batch")  # of train: they change no loss of a step


def sra2(*arguments: object) -> None:
    command = [sys.executable, "-m", "sra2cli", *map(str, arguments), "--device", "cpu"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def train(out: Path, name: str) -> Path:
    """The run folder of a recipe of the digits; run again, it goes on."""
    images, store = out / "digits", out / "digits.h5"
    digits.write_folder(images)
    sra2("extract", images, "--out", store, "--vae", "digits", "--resolution", digits.RESOLUTION)
    sets = ["--set", "log.preview_every=0"]
    sra2("train", "--recipe", name, "--data", store, "--out", out / name, *sets)
    return out / name


def recipe_of(tree: dict[str, Any]) -> str | None:
    """The packaged recipe that a run's is, whatever its seed, its steps and its log."""

    def core(some: dict[str, Any]) -> dict[str, Any]:
        kept = {key: some[key] for key in ("path", "align")}
        data = {key: some["data"][key] for key in ("channels", "latent", "text_encoder")}
        steps = {key: value for key, value in some["train"].items() if key not in FREE}
        return {**kept, "model": some["model"], "data": data, "train": steps}

    own = core(tree)
    for name in recipe.names():
        if core(recipe.load(name, []).to_dict()) == own:
            return name
    return None


def losses(run: Path) -> dict[str, list[float]]:
    """{"step": [...], loss: [...]}: each 20 steps of the first 100, then each 200."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in found if "event" not in row]
    names = list(rows[0])[: list(rows[0]).index("images_per_second")]
    kept = [row for row in rows if row["step"] <= 100 or row["step"] % 200 == 0]
    return {n: [round(row[n], 4) for row in kept] for n in names if n not in LEFT_OUT}


def draw(family: str, found: dict[str, Any]) -> None:
    """Every loss of a family's recipes, of the first seed."""
    curves = {}
    for name, seeds in found.items():
        if name.startswith(family):
            first = seeds[min(seeds, key=int)]
            for loss in first.keys() - {"step"}:
                curves[f"{name}: {loss}"] = (first["step"], first[loss])
    file = FIGURES / f"losses-{family}.png"
    pictures.curves(dict(sorted(curves.items())), file, x="training step", y="loss")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--of", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-losses"))
    arguments = parser.parse_args()
    file = RESULTS / "losses.json"
    found: dict[str, Any] = json.loads(file.read_text())["recipes"] if file.exists() else {}
    runs = arguments.of or [train(arguments.out, name) for name in ("digits-sit", "digits-sra2")]
    for run in runs:
        tree = yaml.safe_load((run / "recipe.yaml").read_text())
        name = recipe_of(tree)
        if name is None:
            raise SystemExit(f"{run} is of no packaged recipe")
        found.setdefault(name, {})[str(tree["seed"])] = losses(run)
    write("losses", {"recipes": dict(sorted(found.items()))})
    for family in sorted({name.split("-")[0] for name in found}):
        draw(family, found)


if __name__ == "__main__":
    main()
