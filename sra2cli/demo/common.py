"""What both demos do alike."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sra2cli.core import pictures
from sra2cli.core.environment import environment
from sra2cli.reports.report import report
from sra2cli.runs.run import Run

Command = Callable[[list[str]], None]  # carries out `sra2 ARGUMENTS`


def on_one_thread(carry_out: Callable[[], list[dict[str, Any]]]) -> dict[str, Any]:
    """Its rows, with the seconds they took and where; so small a network is 1.7 times as fast on
    one thread as on two."""
    begun = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = carry_out()
    finally:
        torch.set_num_threads(threads)
    return {"rows": rows, "seconds": time.monotonic() - begun, "environment": environment()}


def loss_curves(out: Path, names: Mapping[str, str]) -> None:
    """OUT/loss.png of the runs in `out`, {folder: name}."""
    curves = {}
    for folder, name in names.items():
        metrics = Run(out / folder).metrics()
        curves[name] = ([m["step"] for m in metrics], [m["denoise"] for m in metrics])
    pictures.curves(curves, out / "loss.png", x="training step", y="denoising loss")


def page(out: Path, names: Mapping[str, str]) -> Path:
    """OUT/report.html of the same runs: samples, curves and numbers beside each other."""
    file = out / "report.html"
    report([out / folder for folder in names], file, names=list(names.values()))
    return file
