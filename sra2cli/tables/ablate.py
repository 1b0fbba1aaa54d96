"""sra2 ablate: Table 1 and Table 2 of the paper, on any recipe and data.

Every cell is an ordinary run in OUT/runs, shared by the axes where settings coincide; tables and
plots are made from OUT/results alone.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sra2cli.config.settings import Recipe
from sra2cli.core import console
from sra2cli.core.environment import command_line
from sra2cli.core.errors import DataError, SetupError, UserError
from sra2cli.data.batches import share
from sra2cli.reports.report import report
from sra2cli.runs.run import Run
from sra2cli.tables import axes, method_rows, paper, render
from sra2cli.tables.axes import AXES, Row
from sra2cli.tables.cells import (
    Cells,
    Judged,
    check_there,
    common_steps,
    costs_of,
    given,
    grid,
    of_shard,
    refuse_others,
    results_of,
)
from sra2cli.tables.jobs import run_cells
from sra2cli.tables.protocol import (
    OWN,
    ROWS,
    How,
    check_steps,
    check_told,
    common_options,
    device_of,
    differences,
    judging,
    kept,
    of_judging,
    of_training,
    slots,
    store_for,
)
from sra2cli.training.assemble import refuse_unbuildable
from sra2cli.training.plan import plan

METHODS = "methods"  # beside the axes

Tables = dict[str, dict[str, Any]]  # by axis, as `render` makes them


def ablate(
    names: Sequence[str],
    base: Recipe,
    how: How,
    *,
    data: Path | None,
    out: Path,
    values: str | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """Train and judge every cell of some axes that is not there yet; then their tables.

    Args:
        names: of `AXES`, or METHODS. data: a latent store; None: the digits, for recipes on them.
        values: of the axis, instead of the paper's; for one axis alone.
        step: checkpoint that is judged; None: the last.

    Returns:
        {"tables": {axis: table}, "files": [...], "missing": cells that are not there, "failed":
        {cell: why}}; of a dry run, the cells, and what they will take.

    Raises:
        SetupError: recipe, data and settings do not fit.
    """

    def rows_of(base: Recipe) -> dict[str, list[Row]]:
        return {
            name: method_rows.rows(base, values)
            if name == METHODS
            else axes.rows(name, base, values)
            for name in names
        }

    for row in (row for found in rows_of(base).values() for row in found):
        refuse_unbuildable(row.recipe)  # before anything is trained
        share(row.recipe, rank=0, processes=how.processes or 1)
    steps = (base.train.steps if step is None else step,)
    check_steps(steps, base)
    check_told(base, how)
    judged = judging(base, how, steps)
    with store_for(base, how, data, out) as (store, base):
        rows = rows_of(base)
        cells = grid([row for found in rows.values() for row in found], base, how.seeds, store, out)
        refuse_others(cells)
        about = {"paper": paper.TABLE1, "step": steps[0]}
        about["differs"] = differences(base, judged, store)

        def tables() -> Tables:
            made = {}
            for name, found in rows.items():
                results = {row.cell: results_of(row.cell, cells, judged, steps[0]) for row in found}
                file = name if step is None else f"{name}-step{step}"
                title = METHODS if name == METHODS else AXES[name].name
                costs = {row.cell: costs_of(row.cell, cells) for row in found}
                took = costs if name == METHODS else None
                table = render.of_axis(file, title, found, results, judged.metrics, took)
                made[name] = {**table, **about}
            return made

        return carried_out(cells, judged, base, how, out, tables)


def iterations(
    base: Recipe,
    how: How,
    *,
    data: Path | None,
    out: Path,
    steps: Sequence[int] = (),
) -> dict[str, Any]:
    """FID against training steps, of a recipe and its baseline (Table 2).

    Args:
        steps: checkpoints to judge; (): all that a run keeps.

    Returns, raises: as `ablate`.
    """
    chosen = list(steps) or kept(base)
    check_steps(chosen, base)
    check_told(base, how)
    judged = judging(base, how, chosen)
    with store_for(base, how, data, out) as (store, base):
        cells = grid([axes.baseline(base), axes.own(base)], base, how.seeds, store, out)
        refuse_others(cells)
        differs = of_training(base, len(store), store.path, (*OWN, *ROWS))
        return over_steps(cells, judged, base, how, out, differs)


def iterations_of(
    runs: Sequence[Path], how: How, *, out: Path, steps: Sequence[int] = ()
) -> dict[str, Any]:
    """The same, of runs that are there.

    Args:
        steps: checkpoints to judge; (): those that all runs have.
    """
    cells = given(runs, out)
    base = Run(runs[0]).recipe
    chosen = list(steps) or common_steps(runs)
    check_there(runs, chosen)
    for cell in cells.values():
        check_told(cell.recipe, how)
    judged = judging(base, how, chosen)
    differs = []
    for (name, _), cell in cells.items():
        store = Run(cell.run).about["store"]
        lines = of_training(cell.recipe, store["count"], store["path"], (*OWN, *ROWS, "align"))
        differs += [f"{name}: {line}" for line in lines]
    return over_steps(cells, judged, base, how, out, differs)


def over_steps(
    cells: Cells, judged: Judged, base: Recipe, how: How, out: Path, differs: list[str]
) -> dict[str, Any]:
    """Carry out Table 2. differs: what is not as in the paper, before the judging."""

    def tables() -> Tables:
        lines: render.Lines = {}
        for name, recipe in {name: cell.recipe for (name, _), cell in cells.items()}.items():
            size, method, channels = recipe.model.size, recipe.method, recipe.data.channels
            lines[name] = {
                step: (
                    results_of(name, cells, judged, step),
                    paper.fid_after(size, method, step, channels=channels),
                )
                for step in judged.steps
            }
        about = {"paper": paper.TABLE2, "differs": [*differs, *of_judging(judged)]}
        return {"iterations": render.over_steps(lines, judged.metrics) | about}

    return carried_out(cells, judged, base, how, out, tables)


def carried_out(
    cells: Cells, judged: Judged, base: Recipe, how: How, out: Path, tables: Callable[[], Tables]
) -> dict[str, Any]:
    """Run cells, then write the tables of all results, with what made them and what is missing."""
    if how.dry_run:
        return planned(cells, judged, base, how)
    failed = run_missing(cells, judged, base, how)
    missing = [cell.name for cell in cells.values() if not cell.done(judged)]
    rows = [row for cell in cells.values() for row in cell.found(judged).values()]
    about = {
        "command": command_line(),
        "missing": missing,
        "references": sorted({str(row["reference"]) for row in rows}),
        "devices": sorted({row["environment"]["device"] for row in rows}),
        "git": sorted({str(row["environment"]["git"]) for row in rows}),
    }
    made = {name: {**table, **about} for name, table in tables().items()}
    files = [file for table in made.values() for file in render.write(table, out)]
    files += page(cells, judged, out)
    return {
        "tables": made,
        "files": files,
        "missing": missing,
        "failed": {name: str(error) for name, error in failed.items()},
        "exit_code": max((error.exit_code for error in failed.values()), default=0),
    }


def page(cells: Cells, judged: Judged, out: Path) -> list[str]:
    """OUT/report.html of the cells whose runs are there, with what was found of them."""
    there = {cell.run: cell for cell in cells.values() if (cell.run / "recipe.yaml").is_file()}
    if not there:
        return []
    results = {run: sorted(cell.results(judged).glob("*.json")) for run, cell in there.items()}
    names = [cell.name for cell in there.values()]
    return [report(list(there), out / "report.html", names=names, results=results)["report"]]


def run_missing(cells: Cells, judged: Judged, base: Recipe, how: How) -> dict[str, UserError]:
    """Run this shard's cells that have no result; what failed, and why."""
    at = slots(base, how)
    mine = [cell for cell in of_shard(cells, *how.shard) if not cell.done(judged)]
    if not mine:
        return {}
    console.say(
        f"{len(mine)} of {len(cells)} cells to run, {min(len(at), len(mine))} at a time; "
        f"logs in {mine[0].out / 'logs'}"
    )
    failed: dict[str, UserError] = {}
    for taught in (False, True):  # their teachers first
        some = [cell for cell in mine if (cell.recipe.frozen is not None) == taught]
        if some:
            failed |= run_cells(some, judged, common=common_options(base, how), slots=at)
    return failed


