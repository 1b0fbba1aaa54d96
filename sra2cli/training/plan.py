"""sra2 train --dry-run: what a training is and will take, before it begins."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sra2cli.config.settings import Recipe, Train
from sra2cli.core import console
from sra2cli.core.processes import Group
from sra2cli.training.assemble import Training, prepare, start
from sra2cli.training.counting import MethodCost, method_cost, parameters
from sra2cli.training.engine import Engine
from sra2cli.training.memory import CARD, STATE, Memory, memory_of
from sra2cli.training.objective import Objective
from sra2cli.training.store_check import SMALL

PROBED = 8  # images of a timed step on a CPU, where they take their time one by one
WARM = 2  # steps before those that are timed: on a GPU the first compiles


def plan(
    wanted: Recipe,
    data: Path,
    *,
    processes: int | None,
    device: str,
    images: Path | None = None,
    init: Path | None = None,
    num_heads: int | None = None,
    kind: str | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Check recipe and store, count, and time one step on this machine.

    Returns:
        Counts, and under names that begin with "estimated" what was not counted: the time from
        steps of one micro-batch (on a CPU of a few images of it) with the encoder that will run,
        the memory of activations from what an image keeps for the backward. "micro_batch_that_fits"
        is the largest for this GPU, on a CPU for one of 80 GB.

    Raises:
        SetupError, DataError: as the training would.
    """
    count = processes or (torch.cuda.device_count() if device == "cuda" else 1)
    group, asked = Group(count=count, device=device), wanted.train
    training = prepare(wanted, data, group, images=images, offline=offline)
    wanted, store = training.recipe, training.store
    if store.identity[0] <= SMALL:
        store.verify()
    else:
        store.verify_attributes()
    reader = training.text_encoder.name if training.text_encoder else None
    cost = method_cost(wanted, stored_features=training.encoder is None, text_encoder=reader)
    settings, micro = wanted.train, len(training.indices[0])
    heads = sum(c.parameters for c in cost.heads.values())
    objective = training.objective()
    if init is not None:
        start(objective, init, num_heads, kind, store=store, offline=offline)
    memory = memory_of(wanted, feature_width=training.feature_width)
    fits = micro_batch(training, asked, memory, device)
    seconds, found = measure(training, objective, device, min(micro, fits or micro))
    per_step = seconds * settings.batch / count
    return {
        "recipe": wanted.name,
        "method": wanted.method,
        "parameters": cost.network.parameters,
        "head_parameters": heads,
        "gmacs": round((cost.network.macs + sum(c.macs for c in cost.heads.values())) / 1e9, 4),
        **text_share(cost),
        "precision": settings.precision,
        "images": len(store),
        "steps": settings.steps,
        "epochs": round(settings.steps * settings.batch / len(store), 2),
        "global_batch": f"{count} processes x {micro} x {len(training.indices)} accumulated",
        "micro_batch_that_fits": fits,
        "state_gb": round(STATE * parameters(objective) / 1e9, 2),
        "estimated_activations_gb": round(memory.image * micro / 1e9, 2),
        **found,
        "estimated_seconds_per_step": round(per_step, 3),
        "estimated_hours": round(per_step * settings.steps / 3600, 2),
        "checkpoint_gb": round(16 * parameters(objective) / 1e9, 2),
        "dry_run": True,
    }


def text_share(cost: MethodCost) -> dict[str, float]:
    """Of the text encoder that runs in the step, if one does whose cost is known."""
    text = cost.external.get("text_encoder")
    return {} if text is None else {"text_encoder_gmacs": round(text.macs / 1e9, 4)}


def micro_batch(training: Training, asked: Train, memory: Memory, device: str) -> int | None:
    """The largest that fits this GPU, or one of 80 GB; says so where the recipe's is larger.

    Args:
        asked: before this machine settled which precision is auto.
        memory: as it settled it.
    """
    on_gpu, wanted = device.startswith("cuda"), training.recipe
    card = torch.cuda.get_device_properties(device).total_memory if on_gpu else CARD
    if not on_gpu and asked.precision != wanted.train.precision:
        there = replace(wanted, train=replace(wanted.train, precision="bf16"))
        memory = memory_of(there, feature_width=training.feature_width)
    micro, own = len(training.indices[0]), sum(map(len, training.indices))
    fits = memory.largest(own, card, group=wanted.train.group if wanted.grouped else 1)
    if memory.of(micro) > card:
        mend = "train.checkpointing=true" if fits is None else f"train.micro_batch={fits}"
        console.warn(
            f"a micro-batch of {micro} takes up to {memory.of(micro) / 1e9:.0f} GB, more than a "
            f"GPU of {card / 1e9:.0f} GB has: --set {mend}"
        )
    return fits


def measure(
    training: Training, objective: Objective, device: str, micro: int | None = None
) -> tuple[float, dict[str, Any]]:
    """Seconds that an image takes in a step of at most `micro` (None: as the recipe has it); on a
    GPU, where what does not fit is halved, also how many were taken together and the memory they
    took."""
    micro = micro or len(training.indices[0])
    engine = training.engine(objective, Group(device=device))
    group = training.recipe.train.group if training.recipe.grouped else 1
    if engine.device.type != "cuda":
        return _seconds(training, engine, device, min(micro, -(-PROBED // group) * group)), {}
    while True:
        try:
            seconds = _seconds(training, engine, device, micro)
            peak = torch.cuda.max_memory_allocated(device)
            return seconds, {"measured_micro_batch": micro, "measured_gb": round(peak / 1e9, 2)}
        except torch.cuda.OutOfMemoryError:
            if micro % (2 * group):
                raise
        engine.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        micro //= 2
        console.say(f"out of memory: timing a micro-batch of {micro}")


def _seconds(training: Training, engine: Engine, device: str, micro: int) -> float:
    """Of an image in a step of one micro-batch: the better of two steps."""
    raw = training.batches(device).raw(0, training.indices[0][:micro])
    times = []
    with console.progress("timing a step", WARM + 2, unit="steps") as bar:
        for _ in range(WARM + 2):
            begun = time.perf_counter()
            engine.update([raw])
            engine.check("this dry run")  # waits for the device
            times.append(time.perf_counter() - begun)
            bar.advance()
    return min(times[WARM:]) / micro
