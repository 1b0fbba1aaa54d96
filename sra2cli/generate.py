"""Drawing images from a network: image i is a function of (seed, i) and the settings alone.

Not of the batch either: which matrix kernel runs, and so the last digits, depends on how many
images are computed together. On a CPU that number follows from the sizes of network and image
(`unit`), and a part that is not full is filled up. On a GPU it is the batch; there the last digits
may differ with it, by one level of 255 where they turn a rounding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sra2cli import clock, sampler
from sra2cli.clock import Purpose
from sra2cli.errors import SetupError
from sra2cli.path import PathKind
from sra2cli.settings import Solver
from sra2cli.sit import SiT, SiTConfig
from sra2cli.vae import Rounding, Vae, full_precision


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; recorded beside every result.

    Args:
        steps: evaluations of the velocity (Heun: 2 * steps - 1).
        last_step: of Euler-Maruyama, noise-free.
        cfg: guidance scale, 1.0 is none; interval: times in which it applies.
        cfg_channels: guide the first n latent channels only; None: all.
        labels: "random", "balanced" (0, 1, 2, … in turn), or class numbers to walk through.
    """

    solver: Solver = "em"
    steps: int = 250
    last_step: float = 0.04
    cfg: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    cfg_channels: int | None = None
    labels: str = "random"
    seed: int = 0
    rounding: Rounding = "truncate"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "interval": list(self.interval)}

    def check(self, classes: int) -> None:
        """Raise SetupError for settings that mean nothing for a model of so many classes."""
        if self.steps < 1 or (self.solver == "em" and self.steps < 2):
            raise SetupError(f"--steps {self.steps} is too few for solver {self.solver}")
        if not 0 < self.last_step < 1:
            raise SetupError("--last-step lies between 0 and 1")
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise SetupError("--interval is a:b with 0 <= a < b <= 1")
        if not math.isfinite(self.cfg) or self.cfg < 0:
            raise SetupError(f"--cfg is a number from 0, not {self.cfg:g}")
        if self.cfg_channels is not None and self.cfg_channels < 1:
            raise SetupError("--cfg-channels must be above 0")
        if self.cfg != 1.0 and not classes:
            raise SetupError("--cfg needs a class-conditional model; this one has no classes")
        listed_labels(self.labels, classes)


def listed_labels(labels: str, classes: int) -> list[int] | None:
    """The classes named by "0,1,2"; None for "random" and "balanced"."""
    if labels in ("random", "balanced"):
        return None
    try:
        listed = [int(part) for part in labels.split(",")]
    except ValueError:
        raise SetupError(
            f"--labels is random, balanced or numbers as 0,1,2; not '{labels}'"
        ) from None
    wrong = [k for k in listed if not 0 <= k < classes]
    if wrong:
        raise SetupError(f"--labels: there is no class {wrong[0]}; classes are 0..{classes - 1}")
    return listed


def labels_of(indices: Sequence[int], sampling: Sampling, classes: int) -> list[int] | None:
    """The label of each image, a function of (seed, i); None for an unconditional model."""
    if not classes:
        return None
    listed = listed_labels(sampling.labels, classes)
    if listed is not None:
        return [listed[i % len(listed)] for i in indices]
    if sampling.labels == "balanced":
        return [i % classes for i in indices]
    draws = [clock.generator(sampling.seed, Purpose.LABEL, 0, i) for i in indices]
    return [int(g.integers(classes)) for g in draws]


Precision = Literal["fp32", "bf16", "fp16"]
PAPER = {"solver": "em", "steps": 250, "last_step": 0.04}
PRESETS: dict[str, dict[str, Any]] = {  # what guided numbers are reported with
    "sra2": {**PAPER, "cfg": 1.8, "interval": (0.0, 0.7)},
    "repa": {**PAPER, "cfg": 1.8, "interval": (0.0, 0.7)},
    "sit": {**PAPER, "cfg": 1.5, "cfg_channels": 3},
    "digits": {"solver": "euler", "steps": 25, "labels": "balanced"},  # as fd-digits is defined
}
TOGETHER = 32  # images computed together, at most
WORK = 1e9  # multiply-accumulates of the blocks that are worth a pass
PIXELS = 1 << 16  # that are worth a pass of the decoder


def unit(config: SiTConfig) -> int:
    """Images of a pass on a CPU: a power of two, from the size of the network alone."""
    work = config.depth * config.tokens * 12 * config.width**2
    return _power_of_two(WORK / work)


def _power_of_two(value: float) -> int:
    """The largest power of two in [1, TOGETHER] that is not above the value."""
    return 1 << max(0, min(int(math.log2(max(value, 1))), TOGETHER.bit_length() - 1))


def in_parts(values: Tensor | Sequence[int], size: int) -> Iterator[tuple[Any, int]]:
    """Parts of exactly `size`, the last filled up with its last value; and how many are real."""
    for start in range(0, len(values), size):
        part = values[start : start + size]
        count = len(part)
        if isinstance(part, Tensor):
            yield torch.cat([part, part[-1:].expand(size - count, *part.shape[1:])]), count
        else:
            yield [*part, *[part[-1]] * (size - count)], count


@torch.no_grad()
def draw_latents(
    model: SiT, indices: Sequence[int], sampling: Sampling, *, kind: PathKind, device: torch.device
) -> Tensor:
    """Scaled latents (len(indices), C, h, w), float64, of the images with these numbers."""
    config = model.config
    shape = (config.channels, config.latent, config.latent)

    def noise(step: int) -> Tensor:
        draws = clock.normals(sampling.seed, Purpose.SAMPLE, step, indices, shape)
        return torch.from_numpy(draws).to(device)

    labels = labels_of(indices, sampling, config.classes)
    y = None if labels is None else torch.tensor(labels, device=device)
    v = sampler.guided(
        model,
        y,
        scale=sampling.cfg,
        interval=sampling.interval,
        channels=sampling.cfg_channels,
    )
    start = noise(0)
    if sampling.solver == "em":
        return sampler.euler_maruyama(
            v,
            start,
            steps=sampling.steps,
            noise=lambda i: noise(i + 1),
            last_step=sampling.last_step,
            kind=kind,
        )
    solver = sampler.heun if sampling.solver == "heun" else sampler.euler
    return solver(v, start, steps=sampling.steps)


def draw(
    model: SiT,
    vae: Vae,
    indices: Sequence[int],
    sampling: Sampling,
    *,
    kind: PathKind,
    precision: Precision = "fp32",
) -> np.ndarray:
    """uint8 images (len(indices), H, W, 3) with these numbers."""
    device = vae.device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    on_cpu = device.type == "cpu"
    images = []
    for part, count in in_parts(indices, unit(model.config) if on_cpu else len(indices)):
        with (
            full_precision(),
            torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            latents = draw_latents(model, part, sampling, kind=kind, device=device)
        side = model.config.latent * vae.factor
        fits = max(1, (1 << 20) // side**2)  # a decoder's activations are large
        decoded = _power_of_two(PIXELS / side**2) if on_cpu else min(len(part), fits)
        for some, real in in_parts(latents[:count], decoded):
            images.append(vae.decode(some, rounding=sampling.rounding)[:real])
    return np.concatenate(images)
