"""What a report says of a run: which one it is, its settings, and what it cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sra2cli.config import recipe
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import SetupError
from sra2cli.reports.curves import PERCENT, Curves, thinned
from sra2cli.runs.run import Run

NOTHING = "–"
MACHINE = ("torch", "python", "platform", "device")  # of an environment
LONGEST = 300  # characters of a value that are shown


@dataclass(frozen=True)
class Told:
    """A run as it is shown. rows: of its metrics. damaged: lines of them that are not."""

    name: str
    run: Run
    about: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]
    judged: Sequence[Mapping[str, Any]]
    damaged: Sequence[str]
    curves: Curves

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def facts(self) -> dict[str, str]:
        """What a run is and where it stands."""
        steps, left = self.recipe.train.steps, self.recipe.train.steps - self.step
        last = self.rows[-1] if self.rows else {}
        at = f"{self.step:,} of {steps:,}" if left > 0 else f"{self.step:,}"
        model = self.recipe.model
        return {
            "recipe": self.recipe.name,
            "alignment": self.recipe.method.replace("+", " + "),
            "network": f"{model.kind} {model.size}",
            "training steps": at,
            "last row written": written(self.run.metrics_file),
            "denoising loss": number(last.get("denoise")),
        }

    @property
    def settings(self) -> dict[str, str]:
        """Dotted setting → value; beside the recipe's, what it was trained on and began from."""
        store = self.about["store"]
        found = {
            key: shown(value)
            for key, value in recipe.flat(self.recipe, ignore=("name",)).items()
            if value not in ({}, [])
        }
        found["store"] = shown(store["path"])
        found["store: images"] = shown(store.get("count"))
        found["store: first stage"] = shown(store["info"].get("vae"))
        found["store: checksum"] = shown(next(iter(store["checksums"].values()), None))
        found["begun from"] = shown(part(self.about, "init").get("path", "scratch"))
        environment = part(self.about, "environment")
        return found | {f"made with: {k}": shown(environment.get(k)) for k in ("git", *MACHINE)}

    @cached_property
    def cost(self) -> dict[str, str]:
        """What the training took, of its rows of metrics."""
        images, seconds, before = 0.0, 0.0, 0.0
        used = dict.fromkeys(PERCENT, 0.0)  # shares by time
        for row in self.rows:
            made = (row["step"] - before) * self.recipe.train.batch
            rate, before = row.get("images_per_second", 0.0), row["step"]
            if made > 0 and 0 < rate < math.inf:
                images, seconds = images + made, seconds + made / rate
                for name in used:
                    used[name] += made / rate * row.get(name, math.nan)
        memory = [row["memory_gb"] for row in self.rows if "memory_gb" in row]
        shares = {k: f"{v / seconds:.1%}" for k, v in used.items() if seconds and math.isfinite(v)}
        count = self.about["store"].get("count")
        return {
            "device": shown(part(self.about, "environment").get("device")),
            "precision": self.recipe.train.precision,
            "global batch": f"{self.recipe.train.batch:,}",
            "images seen": f"{images:,.0f}",
            "epochs": f"{images / count:,.1f}" if count else NOTHING,
            "hours": f"{seconds / 3600:,.2f}" if seconds else NOTHING,
            "images per second": f"{images / seconds:,.1f}" if seconds else NOTHING,
            "MFU": shares.get("mfu", NOTHING),
            "of the measured matrix rate": shares.get("of_matrix_rate", NOTHING),
            "peak memory, GB": f"{max(memory):,.2f}" if memory else NOTHING,
        }

    @property
    def made(self) -> dict[str, str]:
        """With what, and by which command."""
        found = part(self.about, "environment")
        keys = ("command", "git", "sra2", *MACHINE)
        return {"folder": str(self.run.path), **{k: shown(found.get(k)) for k in keys}}


def tell(path: Path, name: str, points: int) -> Told:
    """Read a run folder; SetupError: it is none."""
    run = Run(path)
    entries, damaged = run.whole_entries()
    rows = [row for row in entries if "event" not in row]
    judged = [row for row in entries if row.get("event") == "eval"]
    return Told(name, run, run.about, rows, judged, damaged, thinned(rows, points))


def names_of(paths: Sequence[Path]) -> list[str]:
    """Folder names; whole paths where those are alike.

    Raises:
        SetupError: a run is given twice.
    """
    whole = [path.resolve() for path in paths]
    twice = next((path for path in paths if whole.count(path.resolve()) > 1), None)
    if twice is not None:
        raise SetupError(f"{twice} is given twice")
    names = [path.name for path in whole]
    return [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, paths, strict=True)
    ]


def compared(runs: Sequence[Told]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run)."""
    found = [told.settings for told in runs]
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    return [(key, [settings.get(key, NOTHING) for settings in found]) for key in keys]


def beside(runs: Sequence[Told], what: Literal["facts", "cost"]) -> list[tuple[str, list[str]]]:
    """(fact, its value in each run)."""
    found = [told.facts if what == "facts" else told.cost for told in runs]
    return [(key, [facts[key] for facts in found]) for key in found[0]]


def part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What a record holds under a key; nothing where that is no record."""
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def shown(value: Any) -> str:
    """A value as a person reads it; None is no value."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(shown, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def written(file: Path) -> str:
    """When a file was written last."""
    try:
        return f"{datetime.fromtimestamp(file.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"
    except OSError:
        return NOTHING
