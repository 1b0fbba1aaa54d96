"""Watching a run: metrics.jsonl, the progress line, TensorBoard, Weights & Biases, previews."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra2cli import console, pictures
from sra2cli.counting import method_cost
from sra2cli.errors import SetupError
from sra2cli.generate import Sampling, draw
from sra2cli.run_writer import RunWriter
from sra2cli.settings import Recipe
from sra2cli.sit import SiT
from sra2cli.store import StoreInfo
from sra2cli.vae import Vae, load_vae

PEAK = {  # dense matrix rate in FLOP/s of half precision, from the makers' data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A6000": 155e12,
    "V100": 125e12,
}
PREVIEW = Sampling(solver="euler", steps=50, labels="balanced")
PREVIEWED = 16


class Watch:
    """Where the numbers of a run go.

    Args:
        step: the run goes on from here; later entries of an earlier process are dropped.
        encoder: REPA's encoder runs while training.
    """

    def __init__(
        self,
        run: RunWriter,
        step: int,
        *,
        device: str,
        processes: int,
        encoder: bool,
        previews: "Previews",
    ):
        self.run, self.recipe, self.previews = run, run.recipe, previews
        self._metrics = run.start_metrics(step)
        self._begun, self._at, self._spent = time.monotonic(), step, 0.0
        self._flops = flops_per_image(run.recipe, encoder=encoder)
        self._peak = peak_rate(device, run.recipe) * processes
        self._board = tensorboard(run.path, step) if run.recipe.log.tensorboard else None
        self._wandb = weights_and_biases(run) if run.recipe.log.wandb else None

    def row(self, step: int, means: dict[str, float]) -> str:
        """Write a row of metrics; returns its losses as one line."""
        now, steps = time.monotonic(), step - self._at
        means.pop("steps")
        rate = steps * self.recipe.train.batch / max(now - self._begun + self._spent, 1e-9)
        self._begun, self._at, self._spent = now, step, 0.0
        row: dict[str, float] = {"step": step, **means, "images_per_second": rate}
        if self._peak:
            row["mfu"] = rate * self._flops / self._peak
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        values = {k: v for k, v in row.items() if k != "step"}
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        losses = [f"{k} {v:.4f}" for k, v in means.items() if k not in ("loss", "grad_norm")]
        return " ".join([*losses, *([f"mfu {row['mfu']:.0%}"] if "mfu" in row else [])])

    def judged(self, step: int) -> bool:
        """Whether there is an evaluation of this step."""
        return any(row["step"] == step for row in self.run.events("eval"))

    def pause_clock(self) -> None:
        """Time from here on, to `restart_clock`, is no training."""
        self._spent += time.monotonic() - self._begun

    def restart_clock(self) -> None:
        self._begun = time.monotonic()

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


def flops_per_image(recipe: Recipe, *, encoder: bool) -> float:
    """Of a training step: trained parts run forward and twice as much backward, others forward.

    Args:
        encoder: REPA's encoder runs while training.
    """
    cost = method_cost(recipe, stored_features=not encoder)
    trained = cost.network.macs + sum(c.macs for c in cost.heads.values())
    return 2.0 * (3 * trained + sum(c.macs for c in cost.external.values()))


def peak_rate(device: str, recipe: Recipe) -> float:
    """FLOP/s the device could do at this recipe's precision; 0 where it is not known."""
    if not device.startswith("cuda") or recipe.train.precision not in ("bf16", "fp16"):
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((rate for key, rate in PEAK.items() if key in name), 0.0)


def tensorboard(path: Path, step: int) -> Any:
    """A writer of RUN/tensorboard, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.warn(
            "TensorBoard is not installed: pip install tensorboard, or log.tensorboard=false"
        )
        return None
    return SummaryWriter(path / "tensorboard", purge_step=step + 1)


def weights_and_biases(run: RunWriter) -> Any:
    """A W&B run that a resumed training goes on with.

    Raises:
        SetupError: wandb is not installed.
    """
    try:
        import wandb  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise SetupError("log.wandb needs wandb: pip install wandb, or log.wandb=null") from None
    name = run.recipe.name
    return wandb.init(
        project=run.recipe.log.wandb,
        name=name,
        id=run.about.get("id"),
        resume="allow",
        dir=run.path,
        config=run.recipe.to_dict(),
    )


class Previews:
    """Grids of the EMA from fixed noise: RUN/previews/step-00010000.png.

    A VAE that cannot be loaded is said once; the training goes on without.
    """

    def __init__(self, run: RunWriter, info: StoreInfo, *, device: str, offline: bool):
        self.folder = run.path / "previews"
        self.kind = run.recipe.path.kind
        self.info, self.device, self.offline = info, device, offline
        self._vae: Vae | None = None
        self._failed = False

    def draw(self, model: SiT, step: int) -> Path | None:
        """Draw and save the grid of a step."""
        if self._vae is None and not self._failed:
            try:
                self._vae = load_vae(self.info.vae, device=self.device, offline=self.offline)
            except SetupError as error:
                console.warn(f"no previews: {error}")
                self._failed = True
        if self._vae is None:
            return None
        training = model.training
        images = draw(model.eval(), self._vae, range(PREVIEWED), PREVIEW, kind=self.kind)
        model.train(training)
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:08d}.png"
        scratch = path.with_name("." + path.name)
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
        pictures.grid(list(np.asarray(images)), columns=4).save(scratch, format="png")
        scratch.replace(path)
        return path
