"""sra2 report."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, user_errors


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[Path, o.where("The page.")] = Path("report.html"),
    json: o.Json = False,
) -> None:
    """One page that shows runs beside each other: samples, curves, numbers, settings, cost."""
    with user_errors():
        from sra2cli.core import console
        from sra2cli.reports.report import report as write

        found = write(runs, out)
        if json:
            console.print_json(found)
            return
        rows = [(name, f"{about['step']:,}") for name, about in found["runs"].items()]
        console.print_table(found["report"], ("run", "step"), rows)
        counted = f"{found['evaluations']:,} evaluations, {found['grids']:,} grids of samples"
        size = f"{found['bytes'] / 1e6:.1f} MB"
        console.say(f"{size}: {found['rows']:,} rows of metrics, {counted}")
