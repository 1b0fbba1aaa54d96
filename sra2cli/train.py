"""sra2 train: the loop, and nothing else."""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sra2cli import batches, console
from sra2cli.batches import Batches, Raw, check_store
from sra2cli.ema import Ema
from sra2cli.encoders import Encoder, load_encoder
from sra2cli.errors import DataError
from sra2cli.objective import Objective, build_heads, sit_config
from sra2cli.recipe import from_dict
from sra2cli.run import Run, Trainer
from sra2cli.settings import Recipe
from sra2cli.sources import Source, open_source
from sra2cli.store import Store


def train(
    wanted: Recipe,
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    images: Path | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Train a recipe on a store in a run folder; go on where the folder's newest checkpoint is.

    Args:
        images: what the store was made from; REPA's encoder then runs while training,
            for stores without its features.

    Returns:
        A summary: run, step, losses of the last row of metrics.

    Raises:
        SetupError: recipe, store and run folder do not fit each other.
        DataError: the store is damaged, or a loss is not finite.
    """
    config = sit_config(wanted)
    with torch.device("meta"):  # what cannot be built is refused before data are read
        build_heads(wanted, feature_width=1)
    store = Store(data)
    source = open_source(images) if images is not None else None
    check_store(store, wanted, source)
    encoder = None
    if wanted.align.repa is not None and images is not None:
        side = math.isqrt(config.tokens)
        name = wanted.align.repa.encoder
        encoder = load_encoder(name, side=side, device=device, offline=offline)
    width = encoder.width if encoder is not None else store.info.feature_width
    objective = Objective(wanted, feature_width=width)
    store.verify()
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    wanted = resolve_precision(wanted, out, accelerator.device)
    run = Trainer(out, wanted, store, device=device)
    try:
        engine = Engine(run, store, objective, accelerator, encoder, source)
        engine.resume()
        engine.loop()
        return engine.summary()
    finally:
        run.close()


def resolve_precision(wanted: Recipe, out: Path, device: torch.device) -> Recipe:
    """The recipe with `auto` replaced: by the run's own precision, which never changes, or by what
    this machine does well."""
    if wanted.train.precision != "auto":
        return wanted
    tree = wanted.to_dict()
    if (out / "recipe.yaml").is_file():
        tree["train"]["precision"] = Run(out).recipe.train.precision
    else:
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        tree["train"]["precision"] = "bf16" if bf16 else "fp32"
    return from_dict(tree)


class Engine:
    """The state of one training: networks, optimiser, step, and the sums towards the next row."""

    def __init__(
        self,
        run: Trainer,
        store: Store,
        objective: Objective,
        accelerator: Accelerator,
        encoder: Encoder | None = None,
        images: Source | None = None,
    ):
        self.encoder, self.images = encoder, images if encoder is not None else None
        self.run, self.store, self.recipe = run, store, run.recipe
        self.accelerator, self.device = accelerator, accelerator.device
        settings = self.recipe.train
        self.objective = objective.to(self.device)
        self.ema = Ema(objective.sit, settings.ema)
        self.optimizer = torch.optim.AdamW(
            objective.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.step = 0
        self.saved = -1  # step of the newest checkpoint of this process
        self.sums: dict[str, Tensor] = {}
        self.indices = batches.split(settings.batch, rank=0, processes=1, micro=None)

    def resume(self) -> None:
        """Take up the newest whole checkpoint, if there is one."""
        checkpoint, skipped = self.run.newest()
        for line in skipped:
            console.warn(f"{line}; going back to the one before")
        if checkpoint is None:
            return
        self.objective.sit.load_state_dict(checkpoint.weights("model"))
        self.objective.heads.load_state_dict(checkpoint.weights("heads"))
        self.ema.model.load_state_dict(checkpoint.weights("ema"))
        training = checkpoint.training()
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        self.sums = {k: v.to(self.device) for k, v in training["sums"].items()}
        self.step = self.saved = checkpoint.step
        console.say(f"resuming {self.run.path} at step {self.step:,}")

    def loop(self) -> None:
        """Train to the recipe's last step; SIGINT and SIGTERM save and stop."""
        settings, log = self.recipe.train, self.recipe.log
        source = Batches(
            self.store,
            self.recipe,
            self.indices,
            features=self.objective.needs_features and self.encoder is None,
            images=self.images,
            pin=self.device.type == "cuda",
        )
        title = f"train {self.recipe.name}"
        with (
            stop_signals() as stopped,
            self.run.start_metrics(self.step) as metrics,
            console.progress(title, settings.steps, unit="steps", start=self.step) as bar,
        ):
            begun = time.monotonic()
            for raw in source.from_step(self.step, settings.steps):
                self.add(self.update(raw))
                self.step += 1
                note = None
                if self.step % log.every == 0 or self.step == settings.steps:
                    row = self.row(time.monotonic() - begun)
                    metrics.write(json.dumps(row) + "\n")
                    metrics.flush()
                    begun, note = time.monotonic(), f"loss {row['loss']:.4f}"
                bar.advance(note=note)
                if self.step % log.save_every == 0 or stopped:
                    self.save()
                if stopped:
                    break
        if self.saved != self.step:
            self.save()
        if stopped:
            console.say(
                f"stopped at step {self.step:,}, saved in {self.run.path}: "
                "run the same command again to go on"
            )
            raise SystemExit(128 + stopped[0])

    def update(self, raws: list[Raw]) -> dict[str, Tensor]:
        """One optimiser step; losses of the global batch and the gradient norm, on the device."""
        settings = self.recipe.train
        epoch = self.step * settings.batch // len(self.store)
        teacher = self.ema.teacher if self.objective.needs_teacher else None
        total: dict[str, Tensor] = {}
        for raw in raws:
            batch = batches.to_batch(raw, self.recipe, self.store, self.device, self.encoder)
            with self.autocast():
                losses = self.objective(batch, epoch, teacher)
            self.scaler.scale(losses["loss"] / len(raws)).backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss.detach() / len(raws)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), settings.grad_clip)
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1  # fp16 skips the step
        if not overflow and not math.isfinite(norm.item()):
            raise DataError(
                f"the loss or its gradient is not finite at step {self.step + 1}; the weights were "
                f"not touched, and the checkpoints in {self.run.path} are good. Try "
                "--set train.precision=fp32 or a smaller --set train.lr in a new --out"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.objective.sit)
        return {**total, "grad_norm": norm}

    def autocast(self) -> torch.autocast:
        """Half precision for the network, if the recipe asks for it."""
        precision = self.recipe.train.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=precision != "fp32")

    def add(self, values: dict[str, Tensor]) -> None:
        """Add to the sums towards the next row, on the device: no sync."""
        values = {**values, "steps": torch.ones((), device=self.device)}
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def row(self, seconds: float) -> dict[str, Any]:
        """The next row of metrics: means since the last one. Reads the device."""
        sums = {name: value.item() for name, value in self.sums.items()}
        self.sums = {}
        steps = sums.pop("steps")
        images = steps * self.recipe.train.batch
        return {
            "step": self.step,
            **{name: value / steps for name, value in sums.items()},
            "images_per_second": images / seconds,
        }

    def save(self) -> None:
        """Write a checkpoint of this step."""
        weights = {
            "model": self.objective.sit.state_dict(),
            "heads": self.objective.heads.state_dict(),
            "ema": self.ema.model.state_dict(),
        }
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums,
        }
        self.run.save(self.step, weights, training, self.objective.sit.config.to_dict())
        self.saved = self.step

    def summary(self) -> dict[str, Any]:
        rows = self.run.metrics()
        return {"run": str(self.run.path), "step": self.step, "last": rows[-1] if rows else {}}


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives the first SIGINT or SIGTERM; a second one has its usual effect."""
    received: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])
        console.say("stopping: saving a checkpoint first")

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
