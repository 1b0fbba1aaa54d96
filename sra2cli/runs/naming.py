"""How runs and their checkpoints are named: RUN, RUN@STEP, checkpoints/step-00001000."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sra2cli.core.errors import SetupError


def folder_name(step: int) -> str:
    """Of a checkpoint."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def title_of(about: Mapping[str, Any], source: Path, *, between: str = ", ") -> str:
    """Of pictures of a network: what was trained, and how long, as far as its record says."""
    name, step = str(about.get("recipe") or source.stem), about.get("step")
    return name if step is None else f"{name}{between}{step:,} steps"


def split_step(source: Path, step: int | None = None) -> tuple[Path, int | None]:
    """ "runs/a@5000" is the checkpoint of step 5000 of runs/a.

    Args:
        step: as it was given beside the name; SetupError where both are.
    """
    name, at, number = str(source).rpartition("@")
    if not at or not number.isdigit() or source.exists():
        return source, step
    if step is not None:
        raise SetupError("give the step once: RUN@STEP or --step")
    return Path(name), int(number)
