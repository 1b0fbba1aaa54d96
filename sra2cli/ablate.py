"""sra2 ablate: Table 1 and Table 2 of the paper, on any recipe and data.

Every cell is an ordinary run in OUT/runs, shared by the axes where settings coincide; tables and
plots are made from OUT/results alone.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sra2cli import axes, console, paper, tables
from sra2cli.axes import AXES, Row
from sra2cli.cells import Cell, Judged, run_cells
from sra2cli.errors import SetupError
from sra2cli.objective import build_heads
from sra2cli.plan import plan
from sra2cli.protocol import How, data_of, differences, judging, workers
from sra2cli.run import Run, environment
from sra2cli.settings import Recipe


def ablate(
    names: Sequence[str],
    base: Recipe,
    how: How,
    *,
    data: Path | None,
    out: Path,
    values: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train and judge every cell of some axes that is not there yet; then their tables.

    Args:
        names: of `AXES`. data: a latent store; None: the digits, for recipes on them.
        values: of the axis, instead of the paper's; for one axis alone.

    Returns:
        {"tables": {axis: table}, "files": [...], "missing": cells of other shards}; of a dry run,
        the cells, and what they will take.

    Raises:
        SetupError: recipe, data and settings do not fit. DataError: a cell failed.
    """
    rows = {name: axes.rows(name, base, values) for name in names}
    for row in (row for found in rows.values() for row in found):
        with torch.device("meta"):  # what cannot be built is refused before anything is trained
            build_heads(row.recipe, feature_width=1)
    step = base.train.steps if how.step is None else how.step
    if not 0 < step <= base.train.steps or (step != base.train.steps and step not in kept(base)):
        raise SetupError(
            f"--step {step} is not kept: the last step is, and multiples of "
            f"log.keep_every ({base.log.keep_every})"
        )
    judged = judging(base, how, (step,))
    store = data_of(base, data, out)
    cells = grid([row for found in rows.values() for row in found], base, how, store, out)
    if dry_run:
        return planned(cells, judged, base, how)
    carry_out(cells, judged, base, how)
    made = {}
    for name, found in rows.items():
        results = {row.cell: results_of(row.cell, cells, judged, step) for row in found}
        about = {"differs": differences(base, judged), "step": step, **made_by()}
        made[name] = tables.of_axis(name, AXES[name].name, found, results, judged.metrics, about)
    return finished(made, cells, judged, out)


def iterations(
    base: Recipe,
    how: How,
    *,
    data: Path | None,
    out: Path,
    runs: Sequence[Path] = (),
    checkpoints: Sequence[int] = (),
    dry_run: bool = False,
) -> dict[str, Any]:
    """FID against training steps: of given runs, or of the recipe and its baseline (Table 2).

    Args:
        base: of the first run, if runs are given.
        checkpoints: which to judge; (): all that the first run keeps.

    Returns, raises: as `ablate`.
    """
    cells: Cells = {}
    if runs:
        cells = given(runs, out)
        steps = common_steps(runs)
    else:
        pair = [axes.baseline(base), axes.own(base)]
        cells = grid(pair, base, how, data_of(base, data, out), out)
        steps = sorted({*kept(base), base.train.steps})
    steps = list(checkpoints) or steps
    judged = judging(base, how, tuple(steps))
    if dry_run:
        return planned(cells, judged, base, how)
    carry_out(cells, judged, base, how)
    lines = {}
    for name in dict.fromkeys(name for name, _ in cells):
        recipe = next(cell.recipe for (other, _), cell in cells.items() if other == name)
        known = {s: paper.fid_after(recipe.model.size, recipe.method, s) for s in steps}
        lines[name] = {s: (results_of(name, cells, judged, s), known[s]) for s in steps}
    about = {"differs": differences(base, judged), **made_by()}
    return finished(
        {"iterations": tables.over_steps(lines, judged.metrics, about)}, cells, judged, out
    )


Cells = dict[tuple[str, int], Cell]  # by name and seed


