"""sra2 runs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, user_errors

if TYPE_CHECKING:
    from sra2cli.runs.listing import Row

HEADER = ("run", "recipe", "method", "state", "step", "loss", "metric", "written")
NUMBERS = (4, 5)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, at any depth; or a run.")] = Path(
        "runs"
    ),
    json: o.Json = False,
) -> None:
    """The runs below a folder: how far they are, their last loss and metric."""
    with user_errors():
        from sra2cli.core import console
        from sra2cli.runs.listing import list_runs

        rows = list_runs(folder)
        if json:
            console.print_json({"folder": str(folder), "runs": [asdict(row) for row in rows]})
            return
        if rows:
            console.print_columns([HEADER, *map(cells, rows)], right=NUMBERS)
        else:
            console.say(f"no runs in {folder}: `sra2 train` writes to runs/RECIPE")
        for row in rows:
            if row.problem is not None:
                console.warn(f"{row.run} is damaged: {row.problem}")


def cells(row: "Row") -> tuple[str, ...]:
    """A run as a row of the table."""
    steps = f"{row.step:,}" if row.steps is None else f"{row.step:,} of {row.steps:,}"
    metric = ""
    if row.metric is not None:
        at = "" if row.metric.step in (None, row.step) else f" at {row.metric.step:,}"
        metric = f"{row.metric.name} {row.metric.value:.4g}{at}"
    return (
        *(row.run, row.recipe, row.method, row.state, steps),
        "" if row.loss is None else f"{row.loss:.4f}",
        metric,
        row.updated[:16].replace("T", " "),
    )
