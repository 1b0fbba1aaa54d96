"""The cells of an ablation by name and seed: made for a recipe, or of runs that are there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sra2cli.axes import Row
from sra2cli.cells import Cell, Judged
from sra2cli.errors import SetupError
from sra2cli.recipe import differences
from sra2cli.run import Run, folder_name
from sra2cli.run_writer import CHANGEABLE
from sra2cli.settings import Recipe
from sra2cli.store import Store

Cells = dict[tuple[str, int], Cell]  # by name and seed


def grid(rows: Sequence[Row], base: Recipe, seeds: int, store: Store, out: Path) -> Cells:
    """A cell for each row and seed; seed by seed, so that a first table is there early."""
    sums = str(store.checksums)
    return {
        (row.cell, seed): Cell(
            f"{row.cell}-seed{seed}", replace(row.recipe, seed=seed), store.path, sums, out
        )
        for seed in range(base.seed, base.seed + seeds)
        for row in rows
    }


def given(runs: Sequence[Path], out: Path) -> Cells:
    """Runs that are there, by their folder names; by their whole paths where those are alike."""
    names = [path.name for path in runs]
    found: Cells = {}
    for path in runs:
        if "@" in path.name and not path.exists():
            raise SetupError(f"{path}: give runs without a step, and the steps with --step")
        name = path.name if names.count(path.name) == 1 else str(path)
        run = Run(path)
        sums = str(run.about["store"]["checksums"])
        cell = Cell(name.replace("/", "-"), run.recipe, None, sums, out, folder=path)
        found[name, run.recipe.seed] = cell
    return found


def refuse_others(cells: Cells) -> None:
    """Runs in OUT that were trained with other settings: said before anything is begun."""
    for cell in cells.values():
        if not (cell.run / "recipe.yaml").is_file():
            continue
        auto = ("train.precision",) if cell.recipe.train.precision == "auto" else ()
        there = Run(cell.run).recipe
        differ = differences(there, cell.recipe, ignore=(*CHANGEABLE, *auto))
        if differ:
            raise SetupError(
                f"{cell.run} was trained with other settings (differs in {', '.join(differ)}): "
                "choose another --out"
            )


def common_steps(runs: Sequence[Path]) -> list[int]:
    """Steps of which every run has a checkpoint."""
    of = [{int(p.name[5:]) for p in Run(path).checkpoints()} for path in runs]
    steps = sorted(set.intersection(*of))
    if not steps:
        raise SetupError("the runs have no checkpoint of the same step: choose some with --step")
    return steps


def check_there(runs: Sequence[Path], steps: Sequence[int]) -> None:
    """Refuse steps of which a run has no checkpoint."""
    for run in (Run(path) for path in runs):
        for step in steps:
            if not (run.path / "checkpoints" / folder_name(step)).is_dir():
                run.checkpoint(step)  # says which there are


def of_shard(cells: Cells, number: int, count: int) -> list[Cell]:
    """Every count-th cell, from the number-th, which counts from 1."""
    return list(cells.values())[number - 1 :: count]


def results_of(name: str, cells: Cells, judged: Judged, step: int) -> list[dict[str, Any]]:
    """What was found at a step, for each seed that is there."""
    of = [cell.found(judged) for (other, _), cell in cells.items() if other == name]
    return [found[step] for found in of if step in found]
