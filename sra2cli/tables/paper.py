"""The numbers of the paper's tables that its text states (arXiv 2601.17830), with their source."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLES = Path(__file__).parents[1] / "assets" / "paper-tables.yaml"
RECIPE = "b-sra2"  # what Table 1 was made with
METRICS = ("fid", "sfid", "is", "precision", "recall")  # the columns of Table 1
TOLD = (*METRICS, "pickscore")  # that some table tells
SAMPLES = 50_000  # drawn for each number
T2I_RECIPE = "coco-mmdit"  # what Table 4 was made with
T2I_SAMPLES = 40_504  # the images of MS-COCO's val part
TABLE1 = "SiT-B/2 on ImageNet 256², 400K steps, batch 256, no guidance (Table 1)"
TABLE2 = "the same size, method and steps on ImageNet 256², batch 256, no guidance (Table 2)"
TABLE3 = "guided, ImageNet 256² (Table 3; rows of others are what they report)"
TABLE4 = (
    "MMDiT on MS-COCO, 150K steps, batch 256, guidance 2.0, solver not said (Table 4); rows of "
    "others are what they report, with their solver"
)
NAMES = {"none": "", "sra2": "SRA 2", "repa": "REPA", "sra": "SRA", "reg": "REG"}  # of methods


@cache
def tables() -> dict[str, Any]:
    """{"table1": {...}, "table2": [...], ...}, as the file has them."""
    found: dict[str, Any] = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    return found


def ablation(axis: str) -> dict[Any, dict[str, float]]:
    """Table 1: value of an axis → metrics, in the paper's order; {} for an axis of ours."""
    rows: dict[Any, list[float]] = tables()["table1"].get(axis, {})
    return {value: dict(zip(METRICS, numbers, strict=True)) for value, numbers in rows.items()}


def ablation_baseline() -> dict[str, float]:
    """Table 1: SiT-B/2 without alignment."""
    return dict(zip(METRICS, tables()["table1"]["baseline"]["values"], strict=True))


def fid_after(
    model: str, method: str, iterations: int, *, channels: int | None = None
) -> float | None:
    """Table 2: FID of a model such as "B/2" under a method, after so many steps; None: not told.

    channels: of the latent. XL/1 on VA-VAE's 32 is the table's "VA-VAE": it names no backbone.
    """
    name = "VA-VAE" if (model, channels) == ("XL/1", 32) else f"SiT-{model}"
    for row in tables()["table2"]:
        wanted = {"model": name, "method": method, "iterations": iterations}
        if row.items() >= wanted.items():
            value: float | None = row.get("fid")
            return value
    return None


def system(model: str, method: str, epochs: float | None) -> dict[str, Any] | None:
    """Table 3: the row of a model such as "SiT-XL/2" after so many epochs, to 1%; None: none."""
    for row in tables()["table3"]:
        same = (row["model"], row["method"]) == (model, method)
        if same and epochs and row["epochs"] and abs(epochs / row["epochs"] - 1) < 0.01:
            found: dict[str, Any] = row
            return found
    return None


def system_title(row: dict[str, Any]) -> str:
    """How a row of Table 3 is named."""
    method = NAMES[row["method"]]
    after = f", {row['epochs']} epochs" if row["epochs"] else ""
    return f"paper: {row['model']}{' + ' if method else ''}{method}{after}"


def text_to_image(model: str, method: str, steps: int | None) -> dict[str, Any] | None:
    """Table 4: the paper's row of a method, for MMDiT-L/2 after 150K steps, to 1%; None: none."""
    if model != "MMDiT-L/2" or steps is None or abs(steps / 150_000 - 1) >= 0.01:
        return None
    for row in tables()["table4"]:
        if row["method"] == method and "by" not in row:
            found: dict[str, Any] = row
            return found
    return None


def text_to_image_title(row: dict[str, Any]) -> str:
    """How a row of Table 4 is named."""
    method = NAMES[row["method"]]
    who = f"{row['by']}'s paper" if "by" in row else "paper"
    drawn = f", {row['solver']}" if "solver" in row else ""
    return f"{who}: MMDiT{' + ' if method else ''}{method}{drawn}"


def numbers(row: dict[str, Any] | None) -> dict[str, float]:
    """The metrics of a row, as far as they are told."""
    return {name: row[name] for name in TOLD if row and name in row}


def cost(method: str) -> dict[str, Any]:
    """Table 5: what a method adds to SiT-XL/2, in percent; {} if it is not in the table."""
    found = (row for row in tables()["table5"] if row["method"] == method)
    row: dict[str, Any] = next(found, {})
    return row
