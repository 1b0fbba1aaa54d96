"""sra2 train: what is trained is checked and put together, then the loop."""

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sra2cli import console, processes
from sra2cli.batches import Batches, check_store, share
from sra2cli.encoders import Encoder, load_encoder
from sra2cli.engine import Engine, resolve_precision
from sra2cli.errors import SetupError
from sra2cli.judging import Judge
from sra2cli.networks import open_network, start_from
from sra2cli.objective import Objective, build_heads, sit_config
from sra2cli.processes import Group
from sra2cli.run import Run, folder_name, read_checkpoint
from sra2cli.run_writer import RunWriter
from sra2cli.settings import Recipe
from sra2cli.sources import Source, open_source
from sra2cli.stopping import Stop
from sra2cli.store import Store
from sra2cli.watch import Previews, Watch


def train(
    wanted: Recipe,
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    images: Path | None = None,
    init: Path | None = None,
    num_heads: int | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Train a recipe on a store in a run folder; go on where the folder's newest checkpoint is.

    Args:
        images: what the store was made from; REPA's encoder then runs while training, for stores
            without its features.
        init: weights to start from: a run, or a checkpoint of ours, SiT, REPA or SRA.
        num_heads: of `init`, where it is of a size that is not in the table.

    Returns:
        A summary: run, step, losses of the last row of metrics.

    Raises:
        SetupError: recipe, store and run folder do not fit each other.
        DataError: the store is damaged, or a loss is not finite.
    """
    with processes.group(device) as group:
        job = prepare(wanted, data, group, images=images, offline=offline)
        begun_from = start(job.objective, init, num_heads) if init is not None else None
        if group.main:
            job.store.verify()
        accelerator = processes.make_accelerator(group)
        job = replace(job, recipe=resolve_precision(job.recipe, out, accelerator.device))
        run: RunWriter | None = None
        if group.main:
            run = RunWriter(out, job.recipe, job.store, device=group.device, init=begun_from)
        try:
            group.wait()  # until the folder is there
            engine = Engine(job.recipe, job.store, job.objective, accelerator, job.encoder)
            resume(engine, group, out, run)
            loop(job, engine, group, run, out, offline=offline)
        finally:
            if run is not None:
                run.close()
        rows = Run(out).metrics()
        return {"run": str(out), "step": engine.step, "last": rows[-1] if rows else {}}


@dataclass(frozen=True)
class Job:
    """What is trained on what; indices: of the global batch, for each micro-batch of a step."""

    recipe: Recipe
    store: Store
    objective: Objective
    encoder: Encoder | None
    source: Source | None
    indices: list[range]
    judge: Judge | None


def prepare(wanted: Recipe, data: Path, group: Group, *, images: Path | None, offline: bool) -> Job:
    """Everything that can be refused before training."""
    config = sit_config(wanted)
    with torch.device("meta"):  # what cannot be built is refused before data are read
        build_heads(wanted, feature_width=1)
    indices = share(wanted, rank=group.rank, processes=group.count)
    if wanted.log.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise SetupError("log.wandb needs wandb: pip install wandb, or log.wandb=null")
    store = Store(data)
    source = open_source(images) if images is not None else None
    check_store(store, wanted, source)
    encoder = None
    if wanted.align.repa is not None and images is not None:
        side = math.isqrt(config.tokens)
        name = wanted.align.repa.encoder
        encoder = load_encoder(name, side=side, device=group.device, offline=offline)
    width = encoder.width if encoder is not None else store.info.feature_width
    objective = Objective(wanted, feature_width=width)
    for method in objective.methods().values():
        if method.weight(0) == 0:  # never run, so never trained
            method.requires_grad_(False)
    if group.count * len(indices) > 1:
        console.say(
            f"global batch {wanted.train.batch} = {group.count} processes x "
            f"{len(indices[0])} x {len(indices)} accumulated"
        )
    judge = None
    if group.main and wanted.log.eval_every:
        judge = Judge(wanted, store.info, device=group.device, offline=offline)
    return Job(wanted, store, objective, encoder, source, indices, judge)


def start(objective: Objective, init: Path, num_heads: int | None) -> dict[str, str]:
    """Put the weights of `init` into the network; says what they were."""
    network = open_network(init, step=None, weights="ema", num_heads=num_heads)
    console.say(f"starting from {init} ({network.about['kind']}, {network.about['weights']})")
    said = start_from(objective.sit, network)
    if said:
        console.say(said)
    return {"path": str(init), "digest": network.about["checkpoint"]}


def resume(engine: Engine, group: Group, out: Path, run: RunWriter | None) -> None:
    """Take up the newest whole checkpoint, if there is one; the main process chooses it."""
    newest: int | None = None
    if run is not None:
        checkpoint, skipped = run.newest()
        for line in skipped:
            console.warn(f"{line}; going back to the one before")
        newest = None if checkpoint is None else checkpoint.step
    step = group.share(newest)
    if step is None:
        return
    engine.load(read_checkpoint(out / "checkpoints" / folder_name(step), verify=False))
    console.say(f"resuming {out} at step {engine.step:,}")


def loop(
    job: Job,
    engine: Engine,
    group: Group,
    run: RunWriter | None,
    out: Path,
    *,
    offline: bool,
) -> None:
    """Train to the recipe's last step; a signal saves and stops.

    Raises:
        SystemExit: after a signal, when everything is saved.
    """
    settings, log = job.recipe.train, job.recipe.log
    where = str(out)
    source = Batches(
        job.store,
        job.recipe,
        job.indices,
        features=job.objective.needs_features and job.encoder is None,
        images=job.source if job.encoder is not None else None,
        pin=engine.device.type == "cuda",
    )
    first = saved = engine.step
    stopped = 0
    with (
        Stop(group) as stop,
        watching(job, engine, group, run, offline=offline) as watch,
        console.progress(
            f"train {job.recipe.name}", settings.steps, unit="steps", start=first
        ) as bar,
    ):
        if watch is not None and first:
            look(job, engine, watch)  # what a kill came before
        for step in engine.steps_from(source.from_step(first, settings.steps)):
            due = step % log.every == 0 or step == settings.steps
            stopped = stop.wanted()
            saving = step % log.save_every == 0 or step == settings.steps or stopped
            if due or saving or engine.device.type == "cpu":  # there, nothing waits for it
                engine.check(where)
            if due or saving:
                job.store.check_unchanged()
            note = None
            if due:
                means = engine.means()
                note = watch.row(step, means) if watch is not None else None
            bar.advance(note=note)
            if saving:
                saved = save(engine, run)
            if stopped:
                break
            if watch is not None:
                look(job, engine, watch)
        if saved == first and settings.steps > first:
            raise AssertionError("a training ends with a checkpoint")
        if run is not None:
            run.finish_saving()
    group.wait()  # the checkpoint is on the disk
    if stopped:
        console.say(
            f"stopped at step {engine.step:,}, saved in {where}: "
            "run the same command again to go on"
        )
        raise SystemExit(128 + stopped)


def look(job: Job, engine: Engine, watch: Watch) -> None:
    """Preview and evaluate the EMA, where this step is one for it and has none yet."""
    log, step = job.recipe.log, engine.step
    watch.pause_clock()
    if log.preview_every and step % log.preview_every == 0:
        watch.previews.draw(engine.ema.model, step)
    if job.judge is not None and step % log.eval_every == 0 and not watch.judged(step):
        watch.event("eval", step, job.judge.judge(engine.ema.model))
    watch.restart_clock()


@contextmanager
def watching(
    job: Job, engine: Engine, group: Group, run: RunWriter | None, *, offline: bool
) -> Iterator[Watch | None]:
    """The watch of the main process; the others have none."""
    if run is None:
        yield None
        return
    watch = Watch(
        run,
        engine.step,
        device=group.device,
        processes=group.count,
        encoder=job.encoder is not None,
        previews=Previews(run, job.store.info, device=group.device, offline=offline),
    )
    try:
        yield watch
    finally:
        watch.close()


def save(engine: Engine, run: RunWriter | None) -> int:
    """Write a checkpoint of this step, which every process takes part in; returns the step."""
    state = engine.state()
    if run is not None:
        config = engine.objective.sit.config.to_dict()
        run.save(engine.step, engine.weights(), state, config)
    return engine.step
