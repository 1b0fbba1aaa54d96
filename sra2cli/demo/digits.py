"""sra2 demo: the embedded default. Real handwritten digits in, two trained models out.

Each step is an ordinary command; its command line is printed as it runs, so that it can be
repeated with a change. What the steps found is read from the files they leave.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sra2cli.core import console, pictures
from sra2cli.core.files import write_atomically, write_json
from sra2cli.data import digits
from sra2cli.data.images import read_image
from sra2cli.demo.common import Command, loss_curves, on_one_thread, page
from sra2cli.evaluation.digits_classifier import TRAINED_ON

RECIPES = ("digits-sit", "digits-sra2")
NAMES = {"digits-sit": "SiT", "digits-sra2": "SiT + SRA 2"}
PLAIN = ("--preset", "digits")
GUIDED = ("--labels", "balanced", "--steps", "50", "--cfg", "1.8", "--interval", "0:0.7")
JUDGED_COUNT = 500  # images; the first 100 are shown
HEADER = ("run", "steps", "fd-digits ↓", "accuracy ↑", "guided fd-digits", "guided accuracy")


def demo(out: Path, run: Command, *, seed: int = 0, steps: int = 2400) -> dict[str, Any]:
    """Run the whole pipeline; results go to `out`: report.html, report.md, PNGs, results.json.

    Run again, finished steps are not done twice.

    Args:
        run: carries out `sra2 ARGUMENTS`.

    Returns:
        What results.json holds.
    """
    found = on_one_thread(lambda: carry_out(out, run, seed=seed, steps=steps))
    results = {"seed": seed, "steps": steps, **found}
    report(out, results)
    return results


def carry_out(out: Path, run: Command, *, seed: int, steps: int) -> list[dict[str, Any]]:
    """Every command of the demo; a row for each checkpoint that is judged."""
    images, store = out / "digits", out / "digits.h5"
    cpu = ["--device", "cpu"] if torch.cuda.is_available() else []  # the same everywhere
    console.say("on one thread; to repeat a command to the bit: OMP_NUM_THREADS=1 sra2 ...")
    console.say(f"writing the 1,797 digits of scikit-learn as PNGs to {images}")
    digits.write_folder(images)
    made = ["--out", str(store), "--vae", "digits", "--resolution", str(digits.RESOLUTION)]
    run(["extract", str(images), *made, *cpu])
    half = steps // 2
    settings = [f"seed={seed}", f"train.steps={steps}"]
    settings += [f"log.save_every={half}", f"log.keep_every={half}"]
    rows = []
    for name in RECIPES:
        folder = out / name
        train = ["train", "--recipe", name, "--data", str(store), "--out", str(folder)]
        run([*train, *(part for s in settings for part in ("--set", s)), *cpu])
        for step in (half, steps):
            found = {"run": name, "steps": step}
            for kind, options in (("judged", PLAIN), ("guided", GUIDED)):
                samples = folder / "samples" / f"{kind}-step{step}"
                chosen = ["--step", str(step), "--num", str(JUDGED_COUNT), "--seed", str(seed)]
                run(["sample", str(folder), *chosen, *options, "--out", str(samples), *cpu])
                run(["eval", str(samples), "--metrics", "fd-digits"])
                found |= judged(samples, "guided_" if kind == "guided" else "")
            rows.append(found)
    return rows


def judged(samples: Path, prefix: str) -> dict[str, float]:
    """What `sra2 eval` has left in a folder of samples."""
    result = json.loads((samples / "eval-fd-digits.json").read_text(encoding="utf-8"))
    return {f"{prefix}fd_digits": result["fd-digits"], f"{prefix}accuracy": result["accuracy"]}


def report(out: Path, results: dict[str, Any]) -> None:
    """Grids, curves, table and report.md."""
    rows = results["rows"]
    steps = sorted({row["steps"] for row in rows})
    for step in steps:
        grids = [
            (NAMES[name], Image.fromarray(read_image(folder / f"guided-step{step}" / "grid.png")))
            for name, folder in ((name, out / name / "samples") for name in RECIPES)
        ]
        pictures.side_by_side(grids, out / f"samples-step{step}.png")
    loss_curves(out, NAMES)
    cells = [
        (
            NAMES[row["run"]],
            f"{row['steps']:,}",
            f"{row['fd_digits']:.2f}",
            f"{row['accuracy']:.1%}",
            f"{row['guided_fd_digits']:.2f}",
            f"{row['guided_accuracy']:.1%}",
        )
        for row in sorted(rows, key=lambda row: row["steps"])
    ]
    write_json(out / "results.json", results)
    write_atomically(out / "report.md", _report_text(cells, steps, results))
    console.print_table("digits: SiT against SiT + SRA 2", HEADER, cells)
    console.say(f"report: {out / 'report.md'}   to look at: {page(out, NAMES)}")


def _report_text(cells: Sequence[Sequence[str]], steps: list[int], results: dict[str, Any]) -> str:
    shown = "\n\n".join(f"After {s:,} steps:\n\n![](samples-step{s}.png)" for s in reversed(steps))
    table = console.markdown_table(HEADER, cells)
    return f"""# SiT against SiT + SRA 2 on handwritten digits

Two runs with the same seed ({results["seed"]}), data order, noise and times; they differ in the
alignment loss alone. Made by `sra2 demo` in {results["seconds"]:.0f} s.

{table}
`fd-digits` is a Frechet distance on the 64 features of a small digits classifier, of
{JUDGED_COUNT} samples with balanced labels (Euler, 25 steps, no guidance) against all 1,797 digits.
It is not FID, and means nothing outside these digits. The classifier was trained on the first
{TRAINED_ON:,} of the 1,797 digits (`tools/make_digits.py`). Accuracy: how often it sees the asked
digit in a sample. The guided columns are drawn as the grids below, {JUDGED_COUNT} samples
(`{" ".join(GUIDED)}`);
so small a model over-guides easily, and the order of the runs may turn.

## Samples

The same noise and labels in both grids; the columns are the digits 0 to 9.

{shown}

## Denoising loss

![](loss.png)
"""
