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
from sra2cli.training.log import Watch, is_looked_at, where_to_look
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
        watching(training, engine, group, run, offline=offline) as watch,
        console.progress(
            f"train {training.recipe.name}",
            settings.steps,
            unit="steps",
            start=first,
            images=settings.batch,
            note=f"loss from step {first + log.every - first % log.every:,}",
        ) as bar,
    ):
        if watch is not None:
            console.say(where_to_look(watch.run))
        if first:  # what a kill came before
            stopped = look(engine, watch, judge, stop)
        steps = engine.steps_from(source.from_step(first, settings.steps))
        for step in () if stopped else steps:
            stopped, _, damaged = stop.agree(*check.flags())
            check.refuse(damaged)
            saving = step % log.save_every == 0 or step == settings.steps or stopped
            due = step % log.every == 0 or saving
            if due or engine.device.type == "cpu":  # there, nothing waits for it
                engine.check(str(out))
            bar.advance(note=row(training, engine, watch) if due else None)
            if saving:
                wait_for(check, stop)
                save(training, engine, run, check)
            if not stopped and (stopped := look(engine, watch, judge, stop)):
                if not due:
                    row(training, engine, watch)
                if not saving:
                    wait_for(check, stop)
                    save(training, engine, run, check)
            if stopped:
                break
        if run is not None:
            run.finish_saving()
    group.wait()  # the checkpoint is on the disk
    if stopped:
        console.say(
            f"stopped at step {engine.step:,}, saved in {out}: run the same command again to go on"
        )
        raise SystemExit(128 + stopped)


def row(training: Training, engine: Engine, watch: Watch | None) -> str | None:
    """Write a row of metrics; all processes add to it. Returns what the progress line shows."""
    training.store.check_unchanged()
    means = engine.means()
    return None if watch is None else watch.row(engine.step, means)


def look(engine: Engine, watch: Watch | None, judge: TrainingJudge | None, stop: Stop) -> int:
    """Preview and evaluate, where this step is one for it; a signal breaks that off, and going on
    does it again. Returns the signal, on all processes."""
    log, step, begun = engine.recipe.log, engine.step, time.monotonic()
    if not is_looked_at(log, step):
        return 0
    due = judge is not None and step % log.eval_every == 0
    due = due and not stop.group.share(watch is not None and watch.judged(step))

    def draw() -> None:
        if watch is not None:
            watch.preview(engine)
        if judge is not None and due:
            judge.look(engine.ema.model)

    stop.unless_asked(draw)
    stopped = stop.agree()[0]
    if judge is not None and due and not stopped:
        found = judge.together()
        if watch is not None and found is not None:
            stop.unless_asked(lambda: watch.event("eval", step, judge.values(found)))
        stopped = stop.agree()[0]
    if watch is not None:
        watch.leave_out(time.monotonic() - begun)
    return stopped


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
    )
    try:
        yield watch
    finally:
        watch.close()
