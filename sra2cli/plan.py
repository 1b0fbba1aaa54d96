"""sra2 train --dry-run: what a training is and will take, before it begins."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sra2cli import console
from sra2cli.batches import Batches, check_store, share
from sra2cli.counting import method_cost, parameters
from sra2cli.engine import Engine, resolve_precision
from sra2cli.networks import open_network, start_from
from sra2cli.objective import Objective, sit_config
from sra2cli.processes import Group, make_accelerator
from sra2cli.settings import Recipe
from sra2cli.sources import open_source
from sra2cli.store import Store

UNSTORED = 768  # width of DINOv2-B, where the store holds no features
PROBED = 8  # images of a timed step, at most
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
) -> dict[str, Any]:
    """Check recipe and store, count, and time one step on this machine.

    Returns:
        Counts, and under names that begin with "estimated" what was not counted: the time from a
        step of a few images, the memory of activations from what an image keeps for the backward.

    Raises:
        SetupError, DataError: as the training would.
    """
    count = processes or (torch.cuda.device_count() if device == "cuda" else 1)
    indices = share(wanted, rank=0, processes=count)
    store = Store(data)
    check_store(store, wanted, open_source(images) if images is not None else None)
    store.verify()
    wanted = resolve_precision(wanted, None, torch.device(device))
    cost = method_cost(wanted, stored_features=True)
    settings, micro = wanted.train, len(indices[0])
    heads = sum(c.parameters for c in cost.heads.values())
    objective = Objective(wanted, feature_width=store.info.feature_width or UNSTORED)
    if init is not None:
        network = open_network(init, step=None, weights="ema", num_heads=num_heads)
        start_from(objective.sit, network)
    kept, seconds = measure(wanted, store, objective, device)
    per_step = seconds * settings.batch / count
    return {
        "recipe": wanted.name,
        "method": wanted.method,
        "parameters": cost.network.parameters,
        "head_parameters": heads,
        "gmacs": round((cost.network.macs + sum(c.macs for c in cost.heads.values())) / 1e9, 4),
        "precision": settings.precision,
        "images": len(store),
        "steps": settings.steps,
        "epochs": round(settings.steps * settings.batch / len(store), 2),
        "global_batch": f"{count} processes x {micro} x {len(indices)} accumulated",
        "state_gb": round(STATE_BYTES * parameters(objective) / 1e9, 2),
        "estimated_activations_gb": round(kept * micro / 1e9, 2),
        "estimated_seconds_per_step": round(per_step, 3),
        "estimated_hours": round(per_step * settings.steps / 3600, 2),
        "checkpoint_gb": round(16 * parameters(objective) / 1e9, 2),
        "dry_run": True,
    }


def measure(wanted: Recipe, store: Store, objective: Objective, device: str) -> tuple[float, float]:
    """Bytes that one image keeps for the backward pass, and seconds it takes in a step."""
    engine = Engine(wanted, store, objective, make_accelerator(Group(device=device)))
    size = min(PROBED, wanted.train.batch)
    stored = objective.needs_features and bool(store.info.encoder)
    source = Batches(store, wanted, [range(size)], features=stored)
    raw = source.raw(0, range(size))
    if objective.needs_features and not stored:  # of an encoder that will run: its time is not in
        side = sit_config(wanted).tokens
        raw = replace(raw, features=torch.zeros(size, side, UNSTORED))
    raws = [raw]
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with console.progress("timing a step", 3, unit="steps") as bar:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            engine.update(raws)
        bar.advance()
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            engine.update(raws)
            engine.check("this dry run")
            times.append(time.perf_counter() - begun)
            bar.advance()
    weights = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept = sum(size for at, size in seen.items() if at not in weights)
    return kept / size, min(times) / size
