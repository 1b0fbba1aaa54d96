"""sra2 vae --dry-run: what a first stage is and will take, before anything is written."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli.core import console
from sra2cli.data.sources import Choice
from sra2cli.extraction.decode import Chunks
from sra2cli.first_stages.folder import VaeFolder
from sra2cli.first_stages.pixels import chosen, held_out_of
from sra2cli.first_stages.settings import VaeSettings
from sra2cli.first_stages.train import opened
from sra2cli.first_stages.trainer import Trainer, encoder_of

TIMED = 2  # steps, after one that is not
PROBED = 8  # images whose decoding is timed


def plan(
    images: Path,
    out: Path,
    wanted: VaeSettings,
    *,
    choice: Choice,
    device: str = "cpu",
    offline: bool = False,
) -> dict[str, Any]:
    """Check images, settings and folder, count, and time two steps on this machine.

    Raises:
        SetupError, DataError: as the training would.
    """
    source = opened(images, choice)
    if out.exists():
        VaeFolder(out, wanted).close()
    rows = chosen(len(source), wanted)
    held = int(held_out_of(len(rows), wanted.held_out).sum())
    begun = time.perf_counter()
    probe = Chunks(source, [rows[:PROBED]], wanted.resolution, crop=wanted.crop)[0]
    decoding = (time.perf_counter() - begun) / len(rows[:PROBED])
    shape = (wanted.batch, wanted.resolution, wanted.resolution, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    encoder = encoder_of(wanted, device=device, offline=offline)
    long = replace(wanted, steps=max(wanted.steps, 1 + TIMED))  # enough for what is timed
    trainer = Trainer(long, pixels, device=device, encoder=encoder)
    with console.progress("timing a step", 1 + TIMED, unit="steps") as bar:
        for number in range(1 + TIMED):
            if number == 1:
                begun = time.perf_counter()
            trainer.update()
            trainer.row()  # waits for the device
            bar.advance()
    per_step = (time.perf_counter() - begun) / TIMED
    return {
        "images": len(rows),
        "held_out": held,
        "unreadable_of_the_first": len(probe.rejected),
        "latents": list(wanted.latent),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": wanted.steps,
        "epochs": round(wanted.steps * wanted.batch / max(1, len(rows) - held), 1),
        "pixels_gb": round(len(rows) * 3 * wanted.resolution**2 / 1e9, 2),
        "estimated_decoding_seconds": round(decoding * len(rows), 1),
        "estimated_seconds_per_step": round(per_step, 3),
        "estimated_hours": round(per_step * wanted.steps / 3600, 2),
        "dry_run": True,
    }
