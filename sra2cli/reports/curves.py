"""What a training logged, thinned to what a chart can show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

POINTS, LEAST = 3000, 60  # points of a curve: of all runs together, and of each at least
MOST = 400
DIGITS = 5  # that a chart shows of a number
NAMES = {  # of a row of metrics → title, and what is on its axis
    "denoise": ("Denoising loss", "mean squared error of the velocity"),
    "loss": ("Total loss", "all terms, weighted"),
    "grad_norm": ("Gradient norm", "L2 norm, before clipping"),
    "images_per_second": ("Throughput", "images per second"),
    "data_seconds": ("Waiting for data", "seconds a step"),
    "memory_gb": ("Memory", "GB, the peak so far"),
    "mfu": ("Use of the device (MFU)", "% of its peak matrix rate"),
    "of_matrix_rate": ("Use of the device", "% of the matrix rate measured there"),
}
PERCENT = ("mfu", "of_matrix_rate")
FROM_ZERO = ("images_per_second", "data_seconds", "memory_gb", *PERCENT)
LAST = ("grad_norm", *FROM_ZERO)  # charts that come after the losses


@dataclass(frozen=True)
class Curves:
    """Of one run: x are training steps; for each name, the mean, least and largest of a part.

    merged: rows that a point stands for.
    """

    steps: list[int]
    values: dict[str, list[list[float | None]]]  # name → [means, least, largest]
    merged: int


def points_for(runs: int) -> int:
    """How many points a curve has where so many runs are shown."""
    return min(MOST, max(LEAST, POINTS // runs))


def thinned(rows: Sequence[Mapping[str, float]], points: int) -> Curves:
    """At most `points` points; each is the mean of as many rows, at the last one's step."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    merged = max(1, -(-len(rows) // points))
    starts = range(0, len(rows), merged)
    steps = [int(rows[min(start + merged, len(rows)) - 1]["step"]) for start in starts]
    values: dict[str, list[list[float | None]]] = {}
    for name in names:
        column = np.array([row.get(name, np.nan) for row in rows], np.float64)
        column[~np.isfinite(column)] = np.nan
        column *= 100 if name in PERCENT else 1
        known = np.isfinite(column)
        count = np.add.reduceat(known, starts, dtype=np.int64)
        total = np.add.reduceat(np.where(known, column, 0.0), starts)
        mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
        found = [mean]
        if merged > 1:
            found.append(np.fmin.reduceat(column, starts))
            found.append(np.fmax.reduceat(column, starts))
        values[name] = [short(part) for part in found]
    return Curves(steps, values, merged)


def short(values: np.ndarray) -> list[float | None]:
    """Numbers with the digits that are shown; None for what is not finite."""
    return [float(f"{x:.{DIGITS}g}") if np.isfinite(x) else None for x in values]


def charts(curves: Sequence[Curves]) -> list[dict[str, Any]]:
    """The charts that some run has something for: losses, then the rest."""
    names = list(dict.fromkeys(name for found in curves for name in found.values))
    if set(names) - {"loss", "denoise", *LAST} == set() and "denoise" in names:
        names.remove("loss")  # the same
    first = [name for name in ("denoise", "loss") if name in names]
    other = [name for name in names if name not in (*first, *LAST)]
    ordered = [*first, *other, *(name for name in LAST if name in names)]
    made = []
    for name in ordered:
        title, unit = NAMES.get(name, (f"Loss: {name}", "before its weight"))
        about = {"percent": name in PERCENT, "zero": name in FROM_ZERO}
        made.append({"key": name, "title": title, "unit": unit, **about})
    return made
