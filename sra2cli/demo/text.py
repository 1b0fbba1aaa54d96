"""sra2 demo --text: emoji and their names in, two models out that draw from words.

Each step is an ordinary command, as in the demo on digits; both trainings run beside each other,
with a thread each.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from os import environ
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra2cli.core import console, pictures
from sra2cli.core.errors import UserError
from sra2cli.core.files import write_atomically, write_json
from sra2cli.data import emoji
from sra2cli.data.images import read_image
from sra2cli.demo.common import Command, loss_curves, on_one_thread, page

RECIPES = ("emoji-mmdit", "emoji-mmdit-sra2")
NAMES = {"emoji-mmdit": "MMDiT", "emoji-mmdit-sra2": "MMDiT + SRA 2"}
METRICS = "fd-emoji,emoji-text"
DRAWINGS = 2  # of each held-out caption
SHOWN = 12
KEYS = ("emoji-top1", "emoji-top5", "emoji-tone")
HEADER = ("run", "top-1 ↑", "top-5 ↑", "skin tone of 6 ↑", "fd-emoji ↓")


def demo(out: Path, run: Command, *, seed: int = 0, steps: int = 2400) -> dict[str, Any]:
    """Run it; results go to `out`: report.html, report.md, samples.png, loss.png, results.json.

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
    """Every command of the demo; a row a run."""
    images, store = out / "emoji", out / "emoji.h5"
    cpu = ["--device", "cpu"] if torch.cuda.is_available() else []
    console.say("on one thread; to repeat a command to the bit: OMP_NUM_THREADS=1 sra2 ...")
    console.say(f"writing the emoji as PNGs with their names to {images}")
    emoji.write_folder(images, form="text")
    told = ["--captions", "auto", "--text-encoder", "words"]
    made = ["--vae", "emoji", "--resolution", str(emoji.RESOLUTION), *told]
    run(["extract", str(images / "train"), "--out", str(store), *made, *cpu])
    held_out = emoji.load_emoji().part("test").captions
    prompts = out / "held-out.txt"
    write_atomically(prompts, "\n".join(held_out) + "\n")
    settings = [f"seed={seed}", f"train.steps={steps}", f"log.save_every={steps}"]
    settings += [f"log.keep_every={steps}", f"log.preview_every={max(1, steps // 4)}"]
    sets = [part for s in settings for part in ("--set", s)]
    beside_each_other(
        [
            ["train", "--recipe", name, "--data", str(store), "--out", str(out / name), *sets, *cpu]
            for name in RECIPES
        ]
    )
    rows = []
    for name in RECIPES:
        samples = out / name / "samples" / "held-out"
        count = ["--num", str(DRAWINGS * len(held_out)), "--seed", str(seed)]
        ask = ["--prompts", str(prompts), *count, "--preset", "emoji", "--out", str(samples)]
        run(["sample", str(out / name), *ask, *cpu])
        result = samples.parent / "eval-held-out.json"
        run(["eval", str(samples), "--metrics", METRICS, "--out", str(result)])
        rows.append({"run": name, **judged(result)})
    return rows


def judged(file: Path) -> dict[str, Any]:
    """What `sra2 eval` has found, as far as it is shown."""
    result = json.loads(file.read_text(encoding="utf-8"))
    return {key: result[key] for key in (*KEYS, "fd-emoji", "emoji-reconstructions")}


def beside_each_other(commands: Sequence[list[str]]) -> None:
    """Run `sra2` with each of these arguments, each in a process; UserError where one fails.

    Ctrl-C reaches them too: they are waited for while they save, and go on when this is run again.
    """
    for arguments in commands:
        console.say("$ sra2 " + shlex.join(arguments))
    alone = {**environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "sra2cli", *arguments],
            env=alone,
            stdout=subprocess.DEVNULL,
            stderr=None if number == 0 else subprocess.DEVNULL,  # one progress bar is enough
        )
        for number, arguments in enumerate(commands)
    ]
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.wait()
    for arguments, code in zip(commands, codes, strict=True):
        if code:
            raise UserError(f"it ended with {code}: run it alone: sra2 {shlex.join(arguments)}")


def report(out: Path, results: dict[str, Any]) -> None:
    """Pictures of held-out prompts, curves, table and report.md."""
    rows = results["rows"]
    held_out = emoji.load_emoji().part("test")
    chosen = np.linspace(0, len(held_out.captions) - 1, SHOWN).astype(int).tolist()
    real = [held_out.images[i] for i in chosen]
    drawn = [
        (
            NAMES[name],
            [read_image(out / name / "samples/held-out" / f"{i:06d}.png") for i in chosen],
        )
        for name in RECIPES
    ]
    captions = [held_out.captions[i] for i in chosen]
    pictures.labelled_rows(
        [("held out", real), *drawn], pictures.titles(captions), out / "samples.png"
    )
    loss_curves(out, NAMES)
    cells = [
        (NAMES[row["run"]], *(f"{row[key]:.3f}" for key in KEYS), f"{row['fd-emoji']:.2f}")
        for row in rows
    ]
    ceiling = rows[0]["emoji-reconstructions"]
    cells.append(
        (
            "the pictures themselves",
            *(f"{ceiling[key]:.3f}" for key in KEYS),
            f"{ceiling['fd-emoji']:.2f}",
        )
    )
    write_json(out / "results.json", results)
    write_atomically(out / "report.md", _report_text(cells, results))
    console.print_table("emoji: held-out captions", HEADER, cells)
    console.say(f"report: {out / 'report.md'}   to look at: {page(out, NAMES)}")


def _report_text(cells: Sequence[Sequence[str]], results: dict[str, Any]) -> str:
    held_out = len(emoji.load_emoji().part("test").captions)
    return f"""# MMDiT against MMDiT + SRA 2 on emoji

Two runs of {results["steps"]:,} steps with the same seed ({results["seed"]}), data order, noise,
times and captions; they differ in the alignment loss alone. Made by `sra2 demo --text` in
{results["seconds"]:.0f} s.

Drawn: {DRAWINGS} pictures of each of {held_out} held-out captions (guidance 2.5, Euler, 20 steps).
No run has seen their pictures; every word of them, and everything they name, is in the training
part, but not together.

![](samples.png)

{console.markdown_table(HEADER, cells)}
Judged by a small scorer of pictures and captions that has not seen the held-out pictures either:
top-k says how often a picture's own caption is among the k nearest of all, beside what the same
scorer finds of the held-out pictures themselves, through the first stage. fd-emoji is a Frechet
distance on its features against all training pictures, from which the held-out ones, people and
hands alone, are far away too. It is not FID, and means nothing outside these pictures
(docs/emoji.md).

## Denoising loss

![](loss.png)
"""
