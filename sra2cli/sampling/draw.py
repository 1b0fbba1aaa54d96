"""Drawing images from a network: image i is a function of (seed, i) and the settings alone.

Not of the batch either: which matrix kernel runs, and so the last digits, depends on how many
images are computed together. On a CPU that number follows from the sizes of network and image
(`unit`), and a part that is not full is filled up. On a GPU it is the batch; there the last digits
may differ with it, by one level of 255 where they turn a rounding.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sra2cli.align import Alignment
from sra2cli.config.settings import PathKind
from sra2cli.core import clock
from sra2cli.core.clock import Purpose
from sra2cli.core.devices import kept_on
from sra2cli.core.errors import DataError
from sra2cli.data.conditions import CONDITIONS
from sra2cli.diffusion import samplers
from sra2cli.diffusion.guidance import SelfGuidance, guided
from sra2cli.encoders.first_stage import FirstStage, float32
from sra2cli.models.contract import Backbone, Shape
from sra2cli.sampling.settings import DrawPrecision, Sampling

TOGETHER = 32  # images computed together, at most
WORK = 1e9  # multiply-accumulates of the blocks that are worth a pass
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PIXELS = 1 << 16  # that are worth a pass of the decoder


def unit(shape: Shape) -> int:
    """Images of a pass on a CPU: a power of two, from the size of the network alone."""
    return _power_of_two(WORK / shape.work)


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


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """To a GPU from pinned memory and without waiting: the draws of the next step are made while
    the GPU is busy with this one. What is there already, as features of prompts, stays."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def cast_once(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights of matrix products and convolutions as autocast would cast them, which it does at
    every call where they are frozen."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


@torch.no_grad()
def draw_latents(
    model: Backbone,
    indices: Sequence[int],
    sampling: Sampling,
    *,
    kind: PathKind,
    device: torch.device,
    guide: Alignment | None = None,
) -> Tensor:
    """Latents (len(indices), C, H, W), float64, of the images with these numbers.

    Args:
        guide: whose head guides, where the settings ask for it.
    """
    shape = model.shape

    def noise(step: int) -> Tensor:
        draws = clock.normals(sampling.seed, Purpose.SAMPLE, step, indices, shape.state)
        return to_device(torch.from_numpy(draws), kept_on(device))

    condition = CONDITIONS[shape.condition].drawn(sampling.asked(indices), shape)
    null = None if sampling.prompts is None else sampling.prompts.led_away_from(len(indices))
    v = guided(
        model,
        condition.map(lambda x: to_device(x, device)),
        scale=sampling.cfg,
        interval=sampling.interval,
        channels=sampling.cfg_channels,
        class_scale=sampling.class_cfg,
        null=null,
        own=guided_by(guide, sampling, kind),
        device=device,
    )
    start = noise(0)
    if sampling.solver == "em":
        state = samplers.euler_maruyama(
            v,
            start,
            steps=sampling.steps,
            noise=lambda i: noise(i + 1),
            last_step=sampling.last_step,
            kind=kind,
        )
    elif sampling.solver == "edm":
        state = samplers.edm(v, start, steps=sampling.steps)
    else:
        solver = samplers.heun if sampling.solver == "heun" else samplers.euler
        state = solver(v, start, steps=sampling.steps, shift=sampling.shift)
    return model.unpack(state)[0]


def guided_by(guide: Alignment | None, sampling: Sampling, kind: PathKind) -> SelfGuidance | None:
    """Guidance by a head, as far as the settings ask for it."""
    if guide is None or sampling.self_guidance == 1.0:
        return None
    settings = guide.settings
    scale, interval = sampling.self_guidance, sampling.self_interval
    return SelfGuidance(guide.read, settings.reads, settings.depth, scale, interval, kind)


def draw(
    model: Backbone,
    first_stage: FirstStage,
    indices: Sequence[int],
    sampling: Sampling,
    *,
    kind: PathKind,
    precision: DrawPrecision = "fp32",
    guide: Alignment | None = None,
    batch: int | None = None,
) -> np.ndarray:
    """uint8 images (len(indices), H, W, 3) with these numbers.

    Args:
        batch: on a GPU images are computed so many at a time, filled up if need be: what is
            compiled stays; None: all at once.

    Raises:
        DataError: latents or decoded images that are not finite: no black image is an image.
    """
    device = first_stage.device
    dtype = HALF.get(precision)
    on_cpu = device.type == "cpu"
    together = unit(model.shape) if on_cpu else batch or len(indices)
    images = []
    for part, count in in_parts(indices, together):
        with (
            float32(tf32=precision == "tf32"),
            torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            latents = draw_latents(model, part, sampling, kind=kind, device=device, guide=guide)
        if not bool(latents.isfinite().all()):
            raise not_finite(part, precision)
        side = model.shape.latent * first_stage.factor
        fits = max(1, (1 << 20) // side**2)  # a decoder's activations are large
        decoded = _power_of_two(PIXELS / side**2) if on_cpu else min(len(part), fits)
        for some, real in in_parts(latents[:count], decoded):
            images.append(first_stage.decode(some, rounding=sampling.rounding)[:real])
    return np.concatenate(images)


def not_finite(part: Sequence[int], precision: DrawPrecision) -> DataError:
    """The error for latents that hold NaN or infinity."""
    half = precision in ("bf16", "fp16")
    why = f"numbers are too large for {precision}: --precision fp32, or " if half else ""
    return DataError(
        f"images {part[0]}..{part[-1]} are not finite: {why}"
        "the network's weights, or the guidance, are too large"
    )
