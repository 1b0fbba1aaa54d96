"""sra2 train: from a recipe and a store to a run folder."""

from pathlib import Path
from typing import Any

from sra2cli.config.settings import Recipe
from sra2cli.core import console, processes
from sra2cli.core.processes import Group
from sra2cli.runs.naming import folder_name
from sra2cli.runs.run import Run, read_checkpoint
from sra2cli.runs.writer import RunWriter
from sra2cli.training.assemble import prepare, start
from sra2cli.training.engine import Engine
from sra2cli.training.judging import TrainingJudge
from sra2cli.training.loop import loop
from sra2cli.training.store_check import StoreCheck


def train(
    wanted: Recipe,
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    images: Path | None = None,
    init: Path | None = None,
    num_heads: int | None = None,
    kind: str | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Train a recipe on a store in a run folder; go on where the folder's newest checkpoint is.

    Args:
        images: what the store was made from; an image encoder then runs while training, for stores
            without its features.
        init: weights to start from: a run, or a checkpoint of ours, SiT, REPA or SRA, also by its
            hub name.
        num_heads, kind: of `init`, as `checkpoints.load` takes them.

    Returns:
        A summary: run, step, losses of the last row of metrics.

    Raises:
        SetupError: recipe, store and run folder do not fit each other.
        DataError: the store is damaged, or a loss is not finite.
    """
    with processes.group(device) as group:
        training = prepare(wanted, data, group, images=images, offline=offline, out=out)
        taught_by = training.taught_by
        wanted_by_all = (training.recipe.to_dict(), training.store.checksums, taught_by)
        group.meet(out, about=wanted_by_all)
        objective = training.objective()
        begun_from = None
        if init is not None:
            begun_from = start(
                objective, init, num_heads, kind, store=training.store, offline=offline
            )
        if group.count * len(training.indices) > 1:
            console.say(
                f"global batch {training.recipe.train.batch} = {group.count} processes x "
                f"{len(training.indices[0])} x {len(training.indices)} accumulated"
            )
        judge = None
        if wanted.log.eval_every:
            judge = TrainingJudge(training.recipe, training.store, group, offline=offline)
        begun = group.main and (out / "recipe.yaml").is_file()
        known = begun and Run(out).has_checked(training.store.identity)
        needed = not group.share(known)
        check = StoreCheck(training.store, needed=needed, here=group.first_here)
        run: RunWriter | None = None
        try:
            if group.main:
                run = RunWriter(
                    out,
                    training.recipe,
                    training.store,
                    device=group.device,
                    init=begun_from,
                    teacher=taught_by,
                )
            group.wait()  # until the folder is there
            engine = training.engine(objective, group)
            resume(engine, group, out, run)
            loop(training, engine, group, run, out, check=check, judge=judge, offline=offline)
        finally:
            check.close()
            if run is not None:
                run.close()
        rows = Run(out).metrics()
        return {"run": str(out), "step": engine.step, "last": rows[-1] if rows else {}}


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
    engine.load(read_checkpoint(out / "checkpoints" / folder_name(step), verify=group.main))
    console.say(f"resuming {out} at step {engine.step:,}")
