"""The run folder: its recipe, metrics and checkpoints, and what resuming needs.

recipe.yaml           the resolved recipe
run.json              versions, hardware, git state, and the store it was trained on
metrics.jsonl         a row every `log.every` steps; evaluations: rows with an "event"
checkpoints/step-00001000/
    model.safetensors  ema.safetensors  heads.safetensors  training.pt  checkpoint.json
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sra2cli import __version__, recipe
from sra2cli.errors import DataError, SetupError
from sra2cli.files import file_digest
from sra2cli.store import StoreInfo

CHECKPOINT_META = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder; `meta` is its checkpoint.json."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    def weights(self, name: str) -> dict[str, Tensor]:
        """Tensors of "model", "ema" or "heads", on the CPU."""
        return load_file(self.path / f"{name}.safetensors")

    def training(self) -> dict[str, Any]:
        """Optimiser, scaler and the sums towards the next row of metrics."""
        state: dict[str, Any] = torch.load(
            self.path / "training.pt", map_location="cpu", weights_only=True
        )
        return state


class Run:
    """A run folder, opened for reading.

    Raises:
        SetupError: it is not a run folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.metrics_file = path / "metrics.jsonl"
        if not self.recipe_file.is_file():
            why = "no recipe.yaml in it" if path.exists() else "no such folder"
            raise SetupError(f"{path} is not a run folder: {why}")
        self.recipe = recipe.load(str(self.recipe_file))

    @property
    def about(self) -> dict[str, Any]:
        """run.json."""
        try:
            about: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            about["store"]["info"], about["store"]["checksums"]
        except (OSError, ValueError, KeyError, TypeError):
            raise SetupError(
                f"{self.path} is not a whole run folder: its run.json is damaged"
            ) from None
        return about

    @property
    def store_info(self) -> StoreInfo:
        """Of the store the run was trained on."""
        return StoreInfo(**self.about["store"]["info"])

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of losses in metrics.jsonl."""
        return [row for row in self.entries() if "event" not in row]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Rows of another kind: "eval"."""
        return [row for row in self.entries() if row.get("event") == kind]

    def entries(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl, without a last row cut off by a kill."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first; not yet checked."""
        return sorted((self.path / "checkpoints").glob("step-" + "[0-9]" * 8))

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of a step, or the newest; checked.

        Raises:
            SetupError: there is none.
            DataError: it is damaged.
        """
        folders = self.checkpoints()
        if step is not None:
            folders = [p for p in folders if p.name == folder_name(step)]
        if not folders:
            which = "no checkpoint yet" if step is None else f"no checkpoint of step {step}"
            there = ", ".join(str(int(p.name[5:])) for p in self.checkpoints()) or "none"
            raise SetupError(f"{self.path} has {which} (there are: {there})")
        return read_checkpoint(folders[-1])


def read_checkpoint(folder: Path, *, verify: bool = True) -> Checkpoint:
    """A checkpoint whose files all match their digests; DataError names what does not."""
    try:
        meta = json.loads((folder / CHECKPOINT_META).read_text())
        for name, digest in meta["files"].items():
            if verify and file_digest(folder / name) != digest:
                raise DataError(f"checkpoint {folder} is damaged: {name} is not what was saved")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"checkpoint {folder} is damaged: {error}") from None
    return Checkpoint(folder, meta)


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, hardware and git state, for every result file; `device` is the one used."""
    cuda = device.startswith("cuda")
    return {
        "sra2": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "cpus": os.cpu_count(),
        "git": _git_state(),
        "command": command_line(),
    }


def command_line() -> str:
    """What was typed, as far as it can be told; a script by its name alone."""
    program = Path(sys.argv[0]).name
    return shlex.join(["sra2" if program == "__main__.py" else program, *sys.argv[1:]])


def _cpu_name() -> str:
    """Model name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or "cpu"


def _git_state() -> str | None:
    """Commit of the source this runs from, with "+changes" if it differs; None outside git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        run = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "."], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def folder_name(step: int) -> str:
    """Of a checkpoint."""
    return f"step-{step:08d}"
