"""sra2 runs: the runs below a folder, a row each.

Reads the recipe, the end of the metrics and the names of checkpoints and evaluations: hundreds of
runs take a second or two. Imports no torch.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sra2cli.config import recipe
from sra2cli.config.reading import read_json
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import SetupError
from sra2cli.core.files import is_held
from sra2cli.runs.naming import step_of
from sra2cli.runs.rows import last_rows

MARKS = ("recipe.yaml", "run.json", "checkpoints")  # two of them make a run, even a damaged one


@dataclass(frozen=True)
class Metric:
    """What an evaluation found first. file: of its result; None: it is a row of the metrics."""

    name: str
    value: float
    step: int | None
    file: str | None = None


@dataclass(frozen=True)
class Row:
    """A run, as it is found.

    Args:
        state: training (its lock is held), finished (the recipe's last step is saved), stopped.
        step: of the last row of metrics; saved: of the newest checkpoint.
        loss: the whole one of that row. updated: when the metrics were last written (ISO 8601).
        problem: why it is damaged.
    """

    run: str
    recipe: str
    method: str
    state: Literal["training", "finished", "stopped", "damaged"]
    step: int
    steps: int | None
    saved: int | None
    loss: float | None
    metric: Metric | None
    updated: str
    problem: str | None = None


def list_runs(folder: Path) -> list[Row]:
    """The runs in a folder and below it, oldest first.

    Raises:
        SetupError: no such folder.
    """
    if not folder.is_dir():
        raise SetupError(f"no folder {folder}: `sra2 runs FOLDER` lists the runs below one")
    return sorted((row_of(run) for run in found(folder)), key=lambda row: (row.updated, row.run))


def found(folder: Path) -> Iterator[Path]:
    """Run folders, at any depth; what is inside of one is not looked at."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            about = here.stat()
            if (about.st_dev, about.st_ino) in seen:  # links may lead round
                continue
            seen.add((about.st_dev, about.st_ino))
            if is_run(here):
                yield here
                continue
            with os.scandir(here) as entries:
                waiting += [here / entry.name for entry in entries if entry.is_dir()]
        except OSError:  # not ours to read, or just removed
            continue


def is_run(folder: Path) -> bool:
    """Whether it is a run, or what is left of one."""
    return sum((folder / mark).exists() for mark in MARKS) > 1


def row_of(run: Path) -> Row:
    """What a run says of itself; where it is damaged, that."""
    metrics = reading = run / "metrics.jsonl"
    wanted, losses, metric, problem = None, None, None, None
    saved = max((step_of(p) for p in checkpoints(run)), default=None)
    try:
        wanted = recipe.load(str(run / "recipe.yaml"))
        reading = run / "run.json"
        read_json(reading, dict[str, Any])
        reading = metrics
        if metrics.exists():
            losses, event = last_rows(metrics, evaluated=wanted.log.eval_every > 0)
            metric = None if event is None else metric_of(event, event["step"])
        metric = newest(run / "evals", metric, metrics)
    except SetupError as error:
        problem = str(error)
    except (OSError, ValueError) as error:
        problem = f"{reading.name}: {error}"
    step = int((losses or {}).get("step", saved or 0))
    return Row(
        run=str(run),
        recipe=wanted.name if wanted else "",
        method=wanted.method if wanted else "",
        state=state_of(run, wanted, saved or step, problem),
        step=step,
        steps=wanted.train.steps if wanted else None,
        saved=saved,
        loss=(losses or {}).get("loss"),
        metric=metric,
        updated=updated(metrics if metrics.exists() else run),
        problem=problem,
    )


def state_of(
    run: Path, wanted: Recipe | None, done: int, problem: str | None
) -> Literal["training", "finished", "stopped", "damaged"]:
    """What a run is doing; a process that trains holds its lock."""
    if problem is not None or wanted is None:
        return "damaged"
    if is_held(run / ".lock"):
        return "training"
    return "finished" if done >= wanted.train.steps else "stopped"


def checkpoints(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("step-" + "[0-9]" * 8))


def metric_of(result: dict[str, Any], step: int | None, file: Path | None = None) -> Metric | None:
    """The first metric of a result of `sra2 eval`, or of an evaluation while training."""
    names = (result.get("settings") or {}).get("metrics") or result
    for name in names:
        value = result.get(name)
        if isinstance(value, float):
            return Metric(name, value, step, None if file is None else str(file))
    return None


def newest(evals: Path, metric: Metric | None, metrics: Path) -> Metric | None:
    """The last result in RUN/evals, or that of the metrics where it is younger."""
    files = sorted(evals.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        if metric is not None and metrics.stat().st_mtime > file.stat().st_mtime:
            return metric
        try:
            result = read_json(file, dict[str, Any])
            step = (result.get("how") or {}).get("step")
            other = metric_of(result, step, file)
        except (ValueError, AttributeError, TypeError):  # a table of several, or not ours
            continue
        if other is not None:
            return other
    return metric


def updated(file: Path) -> str:
    """When it was last written, to the second, in this machine's time zone."""
    return datetime.fromtimestamp(file.stat().st_mtime).astimezone().isoformat(timespec="seconds")
