"""Table 3: several runs and checkpoints, each drawn with guidance as its method is reported.

A source is a cell that is there already: judged by an ordinary `sra2 eval`, resumed as others are.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sra2cli.config.reading import TypedDict, read_json
from sra2cli.config.settings import Recipe
from sra2cli.core import hub
from sra2cli.core.errors import SetupError
from sra2cli.core.files import file_digest
from sra2cli.evaluation import scores
from sra2cli.evaluation.judge import Result
from sra2cli.models import checkpoints
from sra2cli.models.build import BACKBONES
from sra2cli.models.checkpoint_files import WEIGHTS
from sra2cli.runs import exported
from sra2cli.runs.naming import name_of, split_step, step_of
from sra2cli.runs.run import CHECKPOINT_META, Run
from sra2cli.sampling.settings import chosen
from sra2cli.tables import paper, render
from sra2cli.tables.ablate import Tables, carried_out
from sra2cli.tables.cells import Cell, Cells, Judged
from sra2cli.tables.protocol import How, judging, on_digits

KINDS = {"label": "classes", "text": "captions"}  # what a network is told
BY_KIND = ("lightningdit", "reg", "maskdit")  # backbones whose preset goes by their own name
BY_METHOD = ("sra2", "repa")  # methods on SiT with one; the others are drawn as SiT
OF_FILES = {"REPA": "repa", "SRA": "sra"}  # method, by who trained a checkpoint
NAMES = {"sit": "SiT", "reg": "SiT", "lightningdit": "LightningDiT", "maskdit": "MaskDiT"}
NAMES |= {"mmdit": "MMDiT"}


@dataclass(frozen=True)
class System:
    """A network of Table 3.

    path: a run, or a checkpoint of others. step: of a run's checkpoint; None: a file.
    images: of the run's store. model, method, epochs: as the paper's table names it, where known.
    """

    name: str
    path: Path
    recipe: Recipe
    step: int | None
    preset: str
    model: str
    method: str
    told: str  # "label" or "text", as `Backbone.told`
    images: int = 0
    checkpoint: str = ""

    @property
    def epochs(self) -> float | None:
        if self.step is None or not self.images:
            return None
        return self.step * self.recipe.train.batch / self.images


class OfFile(TypedDict):
    checkpoint: str


class DrawnFile(Result):
    """A result of `sra2 eval` of a file, as far as it is read."""

    how: OfFile


@dataclass(frozen=True)
class SystemCell(Cell):
    """A cell of a source, which is judged in its own way."""

    own: Judged = field(kw_only=True)
    file: str | None = field(kw_only=True)  # digest of a checkpoint of others; None: a run

    def results(self, judged: Judged) -> Path:
        return super().results(self.own)

    def found(self, judged: Judged) -> dict[int, dict[str, Any]]:
        if self.file is None:
            return super().found(self.own)
        for path in sorted(self.results(judged).glob("*.json")):
            with suppress(OSError, ValueError):
                row = read_json(path, DrawnFile)
                if row["how"]["checkpoint"] == self.file:
                    return {0: row}
        return {}

    def done(self, judged: Judged) -> bool:
        return bool(self.found(judged))

    def commands(self, judged: Judged, common: Sequence[str]) -> list[list[str]]:
        if self.file is None:
            return super().commands(self.own, common)
        out = ["--out", str(self.results(judged))]
        return [["eval", str(self.run), *self.own.options, *common, *out]]

    def steps_done(self) -> int:
        return self.recipe.train.steps


def systems(sources: Sequence[Path], how: How, *, out: Path) -> dict[str, Any]:
    """Judge runs (RUN@STEP; else their newest checkpoint) and checkpoints that are there.

    Args:
        how: its preset, solver and steps stand for those of each method where they are given.

    Returns, raises: as `ablate.ablate`.
    """
    found = opened_all(sources, "label", "`ablate systems` compares networks with classes", how)
    small = all(on_digits(system.recipe) for system in found)
    names = how.metrics or ("fd-digits" if small else ",".join(scores.PAPERS))
    cells = cells_of(found, replace(how, metrics=names), out)
    first = next(iter(cells.values()))
    assert isinstance(first, SystemCell)

    def tables() -> Tables:
        theirs = [paper.system(s.model, s.method, s.epochs) for s in found]
        labels = [f"{s.name} ({how.preset or s.preset})" for s in found]
        rows = rows_beside(cells, labels, theirs, "table3", paper.system_title)
        table = render.table_of("systems", "system (preset)", rows, first.own.metrics)
        differs = [line for s in found for line in differing(s, cells[s.name, s.recipe.seed], how)]
        return {"systems": {**table, "paper": paper.TABLE3, "differs": differs}}

    return carried_out(cells, first.own, first.recipe, how, out, tables)


def opened_all(sources: Sequence[Path], told: str, what: str, how: How) -> list[System]:
    """What the sources are.

    Raises:
        SetupError: one is neither a run nor a checkpoint, or its network is told something else.
    """
    sources = [hub.pinned(source, offline=how.offline) for source in sources]
    names = names_of(sources)
    found = [opened(path, name, how) for path, name in zip(sources, names, strict=True)]
    other = next((system for system in found if system.told != told), None)
    if other is not None:
        raise SetupError(f"{other.name} is told {KINDS[other.told]}: {what}")
    return found


def cells_of(found: Sequence[System], how: How, out: Path) -> Cells:
    """A cell a source, drawn with its preset unless `how` says one; how.metrics are given."""
    cells: Cells = {}
    for system in found:
        vae = how.vae if system.step is None or all(s.step is not None for s in found) else None
        own = replace(how, preset=how.preset or system.preset, vae=vae)
        if system.step is not None:  # these are for checkpoints of others
            own = replace(own, latent_stats=None, num_heads=None, kind=None)
        judged = judging(system.recipe, own, (system.step or 0,))
        file = None if system.step is not None else system.checkpoint
        cells[system.name, system.recipe.seed] = SystemCell(
            system.name.replace("/", "-"),
            system.recipe,
            None,
            system.checkpoint,
            out,
            folder=system.path,
            own=judged,
            file=file,
        )
    return cells


Row = tuple[dict[str, Any], list[dict[str, Any]], dict[str, float]]  # what, results, the paper's


def rows_beside(
    cells: Cells,
    labels: Sequence[str],
    theirs: Sequence[dict[str, Any] | None],
    table: str,
    title: Callable[[dict[str, Any]], str],
) -> list[Row]:
    """A row a source with the paper's row of the same, then the paper's others.

    Args:
        labels, theirs: of each source; None where the paper has none.
        table: of the paper; title: of one of its rows.
    """
    own = next(iter(cells.values())).own  # type: ignore[attr-defined]
    rows: list[Row] = [
        (row_of(label), [*cell.found(own).values()], paper.numbers(row))
        for label, cell, row in zip(labels, cells.values(), theirs, strict=True)
    ]
    others = [row for row in paper.tables()[table] if row not in theirs]
    return [*rows, *((row_of(title(row)), [], paper.numbers(row)) for row in others)]


def row_of(label: str) -> dict[str, Any]:
    return {"label": label, "own": False, "baseline": False}


def names_of(sources: Sequence[Path]) -> list[str]:
    """Folder, file or repository names; whole ones where those are alike."""
    names = [name_of(path) for path in sources]
    unique = [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, sources, strict=True)
    ]
    if len(set(unique)) < len(unique):
        raise SetupError("the same run or checkpoint is given twice")
    return unique


def opened(source: Path, name: str, how: How) -> System:
    """What a source is; SetupError for neither a run nor a checkpoint."""
    path, step = split_step(source)
    if (path / CHECKPOINT_META).exists():  # inside a run
        path, step = path.absolute().parent.parent, step_of(path)
    if hub.is_name(path) or path.is_file() or (path / WEIGHTS).is_file():
        return of_file(path, name, how)
    run = Run(path)
    step = run.checkpoint().step if step is None else step
    run.folder_of(step)
    kind, store = run.recipe.model.kind, run.about["store"]
    return System(
        name,
        path,
        run.recipe,
        step,
        preset_of(kind, run.recipe.align),
        f"{NAMES.get(kind, kind)}-{run.recipe.model.size}",
        run.recipe.method,
        BACKBONES[kind].told,
        store["count"],
        str(store["checksums"]),
    )


def of_file(path: Path, name: str, how: How) -> System:
    """A checkpoint of others, or one of ours without its run."""
    loaded = checkpoints.load(path, num_heads=how.num_heads, kind=how.kind)
    kind, method = loaded.model.kind, OF_FILES.get(loaded.kind, "none")
    said = exported.read(loaded.said, name)
    method = "reg" if kind == "reg" else said[1]["method"] if said else method
    file = hub.local(path)
    digest = file_digest(file if file.is_file() else file / WEIGHTS)
    recipe = Recipe(name=name)
    if said:
        recipe = replace(recipe, data=replace(recipe.data, vae=said[0].vae_fingerprint))
    preset = preset_of(kind, (method,))
    if loaded.model.told == "label":
        chosen(preset).check(loaded.model.shape)
    told = loaded.model.told
    return System(name, path, recipe, None, preset, NAMES.get(kind, kind), method, told, 0, digest)


def preset_of(kind: str, methods: Sequence[str] | dict[str, Any]) -> str:
    """What guided numbers of a network are reported with."""
    if kind in BY_KIND:
        return kind
    if BACKBONES[kind].told == "text":
        return "t2i"
    return next((method for method in BY_METHOD if method in methods), "sit")


def differing(system: System, cell: Cell, how: How) -> list[str]:
    """What is not as the papers have it."""
    assert isinstance(cell, SystemCell)
    wanted = {"num": paper.SAMPLES, **chosen(system.preset).to_dict()}
    found = [
        f"{key}: {value} (preset {system.preset}: {wanted.get(key, '–')})"
        for key, value in cell.own.about.items()
        if value != wanted.get(key, value if key == "seed" else None)
    ]
    if system.images and on_digits(system.recipe):
        found.append(f"data: {system.images:,} digits (paper: ImageNet)")
    return [f"{system.name}: {line}" for line in found]
