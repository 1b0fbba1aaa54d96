"""The cells of an ablation: ordinary runs, trained and judged by ordinary commands.

A cell is `sra2 train`, then `sra2 eval` of its run. Both resume by themselves, so a cell that was
killed goes on where it was. What eval writes are the cell's results, in a folder named by all that
they depend on.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sra2cli.errors import UserError
from sra2cli.files import write_atomically
from sra2cli.run import Run, folder_name
from sra2cli.settings import Recipe

EMA = "ema.safetensors"
RESUMABLE = ("log", "name")  # settings that may change without changing a run


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
        tree = {k: v for k, v in self.recipe.to_dict().items() if k not in RESUMABLE}
        tree["train"] = {k: v for k, v in tree["train"].items() if k != "micro_batch"}
        what = [tree, self.checksums, judged.options, judged.metrics]
        text = json.dumps([*what, dict(judged.about), dict(judged.identity)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.out / "results" / f"{self.name}.{digest}"

    def found(self, judged: Judged) -> dict[int, dict[str, Any]]:
        """Step → what eval said of it, as far as it is there, and of the checkpoint there now."""
        found = {}
        for file in sorted(self.results(judged).glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                row = json.loads(file.read_text())
                if isinstance(row, dict) and self._still(row):
                    found[int(row["how"]["step"])] = row
        return {step: found[step] for step in judged.steps if step in found}

    def done(self, judged: Judged) -> bool:
        return len(self.found(judged)) == len(judged.steps)

    def _still(self, row: dict[str, Any]) -> bool:
        """Whether a result is of the checkpoint that lies there now, if one does."""
        folder = self.run / "checkpoints" / folder_name(int(row["how"]["step"]))
        try:
            now: str = json.loads((folder / "checkpoint.json").read_text())["files"][EMA]
        except (OSError, ValueError, KeyError):
            return True  # removed to save space: the number stays
        return now == row["how"]["checkpoint"]

    def commands(self, judged: Judged, common: Sequence[str]) -> list[list[str]]:
        """The command lines, after `sra2`."""
        steps = ",".join(map(str, judged.steps))
        judge = ["eval", str(self.run), "--step", steps, "--seed", str(self.recipe.seed)]
        judge += [*judged.options, *common, "--out", str(self.results(judged))]
        if self.data is None:
            return [judge]
        train = ["train", "--recipe", str(self._recipe_file), "--data", str(self.data)]
        return [[*train, "--out", str(self.run), *common], judge]

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
