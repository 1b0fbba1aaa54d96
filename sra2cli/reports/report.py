"""sra2 report: runs → one HTML page that needs nothing beside it and fetches nothing.

Tables are written by the template; charts and the switching of pictures are drawn in the browser
by page.js from the data in the page.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sra2cli.core import console
from sra2cli.core.environment import environment
from sra2cli.core.errors import SetupError
from sra2cli.core.files import write_atomically
from sra2cli.reports import curves, evaluations, grids, told
from sra2cli.reports.told import Told

HERE = Path(__file__).parent
SIZE = 4_900_000  # bytes of a page, at most
LEAST = 500_000  # characters that grids have, however long the tables are


def report(
    paths: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    results: Mapping[Path, Sequence[Path]] | None = None,
) -> dict[str, Any]:
    """Write a page that shows runs beside each other.

    Args:
        paths: run folders, also of trainings that still run. names: of them, on the page.
        results: run folder → results of `sra2 eval` that lie elsewhere than in it.

    Returns:
        What was written: file, size, counts, and what was left out.

    Raises:
        SetupError: no run folder, or nothing can be written to `out`.
    """
    if out.is_dir():
        raise SetupError(f"--out {out} is a folder: name a file, as {out / 'report.html'}")
    named = told.names_of(paths) if names is None else names
    points = curves.points_for(len(paths))
    runs = [told.tell(path, name, points) for path, name in zip(paths, named, strict=True)]
    judged, left_out = evaluations.evaluations(runs, results or {})
    left_out += [line for run in runs for line in run.damaged]
    data: dict[str, Any] = {
        "runs": [run.name for run in runs],
        "curves": [plain(run) for run in runs],
        "evaluations": evaluations.charts(judged),
        "series": [],
    }
    empty = page(runs, judged, data, left_out)
    series = grids.series_of(runs)
    data["series"], more = grids.packed(series, runs, max(LEAST, SIZE - len(empty.encode())))
    left_out += more
    text = page(runs, judged, data, left_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    for line in left_out:
        console.warn(f"left out: {line}")
    return {
        "report": str(out),
        "bytes": len(text.encode()),
        "runs": {run.name: {"folder": str(run.run.path), "step": run.step} for run in runs},
        "rows": sum(len(run.rows) for run in runs),
        "evaluations": len(judged),
        "grids": sum(len(one["frames"]) for one in data["series"]),
        "left_out": left_out,
    }


def plain(run: Told) -> dict[str, Any]:
    """The curves of a run, as page.js reads them."""
    found = run.curves
    return {"x": found.steps, "y": found.values, "merged": found.merged}


def page(
    runs: Sequence[Told],
    judged: Sequence[evaluations.Evaluation],
    data: Mapping[str, Any],
    left_out: Sequence[str],
) -> str:
    """The whole page."""
    room = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.globals |= {"value": evaluations.value, "beside": told.beside}
    style, script = (Markup((HERE / f"page.{kind}").read_text("utf-8")) for kind in ("css", "js"))
    settings = told.compared(runs)
    return room.get_template("page.html").render(
        runs=runs,
        settings=settings,
        differing=[(key, values) for key, values in settings if len(set(values)) > 1],
        charts=curves.charts([run.curves for run in runs]),
        tables=evaluations.tables(judged),
        data=Markup(in_script(data)),
        has=data,
        left_out=left_out,
        style=style,
        script=script,
        style_digest=digest(style),
        script_digest=digest(script),
        about=environment(),
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def in_script(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def digest(text: str) -> str:
    """By which the page's policy knows its own style and script, and lets no other run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
