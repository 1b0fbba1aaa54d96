"""The state of one training, and one step of it."""

import contextlib
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sra2cli.align import Teacher
from sra2cli.config.recipe import from_dict
from sra2cli.config.settings import Recipe, Train
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.finite import check_finite
from sra2cli.core.processes import Group
from sra2cli.data import batches
from sra2cli.data.batches import Raw
from sra2cli.data.store import Store
from sra2cli.encoders.image import Encoder
from sra2cli.encoders.text import TextEncoder
from sra2cli.models.contract import Backbone
from sra2cli.models.ema import Ema, tokens_of
from sra2cli.runs.run import EMA_HEADS, Checkpoint, Run
from sra2cli.training.objective import Objective
from sra2cli.training.rates import fast_bf16

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Networks, optimiser, EMA, step, and the sums towards the next row of metrics.

    Nothing in a step waits for the device: losses are summed on it, and a loss that is not finite
    switches the optimiser off there, from that step on, until `check` reads of it.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        objective: Objective,
        group: Group,
        encoder: Encoder | None = None,
        text_encoder: TextEncoder | None = None,
        frozen: Backbone | None = None,
    ):
        settings = recipe.train
        self.recipe, self.store = recipe, store
        self.encoder, self.text_encoder = encoder, text_encoder
        self.group, self.device = group, torch.device(group.device)
        if self.device.index is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = settings.tf32
        self.objective = objective.to(self.device)
        self.objective.network.checkpointing = settings.checkpointing
        self.frozen = None if frozen is None else frozen.to(self.device)
        self.ema = Ema(objective.network, settings.ema)
        guides = {n: m for n, m in objective.methods().items() if m.settings.reads}
        self.guides = nn.ModuleDict(guides)
        self.ema_heads = Ema(self.guides, settings.ema) if guides else None
        compiled = self.device.type == "cuda" if settings.compile is None else settings.compile
        if compiled:
            self.objective.network.compile_blocks()
            self.ema.model.compile_blocks()
            for guide in (self.frozen, self.encoder):
                if guide is not None:
                    guide.compile_blocks()
        self.optimizer = torch.optim.AdamW(
            objective.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.wrapped: Any = objective
        if group.count > 1:
            with warnings.catch_warnings():  # the name of an option changes in torch 2.15
                warnings.simplefilter("ignore", FutureWarning)
                self.wrapped = DistributedDataParallel(
                    objective, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        self.step = 0
        self.sums: dict[str, Tensor] = {}
        self.broken = torch.zeros((), device=self.device)  # 1 from the first bad step on
        self.broken_at = torch.zeros((), device=self.device)  # that step

    def update(self, raws: list[Raw]) -> None:
        """One optimiser step on the micro-batches of this process."""
        settings = self.recipe.train
        epoch = batches.epoch_of(self.recipe, self.step, self.store)
        factors = self.objective.factors(self.step, epoch)
        needed = self.recipe.needs("teacher", self.step, epoch)
        teacher = self.teacher if needed else None
        frozen = self.frozen_teacher(epoch)
        total: dict[str, Tensor] = {}
        for number, raw in enumerate(raws, start=1):
            with self.autocast():  # an encoder too runs in the run's precision, as REPA's does
                batch = batches.to_batch(
                    raw, self.recipe, self.store, self.device, self.encoder, self.text_encoder
                )
            with self._sync_if(number == len(raws)):
                with self.autocast():
                    losses = self.wrapped(batch, factors, teacher, frozen)
                self.scaler.scale(losses["loss"] / len(raws)).backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss.detach() / len(raws)
        self.scaler.unscale_(self.optimizer)
        norm = self._clip(self._trained(factors))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        self.step += 1
        self._optimize(norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.objective.network)
        if self.ema_heads is not None:
            self.ema_heads.update(self.guides)
        found = {**total, "grad_norm": norm, "steps": torch.ones((), device=self.device)}
        if self.scaler.is_enabled():  # a step that overflowed is skipped, and has no numbers
            found = {name: torch.where(x.isfinite(), x, 0.0) for name, x in found.items()}
        self._add(found)

    @property
    def teacher(self) -> Teacher:
        """Tokens of the EMA."""
        return partial(tokens_of, self.ema.model)

    def frozen_teacher(self, epoch: int) -> Teacher | None:
        """Tokens of the frozen network, where a method needs them at this step."""
        if self.frozen is None or not self.recipe.needs("frozen", self.step, epoch):
            return None
        return partial(tokens_of, self.frozen)

    def _clip(self, trained: list[torch.nn.Parameter]) -> Tensor:
        """The norm of the gradients, which are cut to train.grad_clip if there is one."""
        if (bound := self.recipe.train.grad_clip) is not None:
            return torch.nn.utils.clip_grad_norm_(trained, bound)
        return torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])

    def _trained(self, factors: Mapping[str, float]) -> list[torch.nn.Parameter]:
        """What has a gradient at this step: a norm over heads that are switched off too would
        differ in the last digits from that of a run without them."""
        heads = [m for name, m in self.objective.methods().items() if factors[name]]
        return [p for part in (self.objective.network, *heads) for p in part.parameters()]

    def _optimize(self, norm: Tensor) -> None:
        """Apply the gradients, unless they are not finite: decided on the device, by their norm,
        which is the same on all processes."""
        if self.scaler.is_enabled():  # gradients may overflow now and then: it skips such a step
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        good = norm.isfinite()
        self.broken_at = torch.where(good | (self.broken > 0), self.broken_at, float(self.step))
        self.broken = torch.maximum(self.broken, (~good).float())
        if self.device.type == "mps" and self.broken.item():  # its fused kernel reads no found_inf
            return
        self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]  # fused: no update
        self.optimizer.step()

    def check(self, run: str) -> None:
        """Raise DataError if a loss was not finite since the last time. Reads the device."""
        small = self.scaler.is_enabled() and self.scaler.get_scale() < 1
        if not small and not self.broken.item():
            return
        at = self.step if small else int(self.broken_at.item())
        raise DataError(
            f"the loss or its gradient is not finite at step {at}; the weights were not touched, "
            f"and the checkpoints in {run} are good. Try --set train.precision=fp32 or a smaller "
            "--set train.lr in a new --out"
        )

    def _sync_if(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are averaged over the processes once a step, in its last micro-batch."""
        alone = last or self.group.count == 1
        return contextlib.nullcontext() if alone else self.wrapped.no_sync()

    def autocast(self) -> torch.autocast:
        """Half precision for the network, if the recipe asks for it."""
        dtype = AMP.get(self.recipe.train.precision)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def _add(self, values: dict[str, Tensor]) -> None:
        """Add to the sums towards the next row, on the device: no sync."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Means since the last row, over all processes; "steps" is their number."""
        stacked = torch.stack([v.float() for v in self.sums.values()])
        values = self.group.mean(stacked).tolist()
        sums = dict(zip(self.sums, values, strict=True))
        self.sums = {}
        steps = sums.pop("steps")
        return {**{name: value / steps for name, value in sums.items()}, "steps": steps}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """By the names of their files."""
        found = {
            "model": self.objective.network.state_dict(),
            "heads": self.objective.heads.state_dict(),
            "ema": self.ema.model.state_dict(),
        }
        if self.ema_heads is not None:
            found["ema_heads"] = self.ema_heads.model.state_dict()
        return found

    def load(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint, of any number of processes; DataError if it is not of this run."""
        model, heads, ema = (checkpoint.weights(name) for name in ("model", "heads", "ema"))
        training = checkpoint.training()
        # of methods of weight 0, older runs hold heads too
        built = {k: v for k, v in heads.items() if k.partition(".")[0] in self.objective.heads}
        try:
            self.objective.network.load_state_dict(model)
            self.objective.heads.load_state_dict(built)
            self.ema.model.load_state_dict(ema)
            if EMA_HEADS not in checkpoint.meta["files"]:
                self.ema_heads = None  # of a run that began without
            elif self.ema_heads is not None:
                self.ema_heads.model.load_state_dict(checkpoint.weights("ema_heads"))
            self.optimizer.load_state_dict(training["optimizer"])
            self.scaler.load_state_dict(training["scaler"])
            self._check_optimizer(f"the optimiser of {checkpoint.path}")
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"checkpoint {checkpoint.path} does not fit this run: {reason}"
            ) from None
        self.step = checkpoint.step

    def _check_optimizer(self, of: str) -> None:
        """Its state is finite and shaped as the weights: torch takes any."""
        for weight, state in self.optimizer.state.items():
            tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
            odd = [k for k, v in tensors.items() if v.dim() and v.shape != weight.shape]
            if odd:
                raise ValueError(f"{odd[0]} is {tuple(tensors[odd[0]].shape)}, the weight is not")
            check_finite(tensors, of)

    def steps_from(self, source: Iterator[list[Raw]]) -> Iterator[int]:
        """Train on each step's micro-batches; yields the number of steps done."""
        begun = time.perf_counter()
        for raws in source:
            waited = time.perf_counter() - begun
            self.update(raws)
            self._add({"data_seconds": torch.full((), waited, device=self.device)})
            yield self.step
            begun = time.perf_counter()


def resolve_precision(wanted: Recipe, out: Path | None, device: torch.device) -> Recipe:
    """The recipe with `auto` replaced: by the precision of the run `out`, which never changes, or
    by what this machine does well."""
    if device.type == "mps" and wanted.train.precision == "fp16":
        raise SetupError("train.precision=fp16 is not for --device mps: fp32, or bf16")
    if wanted.train.precision != "auto":
        return wanted
    tree = wanted.to_dict()
    if out is not None and (out / "recipe.yaml").is_file():
        tree["train"]["precision"] = Run(out).recipe.train.precision
    else:
        tree["train"]["precision"] = "bf16" if fast_bf16(device) else "fp32"
    return from_dict(tree)


def learning_rate(settings: Train, step: int) -> float:
    """Of the update that makes step + 1: up over `lr_warmup` steps, then constant, or down to 0 at
    the last step along half a cosine."""
    rate, warmup = settings.lr, settings.lr_warmup
    if step < warmup:
        return rate * (step + 1) / warmup
    if settings.lr_decay == "cosine":
        done = (step - warmup) / max(1, settings.steps - warmup)
        return rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return rate
