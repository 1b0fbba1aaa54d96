"""The cells of an ablation: ordinary runs, trained and judged by ordinary commands.

A cell is `sra2 train`, then `sra2 eval` of its run. Both resume by themselves, so a cell that was
killed goes on where it was. What eval writes are the cell's results, in a folder named by all that
they depend on.
"""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sra2cli.config.checks import Natural
from sra2cli.config.reading import TypedDict, read_json
from sra2cli.config.recipe import differences, flat, from_dict
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import DataError, SetupError, UserError
from sra2cli.core.files import write_atomically
from sra2cli.data.store import Store
from sra2cli.evaluation.judge import Result
from sra2cli.runs.naming import folder_name, split_step, step_of
from sra2cli.runs.run import EMA, Run, read_checkpoint
from sra2cli.runs.writer import changeable
from sra2cli.tables.axes import Row

STEP, MEMORY = "s/step", "peak GB"


@dataclass(frozen=True)
class Judged:
    """How the runs are judged.

    steps: checkpoints. options: of `sra2 eval`. about: the same for people. identity: what tells
    whether reference or weights have changed.
    """

    steps: tuple[int, ...]
    options: tuple[str, ...]
    metrics: tuple[str, ...]
    about: Mapping[str, Any]
    identity: Mapping[str, str]


class Checked(TypedDict):
    """The checkpoint that was judged."""

    step: Natural
    checkpoint: str


class Drawn(Result):
    """A result of `sra2 eval` of a run, as far as it is read."""

    how: Checked


