"""sra2 train --dry-run: what a training is and will take, before it begins."""

import time
from pathlib import Path
from typing import Any

import torch

from sra2cli.config.settings import Recipe
from sra2cli.core import console
from sra2cli.core.processes import Group
from sra2cli.training.assemble import Training, prepare, start
from sra2cli.training.counting import MethodCost, method_cost, parameters
from sra2cli.training.objective import Objective
from sra2cli.training.store_check import SMALL

PROBED = 8  # images of a timed step on a CPU, where they take their time one by one
WARM = 1  # steps before those that are timed
STATE_BYTES = 20  # of a parameter: itself, gradient, two moments of AdamW, EMA; float32


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
        the memory of activations from what an image keeps for the backward.

    Raises:
        SetupError, DataError: as the training would.
    """
    count = processes or (torch.cuda.device_count() if device == "cuda" else 1)
    group = Group(count=count, device=device)
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
    kept, seconds = measure(training, objective, device)
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
        "state_gb": round(STATE_BYTES * parameters(objective) / 1e9, 2),
        "estimated_activations_gb": round(kept * micro / 1e9, 2),
        "estimated_seconds_per_step": round(per_step, 3),
        "estimated_hours": round(per_step * settings.steps / 3600, 2),
        "checkpoint_gb": round(16 * parameters(objective) / 1e9, 2),
        "dry_run": True,
    }


def text_share(cost: MethodCost) -> dict[str, float]:
    """Of the text encoder that runs in the step, if one does whose cost is known."""
    text = cost.external.get("text_encoder")
    return {} if text is None else {"text_encoder_gmacs": round(text.macs / 1e9, 4)}


def measure(training: Training, objective: Objective, device: str) -> tuple[float, float]:
    """Bytes that one image keeps for the backward pass, and seconds it takes in a step."""
    engine = training.engine(objective, Group(device=device))
    on_cpu = engine.device.type == "cpu"
    own = training.indices[0]
    group = training.recipe.train.group if training.recipe.grouped else 1
    probed = -(-PROBED // group) * group  # whole groups
    raw = training.batches(device).raw(0, own[:probed] if on_cpu else own)
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with console.progress("timing a step", 3 + WARM, unit="steps") as bar:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            engine.update([raw])
        times = []
        for _ in range(WARM + 2):  # on a GPU the first compile
            bar.advance()
            begun = time.perf_counter()
            engine.update([raw])
            engine.check("this dry run")  # waits for the device
            times.append(time.perf_counter() - begun)
    weights = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept = sum(size for at, size in seen.items() if at not in weights)
    return kept / len(raw.scalars), min(times[WARM:]) / len(raw.scalars)
