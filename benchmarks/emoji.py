"""SRA 2 against plain training on the emoji, by caption and by class, for several seeds.

    python benchmarks/emoji.py                # seeds 0, 1, 2; an hour on two cores
    python benchmarks/emoji.py --part text --seeds 0

Both runs of a seed share data order, noise, start and captions, and run beside each other with a
thread each. Judged half-way and at the end, with guidance fixed beforehand (2.5, Euler, 20 steps):
two drawings of each of the held-out captions, top-1, top-5 and skin tone; without guidance:
fd-emoji of 1,000 drawings, of the store's captions or of the classes in turn. Prints a table, and
writes benchmarks/results/emoji-PART.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import write

from sra2cli.core import console
from sra2cli.data import emoji

RECIPES = {"text": ("emoji-mmdit", "emoji-mmdit-sra2"), "class": ("emoji-sit", "emoji-sra2")}
EXTRACT = ["--vae", "emoji", "--resolution", "32", "--device", "cpu"]
TOLD = ["--captions", "auto", "--text-encoder", "words"]
SHOWN = {
    "text": ("emoji-top1", "emoji-top5", "emoji-tone", "fd-emoji"),
    "class": ("fd-emoji", "accuracy"),
}
DRAWN = 1000


def sra2(*arguments: object) -> Any:
    """What `sra2 ARGUMENTS --json` prints."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sra2cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def make_store(out: Path, part: str) -> Path:
    images, store = out / part, out / f"{part}.h5"
    emoji.write_folder(images, form="text" if part == "text" else "class")
    source, told = (images / "train", TOLD) if part == "text" else (images, [])
    sra2("extract", source, "--out", store, *EXTRACT, *told)
    return store


def trained_and_judged(
    recipe: str, seed: int, steps: int, store: Path, out: Path, part: str
) -> list[dict[str, Any]]:
    """A row half-way and one at the end."""
    run, half = out / f"{recipe}-seed{seed}", steps // 2
    settings = [f"seed={seed}", f"train.steps={steps}", "log.preview_every=0"]
    settings += [f"log.save_every={half}", f"log.keep_every={half}"]
    sets = [part for setting in settings for part in ("--set", setting)]
    sra2("train", "--recipe", recipe, "--data", store, "--out", run, *sets, "--device", "cpu")
    rows = []
    for step in (half, steps):
        drawn = ["--num", DRAWN, "--seed", seed, "--step", step, "--device", "cpu"]
        found: dict[str, Any] = {"run": recipe, "seed": seed, "steps": step}
        if part == "text":
            held_out = emoji.load_emoji().part("test").captions
            prompts = out / "held-out.txt"
            prompts.write_text("\n".join(held_out) + "\n", encoding="utf-8")
            ask = [*drawn[2:], "--num", 2 * len(held_out), "--prompts", prompts]
            result = sra2("eval", run, *ask, "--preset", "emoji", "--metrics", "emoji-text")
            (row,) = result["rows"]
            found |= {key: row[key] for key in SHOWN["text"][:3]}
            found["reconstructions"] = row["emoji-reconstructions"]
            plain = ["--prompts", store, "--preset", "emoji", "--cfg", 1]
        else:
            plain = ["--preset", "emoji-class"]
        (row,) = sra2("eval", run, *drawn, *plain, "--metrics", "fd-emoji")["rows"]
        found |= {key: row[key] for key in ("fd-emoji", "accuracy") if key in row}
        rows.append(found)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=[*RECIPES, "both"], default="both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-emoji"))
    arguments = parser.parse_args()
    for part in RECIPES if arguments.part == "both" else (arguments.part,):
        store = make_store(arguments.out, part)
        rows: list[dict[str, Any]] = []
        with (
            ThreadPoolExecutor(2) as pool,
            console.progress(part, len(arguments.seeds), unit="seeds") as bar,
        ):
            for seed in arguments.seeds:
                both = [
                    pool.submit(
                        trained_and_judged, name, seed, arguments.steps, store, arguments.out, part
                    )
                    for name in RECIPES[part]
                ]
                rows += [row for future in both for row in future.result()]
                bar.advance()
        show(part, rows)
        settings = {"steps": arguments.steps, "seeds": arguments.seeds}
        write(f"emoji-{part}", {"arguments": settings, "rows": rows})


def show(part: str, rows: list[dict[str, Any]]) -> None:
    """Each run, and the mean of each recipe over its seeds."""
    keys = SHOWN[part]
    cells = [
        (row["run"], f"{row['steps']:,}", str(row["seed"]), *(f"{row[k]:.3f}" for k in keys))
        for row in rows
    ]
    for name in RECIPES[part]:
        for steps in sorted({row["steps"] for row in rows}):
            some = [row for row in rows if (row["run"], row["steps"]) == (name, steps)]
            means = (f"{statistics.mean(row[k] for row in some):.3f}" for k in keys)
            cells.append((name, f"{steps:,}", "mean", *means))
    console.print_table(f"emoji, by {part}", ("run", "steps", "seed", *keys), cells)


if __name__ == "__main__":
    main()