@dataclass(frozen=True)
class Cell:
    """One run of an ablation, in OUT/runs/NAME.

    checksums: of the store. folder: a run that is there already, and is judged alone; data is
    None then.
    """

    name: str
    recipe: Recipe
    data: Path | None
    checksums: str
    out: Path
    folder: Path | None = None

    @property
    def run(self) -> Path:
        return self.folder or self.out / "runs" / self.name

    def results(self, judged: Judged) -> Path:
        """Folder of its results; another one for another recipe, store or way of judging."""
        settings = flat(self.recipe, ignore=changeable(self.recipe))
        what = [settings, self.checksums, judged.options, judged.metrics]
        text = json.dumps([*what, dict(judged.about), dict(judged.identity)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.out / "results" / f"{self.name}.{digest}"

    def found(self, judged: Judged) -> dict[int, dict[str, Any]]:
        """Step → what eval said of it, as far as it is there, and of the checkpoint there now."""
        found = {}
        for file in sorted(self.results(judged).glob("*.json")):
            with suppress(OSError, ValueError):
                row = read_json(file, Drawn)
                if self._still(row):
                    found[row["how"]["step"]] = row
        return {step: found[step] for step in judged.steps if step in found}

    def done(self, judged: Judged) -> bool:
        return len(self.found(judged)) == len(judged.steps)

    def _still(self, row: dict[str, Any]) -> bool:
        """Whether a result is of the checkpoint that lies there now, if one does."""
        folder = self.run / "checkpoints" / folder_name(row["how"]["step"])
        try:
            now = read_checkpoint(folder).meta["files"].get(EMA)
        except DataError:
            return True  # removed to save space: the number stays
        return now in (None, row["how"]["checkpoint"])

    def commands(self, judged: Judged, common: Sequence[str]) -> list[list[str]]:
        """The command lines, after `sra2`."""
        steps = ",".join(map(str, judged.steps))
        judge = ["eval", str(self.run), "--step", steps, "--seed", str(self.recipe.seed)]
        judge += [*judged.options, *common, "--out", str(self.results(judged))]
        if self.data is None:
            return [judge]
        train = ["train", "--recipe", str(self._recipe_file), "--data", str(self.data)]
        return [[*train, "--out", str(self.run), *common], judge]

    def took(self) -> dict[str, float]:
        """Median seconds of a training step, and the peak of its memory; {} without metrics."""
        with suppress(UserError, OSError, ValueError):
            rows = Run(self.run).metrics()[1:]  # in the first, things are opened and compiled
            seconds = [self.recipe.train.batch / row["images_per_second"] for row in rows]
            peak = [row["memory_gb"] for row in rows if "memory_gb" in row]
            if seconds and peak:
                return {STEP: statistics.median(seconds), MEMORY: max(peak)}
        return {}

    def write_recipe(self) -> None:
        self._recipe_file.parent.mkdir(parents=True, exist_ok=True)
        tree = {**self.recipe.to_dict(), "name": self.name}
        write_atomically(self._recipe_file, yaml.safe_dump(tree, sort_keys=False))

    @property
    def _recipe_file(self) -> Path:
        return self.out / "recipes" / f"{self.name}.yaml"

    def steps_done(self) -> int:
        """Of its training, as far as its metrics tell."""
        with suppress(UserError, OSError, ValueError):
            rows = Run(self.run).metrics()
            return int(rows[-1]["step"]) if rows else 0
        return 0


Cells = dict[tuple[str, int], Cell]  # by name and seed


def grid(rows: Sequence[Row], base: Recipe, seeds: int, store: Store, out: Path) -> Cells:
    """A cell for each row and seed; seed by seed, so that a first table is there early."""
    sums = str(store.checksums)
    return {
        (row.cell, seed): Cell(
            named(row.cell, seed), of_seed(row, seed, out), store.path, sums, out
        )
        for seed in range(base.seed, base.seed + seeds)
        for row in rows
    }


def named(cell: str, seed: int) -> str:
    return f"{cell}-seed{seed}"


def of_seed(row: Row, seed: int, out: Path) -> Recipe:
    """The recipe of a row, with the run of that seed that teaches it, if one does."""
    recipe = replace(row.recipe, seed=seed)
    if row.taught_by is None:
        return recipe
    tree = recipe.to_dict()
    for name, settings in recipe.align.items():
        if "frozen" in settings.needs:
            tree["align"][name]["teacher"] = str(
                out.absolute() / "runs" / named(row.taught_by, seed)
            )
    return from_dict(tree)


def given(runs: Sequence[Path], out: Path) -> Cells:
    """Runs that are there, by their folder names; by their whole paths where those are alike."""
    names = [path.name for path in runs]
    found: Cells = {}
    for path in runs:
        if split_step(path)[1] is not None:
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
        differ = differences(there, cell.recipe, ignore=(*changeable(cell.recipe), *auto))
        if differ:
            raise SetupError(
                f"{cell.run} was trained with other settings (differs in {', '.join(differ)}): "
                "choose another --out"
            )


def common_steps(runs: Sequence[Path]) -> list[int]:
    """Steps of which every run has a checkpoint."""
    of = [{step_of(p) for p in Run(path).checkpoints()} for path in runs]
    steps = sorted(set.intersection(*of))
    if not steps:
        raise SetupError("the runs have no checkpoint of the same step: choose some with --step")
    return steps


def check_there(runs: Sequence[Path], steps: Sequence[int]) -> None:
    """Refuse steps of which a run has no checkpoint."""
    for run in (Run(path) for path in runs):
        for step in steps:
            run.folder_of(step)


def of_shard(cells: Cells, number: int, count: int) -> list[Cell]:
    """Every count-th cell, from the number-th, which counts from 1."""
    return list(cells.values())[number - 1 :: count]


def costs_of(name: str, cells: Cells) -> dict[str, float]:
    """What the trainings of a row took: means over its seeds."""
    of = [cell.took() for (other, _), cell in cells.items() if other == name]
    of = [took for took in of if took]
    return {key: statistics.fmean(took[key] for took in of) for key in (of[0] if of else ())}


def results_of(name: str, cells: Cells, judged: Judged, step: int) -> list[dict[str, Any]]:
    """What was found at a step, for each seed that is there."""
    of = [cell.found(judged) for (other, _), cell in cells.items() if other == name]
    return [found[step] for found in of if step in found]
