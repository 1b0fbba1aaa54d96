"""sra2 demo: the embedded default. Real handwritten digits in, two trained models out.

Each step is an ordinary command; its command line is printed as it runs, so that it can be
repeated with a change.
"""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sra2cli import console, digits, encoding, pictures, recipe
from sra2cli.evaluate import evaluate
from sra2cli.extract import extract
from sra2cli.files import write_atomically
from sra2cli.generate import PRESETS, Sampling
from sra2cli.run import Run, environment
from sra2cli.sample import Options, sample
from sra2cli.train import train

RECIPES = ("digits-sit", "digits-sra2")
NAMES = {"digits-sit": "SiT", "digits-sra2": "SiT + SRA 2"}
JUDGED = Sampling(**PRESETS["digits"])
SHOWN = Sampling(solver="em", steps=50, labels="balanced", cfg=1.8, interval=(0.0, 0.7))
JUDGED_COUNT, SHOWN_COUNT = 500, 100
HEADER = ("run", "steps", "fd-digits ↓", "accuracy ↑", "guided fd-digits", "guided accuracy")


def demo(out: Path, *, seed: int = 0, steps: int = 2400) -> dict[str, Any]:
    """Run the whole pipeline; results go to `out`: report.md, PNGs, results.json.

    Run again, finished steps are not done twice.

    Returns:
        What results.json holds.
    """
    begun = time.monotonic()
    images, store = out / "digits", out / "digits.h5"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is 1.7 times as fast on one thread as on two
    try:
        return _demo(out, images, store, seed=seed, steps=steps, begun=begun)
    finally:
        torch.set_num_threads(threads)


def _demo(
    out: Path, images: Path, store: Path, *, seed: int, steps: int, begun: float
) -> dict[str, Any]:
    console.say("on one thread; to repeat a command to the bit: OMP_NUM_THREADS=1 sra2 ...")
    console.say(f"writing the 1,797 digits of scikit-learn as PNGs to {images}")
    digits.write_folder(images)
    command("extract", images, "--out", store, "--vae", "digits", "--resolution", 32)
    extract(
        images, store, encoding.Options(vae="digits", resolution=digits.RESOLUTION), device="cpu"
    )
    half = steps // 2
    rows = []
    for name in RECIPES:
        settings = [f"seed={seed}", f"train.steps={steps}"]
        settings += [f"log.save_every={half}", f"log.keep_every={half}"]
        sets = [part for setting in settings for part in ("--set", setting)]
        run = out / name
        command("train", "--recipe", name, "--data", store, "--out", run, *sets)
        train(recipe.load(name, settings), store, run, device="cpu")
        rows += [judge(run, step, seed) for step in (half, steps)]
    results = {
        "seed": seed,
        "rows": rows,
        "seconds": time.monotonic() - begun,
        "environment": environment(),
    }
    report(out, results)
    return results


def judge(run: Path, step: int, seed: int) -> dict[str, Any]:
    """Samples of one checkpoint, without guidance for the numbers and with it for the grid."""
    row: dict[str, Any] = {"run": run.name, "steps": step}
    for kind, sampling, num in (
        ("judged", JUDGED, JUDGED_COUNT),
        ("shown", SHOWN, SHOWN_COUNT),
        ("guided", SHOWN, JUDGED_COUNT),
    ):
        folder = run / "samples" / f"{kind}-step{step}"
        options = ["--step", step, "--num", num, "--labels", sampling.labels, "--seed", seed]
        options += ["--solver", sampling.solver, "--steps", sampling.steps]
        if sampling.cfg != 1:
            options += ["--cfg", sampling.cfg]
            options += ["--interval", f"{sampling.interval[0]:g}:{sampling.interval[1]:g}"]
        command("sample", run, *options, "--out", folder)
        settings = {**sampling.to_dict(), "seed": seed, "interval": sampling.interval}
        chosen = Options(step=step)
        sample(run, num=num, sampling=Sampling(**settings), options=chosen, out=folder)
        if kind != "shown":
            command("eval", folder, "--metric", "fd-digits")
            result = evaluate(folder, metric="fd-digits")
            prefix = "guided_" if kind == "guided" else ""
            row[f"{prefix}fd_digits"] = result["fd-digits"]
            row[f"{prefix}accuracy"] = result["accuracy"]
    return row


def command(name: str, *arguments: object) -> None:
    """Print a command line that a user can repeat."""
    if name != "eval" and torch.cuda.is_available():
        arguments += ("--device", "cpu")  # the demo is the same everywhere
    console.say("$ sra2 " + shlex.join([name, *map(str, arguments)]))


def report(out: Path, results: dict[str, Any]) -> None:
    """Grids, curves, table and report.md."""
    rows = results["rows"]
    steps = sorted({row["steps"] for row in rows})
    for step in steps:
        grids = [
            (NAMES[name], Image.open(out / name / "samples" / f"shown-step{step}" / "grid.png"))
            for name in RECIPES
        ]
        pictures.side_by_side(grids, out / f"samples-step{step}.png")
    curves = {}
    for name in RECIPES:
        metrics = Run(out / name).metrics()
        curves[NAMES[name]] = ([m["step"] for m in metrics], [m["denoise"] for m in metrics])
    pictures.curves(curves, out / "loss.png", x="training step", y="denoising loss")
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
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(out / "report.md", _report_text(cells, steps, results))
    console.print_table("digits: SiT against SiT + SRA 2", HEADER, cells)
    console.say(f"report: {out / 'report.md'}   pictures: {out / f'samples-step{steps[-1]}.png'}")


def _report_text(cells: Sequence[Sequence[str]], steps: list[int], results: dict[str, Any]) -> str:
    shown = "\n\n".join(f"After {s:,} steps:\n\n![](samples-step{s}.png)" for s in reversed(steps))
    table = console.markdown_table(HEADER, cells)
    return f"""# SiT against SiT + SRA 2 on handwritten digits

Two runs with the same seed ({results["seed"]}), data order, noise and times; they differ in the
alignment loss alone. Made by `sra2 demo` in {results["seconds"]:.0f} s.

{table}
`fd-digits` is a Frechet distance on the 64 features of a small digits classifier, of
{JUDGED_COUNT} samples with balanced labels (Euler, {JUDGED.steps} steps, no guidance) against all
1,797 digits. It is not FID, and means nothing outside these digits. The classifier was trained on
the first {digits.TRAINED_ON:,} of the 1,797 digits (`sra2cli/digits.py`). Accuracy: how often it
sees the asked digit in a sample. The guided columns are drawn as the grids below: SDE,
{SHOWN.steps} steps, guidance {SHOWN.cfg} on t in [{SHOWN.interval[0]:g}, {SHOWN.interval[1]:g}],
{JUDGED_COUNT} samples; so small a model over-guides easily, and the order of the runs may turn.

## Samples

The same noise and labels in both grids; the columns are the digits 0 to 9.

{shown}

## Denoising loss

![](loss.png)
"""
