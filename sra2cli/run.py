"""The run folder: its recipe, metrics and checkpoints, and what resuming needs.

recipe.yaml           the resolved recipe
run.json              versions, hardware, git state, and the store it was trained on
metrics.jsonl         a row every `log.every` steps
checkpoints/step-00001000/
    model.safetensors  ema.safetensors  heads.safetensors  training.pt  checkpoint.json
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from sra2cli import __version__, recipe
from sra2cli.errors import DataError, SetupError
from sra2cli.files import file_digest, sync, write_atomically
from sra2cli.settings import Recipe
from sra2cli.store import Store, StoreInfo

CHECKPOINT_META = "checkpoint.json"
CHANGEABLE = ("train.steps", "log", "name")  # settings that may differ on resume


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
        """Rows of metrics.jsonl, without a last row cut off by a kill."""
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
            folders = [p for p in folders if p.name == _folder_name(step)]
        if not folders:
            which = "no checkpoint yet" if step is None else f"no checkpoint of step {step}"
            there = ", ".join(str(int(p.name[5:])) for p in self.checkpoints()) or "none"
            raise SetupError(f"{self.path} has {which} (there are: {there})")
        return read_checkpoint(folders[-1])


class Trainer(Run):
    """A run folder held for training: created or taken up again, and locked against a second.

    Raises:
        SetupError: the folder belongs to another recipe or store, or is in use.
    """

    def __init__(self, path: Path, wanted: Recipe, store: Store, *, device: str = "cpu"):
        if path.exists() and not path.is_dir():
            raise SetupError(f"{path} is a file, not a run folder")
        if path.is_dir() and any(path.iterdir()) and not _is_run_folder(path):
            raise SetupError(f"{path} holds other files: choose another --out")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
            if not (path / "recipe.yaml").exists():
                write_atomically(
                    path / "run.json", json.dumps(_about(store, device), indent=2) + "\n"
                )
                write_atomically(path / "recipe.yaml", _yaml(wanted))
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise SetupError(f"cannot write to the run folder {path}: {error.strerror}") from None
        super().__init__(path)
        differ = recipe.differences(self.recipe, wanted, ignore=CHANGEABLE)
        if differ:
            raise SetupError(
                f"{path} belongs to another recipe (differs in {', '.join(differ)}): "
                "choose another --out, or remove it"
            )
        if self.store_info.vae_fingerprint != store.info.vae_fingerprint:
            raise SetupError(
                f"{path} was trained on latents of the VAE '{self.store_info.vae}', {store.path} "
                f"was made with another ('{store.info.vae}'): choose another --out"
            )
        if self.about["store"]["checksums"] != store.checksums:
            raise SetupError(
                f"{path} was trained on another store than {store.path}: choose another --out"
            )
        self.recipe = wanted
        if _yaml(wanted) != self.recipe_file.read_text():
            write_atomically(self.recipe_file, _yaml(wanted))
        for leftover in (path / "checkpoints").glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a line for each damaged one skipped."""
        skipped: list[str] = []
        for folder in reversed(self.checkpoints()):
            try:
                return read_checkpoint(folder), skipped
            except DataError as error:
                skipped.append(str(error))
        if skipped:
            raise DataError(
                f"no checkpoint in {self.path} is whole ({skipped[0]}): "
                "remove the folder to start again"
            )
        return None, skipped

    def save(
        self,
        step: int,
        weights: dict[str, dict[str, Tensor]],
        training: dict[str, Any],
        sit: dict[str, Any],
    ) -> None:
        """Write the checkpoint of `step` under a temporary name, sync it, and give it its name."""
        final = self.path / "checkpoints" / _folder_name(step)
        scratch = final.with_name("." + final.name)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for name, tensors in weights.items():
            plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            about = {"sit": json.dumps(sit), "path": self.recipe.path.kind}  # opens anywhere
            save_file(
                plain, scratch / f"{name}.safetensors", metadata=None if name == "heads" else about
            )
        torch.save(training, scratch / "training.pt")
        meta = {
            "step": step,
            "sit": sit,
            "recipe": self.recipe.to_dict(),
            "files": {p.name: file_digest(p) for p in sorted(scratch.iterdir())},
        }
        (scratch / CHECKPOINT_META).write_text(json.dumps(meta, indent=2) + "\n")
        for file in scratch.iterdir():
            sync(file)
        sync(scratch)
        if final.exists():  # a damaged one that was skipped
            shutil.rmtree(final)
        os.replace(scratch, final)
        sync(final.parent)
        self._prune(step)

    def _prune(self, newest: int) -> None:
        """Keep the newest `log.keep` checkpoints, and those at multiples of `log.keep_every`."""
        log = self.recipe.log
        steps = [int(p.name[5:]) for p in self.checkpoints()]
        for step in [s for s in steps if s <= newest][: -log.keep]:
            if step % log.keep_every:
                shutil.rmtree(self.path / "checkpoints" / _folder_name(step))

    def start_metrics(self, step: int) -> TextIO:
        """Open metrics.jsonl for appending, without the rows after `step`."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        write_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        return self.metrics_file.open("a")

    def close(self) -> None:
        """Let go of the lock."""
        self._lock.close()


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint whose files all match their digests; DataError names what does not."""
    try:
        meta = json.loads((folder / CHECKPOINT_META).read_text())
        for name, digest in meta["files"].items():
            if file_digest(folder / name) != digest:
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
        "command": " ".join(sys.argv),
    }


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


def _about(store: Store, device: str) -> dict[str, Any]:
    data = {"path": str(store.path.resolve()), "checksums": store.checksums, "count": len(store)}
    return {"environment": environment(device), "store": {**data, "info": asdict(store.info)}}


def _is_run_folder(path: Path) -> bool:
    """Ours, or the beginning of ours: killed before its recipe was written."""
    return (path / "recipe.yaml").exists() or {
        p.name for p in path.iterdir() if p.name[0] != "."
    } <= {"checkpoints", "run.json"}


def _lock(path: Path) -> TextIO:
    handle = (path / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise SetupError(
            f"another training is running in {path}: stop it, or choose another --out"
        ) from None
    return handle


def _yaml(wanted: Recipe) -> str:
    return yaml.safe_dump(wanted.to_dict(), sort_keys=False)


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"