def raise_failed(found: dict[str, Any]) -> None:
    """One error for the cells that failed, when their tables have been shown."""
    if not found.get("failed"):
        return
    first, *more = found["failed"].values()
    rest = f"; {len(more)} more failed: {', '.join(list(found['failed'])[1:])}" if more else ""
    kind = SetupError if found["exit_code"] == 2 else DataError
    raise kind(f"{first}{rest}")


def planned(cells: Cells, judged: Judged, base: Recipe, how: How) -> dict[str, Any]:
    """The cells of this shard, and what they will take; the time from a few timed steps."""
    at = slots(base, how)
    threads = torch.get_num_threads()
    torch.set_num_threads(int(at[0].get("OMP_NUM_THREADS", threads)))
    listed: list[dict[str, Any]] = []
    left: list[float] = []  # seconds
    timed: dict[str, float] = {}
    try:
        for cell in of_shard(cells, *how.shard):
            done = cell.done(judged)
            todo = max(0, cell.recipe.train.steps - cell.steps_done())
            steps = 0 if done or cell.data is None else todo
            method = cell.recipe.method
            if cell.recipe.frozen and not Path(cell.recipe.frozen).exists():
                timed[method] = max(timed.values(), default=0.0)  # nearly: its teacher is to come
            if steps and cell.data is not None and method not in timed:
                device = device_of(base, how)
                gpus = at[0].get("CUDA_VISIBLE_DEVICES")  # of one job, where several share them
                count = how.processes if gpus is None else len(gpus.split(","))
                found = plan(cell.recipe, cell.data, processes=count, device=device)
                timed[method] = found["estimated_seconds_per_step"]
            listed.append({"cell": cell.name, "done": done, "steps_left": steps})
            if not done:
                left.append(steps * timed.get(method, 0.0))
    finally:
        torch.set_num_threads(threads)
    left.sort(reverse=True)
    rounds = math.ceil(len(left) / len(at)) if left else 0
    return {
        "cells": listed,
        "jobs": min(len(at), max(len(left), 1)),
        "judged": {"steps": list(judged.steps), "metrics": list(judged.metrics), **judged.about},
        "estimated_training_hours": round(sum(left[:: len(at)][:rounds]) / 3600, 2),
        "dry_run": True,
    }