def grid(rows: Sequence[Row], base: Recipe, how: How, data: Path, out: Path) -> Cells:
    """A cell for each row and seed; seed by seed, so that a first table is there early."""
    return {
        (row.cell, seed): Cell(f"{row.cell}-seed{seed}", replace(row.recipe, seed=seed), data, out)
        for seed in axes.seeds_of(base, how.seeds)
        for row in rows
    }


def given(runs: Sequence[Path], out: Path) -> Cells:
    """Runs that are there, by their folder names; by their whole paths where those are alike."""
    names = [path.name for path in runs]
    found: Cells = {}
    for path in runs:
        name = path.name if names.count(path.name) == 1 else str(path)
        recipe = Run(path).recipe
        found[name, recipe.seed] = Cell(name.replace("/", "-"), recipe, None, out, folder=path)
    return found


def common_steps(runs: Sequence[Path]) -> list[int]:
    """Steps of which every run has a checkpoint."""
    of = [{int(p.name[5:]) for p in Run(path).checkpoints()} for path in runs]
    steps = sorted(set.intersection(*of))
    if not steps:
        raise SetupError("the runs have no checkpoint of the same step: choose some with --step")
    return steps


def kept(base: Recipe) -> range:
    """Steps of the checkpoints that a run keeps for good."""
    return range(base.log.keep_every, base.train.steps + 1, base.log.keep_every)


def made_by() -> dict[str, Any]:
    about = environment()
    return {"command": shlex.join(["sra2", *sys.argv[1:]]), "environment": about}


def finished(
    made: dict[str, dict[str, Any]], cells: Cells, judged: Judged, out: Path
) -> dict[str, Any]:
    """Write the tables; what is missing is other shards' work."""
    files = [file for table in made.values() for file in tables.write(table, out)]
    missing = [cell.name for cell in cells.values() if cell.result(judged) is None]
    return {"tables": made, "files": files, "missing": missing}


def planned(cells: Cells, judged: Judged, base: Recipe, how: How) -> dict[str, Any]:
    """The cells of this shard, and what they will take; the time from a few timed steps."""
    number, count = how.shard
    mine = list(cells.values())[number - 1 :: count]
    jobs, threads = workers(base, how)
    if threads is not None:
        torch.set_num_threads(threads)
    listed, seconds, timed = [], 0.0, {}
    for cell in mine:
        done = cell.result(judged) is not None
        steps = 0 if done or cell.data is None else cell.recipe.train.steps - cell.steps_done()
        if steps and cell.recipe.method not in timed:
            assert cell.data is not None
            device = how.device or ("cuda" if torch.cuda.is_available() else "cpu")
            found = plan(cell.recipe, cell.data, processes=how.processes, device=device)
            timed[cell.recipe.method] = found["estimated_seconds_per_step"]
        seconds += steps * timed.get(cell.recipe.method, 0.0)
        listed.append({"cell": cell.name, "done": done, "steps_left": steps})
    return {
        "cells": listed,
        "jobs": jobs,
        "judged": {"steps": list(judged.steps), "metrics": list(judged.metrics), **judged.about},
        "estimated_training_hours": round(seconds / jobs / 3600, 2),
        "dry_run": True,
    }


def carry_out(cells: Cells, judged: Judged, base: Recipe, how: How) -> None:
    """Run this shard's cells that have no result."""
    number, count = how.shard
    mine = [c for c in list(cells.values())[number - 1 :: count] if c.result(judged) is None]
    if not mine:
        return
    jobs, threads = workers(base, how)
    console.say(
        f"{len(mine)} of {len(cells)} cells to run, {min(jobs, len(mine))} at a time; "
        f"logs in {mine[0].out / 'logs'}"
    )
    run_cells(mine, judged, common=how.common(), jobs=jobs, threads=threads)


def results_of(name: str, cells: Cells, judged: Judged, step: int) -> list[dict[str, Any]]:
    """What was found at a step, for each seed that is there."""
    of = [cell.result(judged) or {} for (other, _), cell in cells.items() if other == name]
    return [found[step] for found in of if step in found]


def recipe_of(run: Path) -> Recipe:
    """What a run was trained with."""
    return Run(run).recipe
