"""The training loop: steps, rows of metrics, checkpoints, stopping."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sra2cli.core import console
from sra2cli.core.processes import Group
from sra2cli.models.build import record_of
from sra2cli.runs.writer import RunWriter
from sra2cli.training.assemble import Training
from sra2cli.training.engine import Engine
from sra2cli.training.judging import TrainingJudge
from sra2cli.training.log import Watch
from sra2cli.training.previews import Previews
from sra2cli.training.stopping import Stop
from sra2cli.training.store_check import StoreCheck

POLL = 0.2  # seconds between looks at a check of the store that a checkpoint waits for


def loop(
    training: Training,
    engine: Engine,
    group: Group,
    run: RunWriter | None,
    out: Path,
    *,
    check: StoreCheck,
    judge: TrainingJudge | None,
    offline: bool,
) -> None:
    """Train to the recipe's last step; a signal saves and stops.

    Args:
        run: the folder, held by the main process; None in the others.

    Raises:
        DataError: the store is damaged or was changed; a loss is not finite.
        SystemExit: after a signal, when everything is saved.
    """
    settings, log = training.recipe.train, training.recipe.log
    source = training.batches(group.device)
    first = engine.step
    stopped = 0
    with (
        Stop(group) as stop,
        watching(training, engine, group, run, judge, offline=offline) as watch,
        console.progress(
            f"train {training.recipe.name}", settings.steps, unit="steps", start=first
        ) as bar,
    ):
        if watch is not None and first:
            watch.look(engine)  # what a kill came before
        for step in engine.steps_from(source.from_step(first, settings.steps)):
            stopped, _, damaged = stop.agree(*check.flags())
            check.refuse(damaged)
            saving = step % log.save_every == 0 or step == settings.steps or stopped
            due = step % log.every == 0 or saving
            if due or engine.device.type == "cpu":  # there, nothing waits for it
                engine.check(str(out))
            note = None
            if due:
                training.store.check_unchanged()
                means = engine.means()
                note = watch.row(step, means) if watch is not None else None
            bar.advance(note=note)
            if saving:
                wait_for(check, stop)
                save(training, engine, run, check)
            if stopped:
                break
            if watch is not None:
                watch.look(engine)
        if run is not None:
            run.finish_saving()
    group.wait()  # the checkpoint is on the disk
    if stopped:
        console.say(
            f"stopped at step {engine.step:,}, saved in {out}: run the same command again to go on"
        )
        raise SystemExit(128 + stopped)


def wait_for(check: StoreCheck, stop: Stop) -> None:
    """Until the check of the store has ended in all processes: no checkpoint is of damaged data."""
    said = False
    while True:
        _, running, damaged = stop.agree(*check.flags())
        check.refuse(damaged)
        if not running:
            return
        if not said:
            console.say("before the first checkpoint: until every byte of the store is checked")
        said = True
        time.sleep(POLL)


def save(training: Training, engine: Engine, run: RunWriter | None, check: StoreCheck) -> None:
    """Write a checkpoint of this step."""
    if run is None:
        return
    if check.needed:
        run.remember(training.store)
        check.needed = False
    record = record_of(engine.objective.network)
    run.save(engine.step, engine.weights(), engine.state(), record)


@contextmanager
def watching(
    training: Training,
    engine: Engine,
    group: Group,
    run: RunWriter | None,
    judge: TrainingJudge | None,
    *,
    offline: bool,
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
        encoder=training.encoder is not None,
        text_encoder=training.text_encoder.name if training.text_encoder else None,
        previews=Previews(run, training.store, device=group.device, offline=offline),
        judge=judge,
    )
    try:
        yield watch
    finally:
        watch.close()
