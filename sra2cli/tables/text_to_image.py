"""Table 4: networks that are told captions, drawn of those of val images, and judged alike."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sra2cli.core.errors import SetupError
from sra2cli.runs.run import Run
from sra2cli.sampling.settings import chosen
from sra2cli.tables import paper, render
from sra2cli.tables.ablate import Tables, carried_out
from sra2cli.tables.cells import Cell
from sra2cli.tables.protocol import OWN, How, of_training
from sra2cli.tables.systems import System, SystemCell, cells_of, opened_all, rows_beside

METRICS = "fid,pickscore"
DATA = "MS-COCO 2014's train part"


def text_to_image(sources: Sequence[Path], how: How, *, out: Path) -> dict[str, Any]:
    """Judge runs (RUN@STEP; else their newest checkpoint) and checkpoints that are there.

    Args:
        how: prompts is a file of them, or a latent store whose captions are drawn, one an image;
            as many images as it has unless `num` says otherwise.

    Returns, raises: as `ablate.ablate`.
    """
    if how.prompts is None:
        raise SetupError("--prompts: the latent store of val images, whose captions are drawn")
    found = opened_all(
        sources, "text", "`ablate t2i` compares networks that are told captions", how
    )
    how = replace(how, metrics=how.metrics or METRICS)
    cells = cells_of(found, how, out)
    first = next(iter(cells.values()))
    assert isinstance(first, SystemCell)

    def tables() -> Tables:
        theirs = [paper.text_to_image(s.model, s.method, s.step) for s in found]
        labels = [f"{s.name} ({paper.NAMES.get(s.method, s.method) or 'none'})" for s in found]
        rows = rows_beside(cells, labels, theirs, "table4", paper.text_to_image_title)
        table = render.table_of("t2i", "system (method)", rows, first.own.metrics)
        differs = [line for s in found for line in differing(s, cells[s.name, s.recipe.seed])]
        about = {"paper": paper.TABLE4, "data": "MS-COCO", "differs": differs}
        return {"t2i": {**table, **about}}

    return carried_out(cells, first.own, first.recipe, how, out, tables)


def differing(system: System, cell: Cell) -> list[str]:
    """What is not as the paper has it, or as we read it: training, then how images are drawn."""
    assert isinstance(cell, SystemCell)
    found = []
    if system.step is not None:
        store = Run(system.path).about["store"]
        ignore = (*OWN, "data", "align")
        found += of_training(
            system.recipe, store["count"], store["path"], ignore, like=paper.T2I_RECIPE, data=DATA
        )
        if system.step != system.recipe.train.steps:
            found.append(f"judged step: {system.step:,} of {system.recipe.train.steps:,}")
    wanted = {"num": paper.T2I_SAMPLES, **chosen("t2i").to_dict()}
    found += [
        f"sampling {key}: {value} (Table 4: {wanted.get(key, '–')})"
        for key, value in cell.own.about.items()
        if key not in ("seed", "prompts") and value != wanted.get(key)
    ]
    return [f"{system.name}: {line}" for line in found]
