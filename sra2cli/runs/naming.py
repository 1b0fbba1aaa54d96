"""How runs and their checkpoints are named: RUN, RUN@STEP, checkpoints/step-00001000."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sra2cli.core import hub
from sra2cli.core.errors import SetupError

RUNS = Path("runs")  # where trainings go
FILES = ("*.pt", "*.pth", "*.safetensors")  # that a mistyped name may have meant


def folder_name(step: int) -> str:
    """Of a checkpoint."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def name_of(source: Path) -> str:
    """Of a run or file among others; of a hub name, its repository's."""
    return hub.title(source) if hub.is_name(source) else source.name


def title_of(about: Mapping[str, Any], source: Path, *, between: str = ", ") -> str:
    """Of pictures of a network: what was trained, and how long, as far as its record says."""
    name, step = str(about.get("recipe") or hub.title(source)), about.get("step")
    return name if step is None else f"{name}{between}{step:,} steps"


def split_step(source: Path, step: int | None = None) -> tuple[Path, int | None]:
    """ "runs/a@5000" is the checkpoint of step 5000 of runs/a; a hub name's @ is its revision.

    Args:
        step: as it was given beside the name; SetupError where both are.
    """
    name, at, number = str(source).rpartition("@")
    if not at or not number.isdigit() or hub.is_name(source) or source.exists():
        return source, step
    if step is not None:
        raise SetupError("give the step once: RUN@STEP or --step")
    return Path(name), int(number)


def nearest_run(source: Path) -> str:
    """ "; did you mean runs/a?", for the run or checkpoint whose name is nearest to a missing one;
    "" if none is near."""
    folders = dict.fromkeys([source.parent, RUNS])
    found = [f.parent for folder in folders for f in folder.glob("*/recipe.yaml")]
    found += [f for pattern in FILES for f in source.parent.glob(pattern)]
    close = difflib.get_close_matches(source.name, [path.name for path in found], n=1)
    if close:
        return f"; did you mean {next(path for path in found if path.name == close[0])}?"
    here = source.parent == RUNS or source.parent.exists()
    if not here and re.fullmatch(hub.REPOSITORY, str(source)):
        return f"; if it is a repository of the hub: {hub.PREFIX}{source}"
    return ""
