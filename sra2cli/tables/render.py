"""Tables and plots of an ablation, our values beside the paper's: made from results alone.

A table is a dict that JSON can hold:
    name, title             of its files; of its first column
    rows                    {"label", "own", "baseline", "runs", "metrics", "paper"} each, with
                            "costs" where it is shown what training took
    metrics                 {name: {"mean", "std", "values"}} in a row; std: over seeds, N - 1
    paper, differs          what the paper's numbers are of; settings that are not the paper's
    command, missing        what made it; cells that are not there
"""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sra2cli.core import console, pictures
from sra2cli.core.files import write_atomically
from sra2cli.evaluation.scores import BETTER, with_accuracy
from sra2cli.tables import paper
from sra2cli.tables.axes import Row

PAPER = "paper"
NAMES = {"fid": "FID", "sfid": "sFID", "is": "IS", "kid": "KID"}
NAMES |= {"pickscore": "PickScore", "clip-score": "CLIP score"}
Lines = dict[str, dict[int, tuple[list[dict[str, Any]], float | None]]]


def of_axis(
    name: str,
    title: str,
    rows: Sequence[Row],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    metrics: Sequence[str],
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The table of one axis. results: cell → what `sra2 eval` found, one a seed; costs: cell →
    what its training took, by the names of columns; None: not shown."""
    found = [
        (
            {"label": row.label, "own": row.own, "baseline": row.baseline}
            | ({} if costs is None else {"costs": dict(costs[row.cell])}),
            results[row.cell],
            row.paper,
        )
        for row in rows
    ]
    return table_of(name, title, found, metrics)


def over_steps(lines: Lines, metrics: Sequence[str]) -> dict[str, Any]:
    """The table over training steps. lines: run → step → (results, the paper's FID)."""
    found = []
    for name, line in lines.items():
        for step, (results, fid) in line.items():
            about = {"label": f"{name}, {step:,} steps", "line": name, "step": step}
            about |= {"own": False, "baseline": False}
            found.append((about, results, {} if fid is None else {"fid": fid}))
    return table_of("iterations", "training steps", found, metrics)


def table_of(
    name: str,
    title: str,
    rows: Sequence[tuple[dict[str, Any], Sequence[Mapping[str, Any]], dict[str, float]]],
    metrics: Sequence[str],
) -> dict[str, Any]:
    """A table of rows: what they are, what `sra2 eval` found, and the paper's numbers."""
    shown = with_accuracy(metrics, [r for _, results, _ in rows for r in results])
    made = [
        {
            **about,
            "runs": len(results),
            "metrics": {m: summary([r[m] for r in results]) for m in shown if results},
            "paper": theirs,
        }
        for about, results, theirs in rows
    ]
    return {"name": name, "title": title, "metrics": shown, "rows": made}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample; None for one value)."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def named(metric: str) -> str:
    return f"{NAMES.get(metric, metric)} {BETTER[metric]}"


def header(table: Mapping[str, Any]) -> list[str]:
    """Ours, and after each metric the paper's where it has it; else the paper's FID at the end."""
    found = [table["title"]]
    for name in table["metrics"]:
        found.append(named(name))
        if name in paper.TOLD:
            found.append(PAPER)
    if fid_alone(table):
        found.append(f"{PAPER}: FID ↓")
    return [*found, *costs_of(table)]


def fid_alone(table: Mapping[str, Any]) -> bool:
    """Whether the paper's FID stands beside metrics that it does not have."""
    told = set(table["metrics"]) & set(paper.TOLD)
    return not told and any(row["paper"] for row in table["rows"])


def costs_of(table: Mapping[str, Any]) -> list[str]:
    """Columns of what training took, where a table has them."""
    return list(dict.fromkeys(name for row in table["rows"] for name in row.get("costs", ())))


def cells(table: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """One row of text, as `header` has its columns; "–" where nothing is known."""
    few = 0 < row["runs"] < most_runs(table)
    found = [
        row["label"] + (" (recipe)" if row["own"] else "") + (f" (n={row['runs']})" if few else "")
    ]
    for name in table["metrics"]:
        found.append(shown(name, row["metrics"].get(name)))
        if name in paper.TOLD:
            found.append(number(name, row["paper"].get(name)))
    if fid_alone(table):
        found.append(number("fid", row["paper"].get("fid")))
    for name in costs_of(table):
        value = row["costs"].get(name)
        found.append("–" if value is None else f"{value:.3g}")
    return found


def most_runs(table: Mapping[str, Any]) -> int:
    return max(row["runs"] for row in table["rows"])


def shown(name: str, value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    mean = number(name, value["mean"])
    return mean if value["std"] is None else f"{mean} ± {number(name, value['std'])}"


def number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "accuracy":
        return f"{value:.1%}"
    return f"{value:.4f}" if name == "kid" else f"{value:.2f}"


def markdown(table: Mapping[str, Any]) -> str:
    """The table with what made it, and what is not as in the paper."""
    runs = most_runs(table)
    spread = f"mean ± standard deviation of {runs} seeds" if runs > 1 else "one seed"
    step = f", step {table['step']:,}" if "step" in table else ""
    devices = f"; judged on {', '.join(table['devices'])}" if table["devices"] else ""
    lines = [f"`{table['command']}`: {spread}{step}{devices}.", ""]
    lines.append(console.markdown_table(header(table), [cells(table, r) for r in table["rows"]]))
    if any(row["paper"] for row in table["rows"]):
        lines += [f"The paper's numbers: {table['paper']}.", ""]
    if table["missing"]:
        lines += [f"Not there yet: {', '.join(table['missing'])}.", ""]
    if table["references"]:
        lines += [f"Compared with: {', '.join(table['references'])}.", ""]
    if table["differs"]:
        lines += ["Not as in the paper:", "", *(f"- {line}" for line in table["differs"]), ""]
    return "\n".join(lines)


def as_csv(table: Mapping[str, Any]) -> str:
    """Numbers for other programs: mean, std and the paper's value of each metric."""
    out = io.StringIO()
    names = [name for m in table["metrics"] for name in (m, f"{m}_std")]
    told = [m for m in paper.TOLD if m in paper.METRICS or m in table["metrics"]]
    names += [f"paper_{m}" for m in told] + costs_of(table)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([table["name"], "runs", *names])
    for row in table["rows"]:
        found = [
            row["metrics"].get(m, {}).get(k) for m in table["metrics"] for k in ("mean", "std")
        ]
        theirs = [row["paper"].get(m) for m in told]
        theirs += [row["costs"].get(name) for name in costs_of(table)]
        writer.writerow([row["label"], row["runs"], *found, *theirs])
    return out.getvalue()


def plot(table: Mapping[str, Any], path: Path) -> None:
    """The first metric with its spread, and the paper's FID beside it."""
    metric = table["metrics"][0]
    name = named(metric)
    there = [row for row in table["rows"] if row["metrics"]]
    if table["name"] == "iterations":
        series: dict[str, list[tuple[float, float, float]]] = {}
        theirs: dict[str, list[tuple[float, float]]] = {}
        for row in there:
            value = row["metrics"][metric]
            point = (row["step"], value["mean"], value["std"] or 0.0)
            series.setdefault(row["line"], []).append(point)
            if metric in row["paper"]:
                theirs.setdefault(row["line"], []).append((row["step"], row["paper"][metric]))
        pictures.curves_with_spread(series, path, x="training step", y=name, theirs=theirs)
        return
    ours = [
        (row["label"], row["metrics"][metric]["mean"], row["metrics"][metric]["std"] or 0.0)
        for row in there
    ]
    first = next((p for p, row in zip(ours, there, strict=True) if row["baseline"]), None)
    panels = [("ours", name, ours, first and first[1])]
    known = [row for row in table["rows"] if "fid" in row["paper"]]
    if known:
        points = [(row["label"], row["paper"]["fid"], 0.0) for row in known]
        base = next((row["paper"]["fid"] for row in known if row["baseline"]), None)
        panels.append((f"the paper's, {table.get('data', 'ImageNet')}", "FID ↓", points, base))
    pictures.points(panels, path, x=table["title"])


def write(table: dict[str, Any], out: Path) -> list[str]:
    """NAME.md, .csv, .json and .png in a folder; their names. Nothing while there is no result."""
    if not any(row["metrics"] for row in table["rows"]):
        return []
    out.mkdir(parents=True, exist_ok=True)
    stem = out / table["name"]
    texts = {".md": markdown(table), ".csv": as_csv(table), ".json": json.dumps(table, indent=1)}
    for suffix, text in texts.items():
        write_atomically(stem.with_suffix(suffix), text.rstrip("\n") + "\n")
    files = [str(stem.with_suffix(suffix)) for suffix in texts]
    plot(table, stem.with_suffix(".png"))
    return [*files, str(stem.with_suffix(".png"))]
