"""Watching a run: metrics.jsonl, the progress line, TensorBoard, Weights & Biases, previews."""

import json
import resource
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sra2cli.config.settings import Log
from sra2cli.core import console
from sra2cli.runs.writer import RunWriter
from sra2cli.training.counting import flops_per_image
from sra2cli.training.engine import Engine
from sra2cli.training.previews import Previews
from sra2cli.training.rates import rate_of

UNSHOWN = ("loss", "grad_norm", "data_seconds")  # in the progress line


class Watch:
    """Where the numbers of a run go.

    Args:
        step: the run goes on from here; later entries of an earlier process are dropped.
        encoder: an image encoder runs while training. text_encoder: which one does; None: none.
    """

    def __init__(
        self,
        run: RunWriter,
        step: int,
        *,
        device: str,
        processes: int,
        encoder: bool,
        text_encoder: str | None,
        previews: Previews,
    ):
        self.run, self.recipe, self.previews = run, run.recipe, previews
        self._metrics = run.start_metrics(step)
        self._begun, self._at = time.monotonic(), step
        self._device = device
        self._flops = flops_per_image(run.recipe, encoder=encoder, text_encoder=text_encoder)
        self._rate, self._processes = rate_of(device, run.recipe.train.precision), processes
        if self._rate is not None:
            console.say(str(self._rate))
        self._board = tensorboard(run.path, step) if run.recipe.log.tensorboard else None
        self._wandb = weights_and_biases(run) if run.recipe.log.wandb else None

    def row(self, step: int, means: dict[str, float]) -> str:
        """Write a row of metrics; returns its losses as one line."""
        now, steps = time.monotonic(), step - self._at
        means.pop("steps")
        rate = steps * self.recipe.train.batch / max(now - self._begun, 1e-9)
        self._begun, self._at = now, step
        row: dict[str, float] = {"step": step, **means, "images_per_second": rate}
        row["memory_gb"] = peak_memory(self._device)
        shares = []
        if self._rate is not None:
            row[self._rate.share] = rate * self._flops / (self._rate.flops * self._processes)
            shares.append(f"{self._rate.share} {row[self._rate.share]:.0%}")
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        values = {k: v for k, v in row.items() if k != "step"}
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        return noted(means, shares)

    def preview(self, engine: Engine) -> None:
        """Preview the EMA, where this step is one for it."""
        every = self.recipe.log.preview_every
        if every and engine.step % every == 0:
            self.previews.draw(engine.ema.model, engine.step)

    def leave_out(self, seconds: float) -> None:
        """Of the images a second: they were no training."""
        self._begun += seconds

    def judged(self, step: int) -> bool:
        """Whether there is an evaluation of this step."""
        return any(row["step"] == step for row in self.run.events("eval"))

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write a row of another kind, as an evaluation."""
        self._metrics.write(json.dumps({"step": step, "event": kind, **values}) + "\n")
        self._metrics.flush()
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        for name, value in numbers.items():
            if self._board is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{k}": v for k, v in numbers.items()}, step=step)

    def close(self) -> None:
        self._metrics.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def is_looked_at(log: Log, step: int) -> bool:
    """Whether a preview or an evaluation of a step is wanted."""
    return any(every and step % every == 0 for every in (log.preview_every, log.eval_every))


def noted(means: Mapping[str, float], shares: Sequence[str]) -> str:
    """What the progress line shows of a row: the loss, its parts where there are several."""
    parts = [f"{k} {v:.4f}" for k, v in means.items() if k not in UNSHOWN]
    loss = f"loss {means['loss']:.4f}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
    return ", ".join([loss, *shares])


def where_to_look(run: RunWriter) -> str:
    """A line for the start of a training."""
    log, path = run.recipe.log, shlex.quote(str(run.path))
    places = [f"{path}/metrics.jsonl every {log.every:,} steps"]
    if log.preview_every:
        places.append(f"pictures every {log.preview_every:,} in {path}/previews")
    if log.tensorboard:
        places.append(f"curves by `tensorboard --logdir {path}/tensorboard`")
    if log.wandb:
        places.append(f"W&B project {log.wandb}")
    return f"to look at: {', '.join(places)}"


def peak_memory(device: str) -> float:
    """GB so far: allocated on a GPU by this process; on a CPU, of the process in memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def tensorboard(path: Path, step: int) -> Any:
    """A writer of RUN/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(path / "tensorboard", purge_step=step + 1)


def weights_and_biases(run: RunWriter) -> Any:
    """A W&B run that a resumed training goes on with."""
    import wandb  # type: ignore[import-not-found, unused-ignore]

    return wandb.init(
        project=run.recipe.log.wandb,
        name=run.recipe.name,
        id=run.about.get("id"),
        resume="allow",
        dir=run.path,
        config=run.recipe.to_dict(),
    )
