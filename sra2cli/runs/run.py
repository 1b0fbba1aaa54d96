"""The run folder: its recipe, metrics and checkpoints, and what resuming needs.

recipe.yaml           the resolved recipe
run.json              versions, hardware, git state, and the store it was trained on
metrics.jsonl         a row every `log.every` steps; evaluations: rows with an "event"
checkpoints/step-00001000/
    model.safetensors  ema.safetensors  heads.safetensors  training.pt  checkpoint.json
    ema_heads.safetensors   of heads that can guide sampling
Only the newest `log.keep` checkpoints hold all of it; those kept for good hold the EMAs alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sra2cli.config import recipe
from sra2cli.config.checks import Natural
from sra2cli.config.reading import (
    AfterValidator,
    NotRequired,
    TypedDict,
    checked,
    json_of,
    read_json,
)
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import file_digest, utf8
from sra2cli.core.finite import check_finite
from sra2cli.data.store_info import StoreInfo
from sra2cli.runs.naming import folder_name, nearest_run, step_of
from sra2cli.runs.rows import RowRecord

CHECKPOINT_META, TRAINING, EMA = "checkpoint.json", "training.pt", "ema.safetensors"
EMA_HEADS = "ema_heads.safetensors"


def _stored(info: dict[str, Any]) -> dict[str, Any]:
    StoreInfo.from_plain(info)
    return info


class StoreRecord(TypedDict):
    """Of the store, in run.json."""

    info: Annotated[dict[str, Any], AfterValidator(_stored)]
    checksums: dict[str, str]
    path: str
    identity: NotRequired[list[int] | None]


class InitRecord(TypedDict):
    """Of the weights a run began from, or of its frozen teacher."""

    path: str
    digest: str


class RunRecord(TypedDict):
    """run.json, as far as it is read."""

    store: StoreRecord
    init: NotRequired[InitRecord | None]
    teacher: NotRequired[InitRecord]
    id: NotRequired[str]


class CheckpointRecord(TypedDict):
    """checkpoint.json, beside what says which network it is."""

    step: Natural
    files: dict[str, str]


class TrainingRecord(TypedDict):
    """training.pt: states as torch's own classes take them."""

    optimizer: dict[str, Any]
    scaler: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder; `meta` is its checkpoint.json. A file is verified when it is read.

    verify: False in processes that read what another of them has verified.
    """

    path: Path
    meta: dict[str, Any]
    verify: bool = True

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    @property
    def resumable(self) -> bool:
        """Whether a training can go on from it; milestones hold the EMA alone."""
        return TRAINING in self.meta["files"]

    def weights(self, name: str) -> dict[str, Tensor]:
        """Tensors of "model", "ema", "heads" or "ema_heads", on the CPU; DataError if the file is
        damaged or holds what is not finite."""
        file = self._verified(f"{name}.safetensors")
        try:
            weights: dict[str, Tensor] = load_file(file)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} is damaged: {error}") from None
        check_finite(weights, str(file))
        return weights

    def training(self) -> dict[str, Any]:
        """Optimiser and scaler; DataError if the file holds something else."""
        file = self._verified(TRAINING)
        try:
            # Mapped: the processes of a machine share what of it is in memory.
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            found: dict[str, Any] = checked(TrainingRecord, state)
            return found
        except Exception as error:  # torch and pickle have many for what is damaged
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{file} is damaged: {reason}") from None

    def verify_all(self) -> None:
        """DataError unless every file is what was saved."""
        for name in self.meta["files"]:
            self._verified(name)

    def _verified(self, name: str) -> Path:
        """A file of the folder, whole; its digest is computed once while it stays the same."""
        file, digests = self.path / name, self.meta["files"]
        if name not in digests:
            raise SetupError(
                f"{self.path} has no {name}: only the newest checkpoints have all, those kept for "
                "good hold the EMA alone (--weights ema)"
            )
        try:
            found = file.stat()
            key = (file, found.st_size, found.st_mtime_ns, digests[name])
            if self.verify and key not in _seen:
                if file_digest(file) != digests[name]:
                    raise DataError(
                        f"checkpoint {self.path} is damaged: {name} is not what was saved"
                    )
                _seen.add(key)
        except OSError as error:
            raise DataError(f"checkpoint {self.path} is damaged: {error}") from None
        return file


_seen: set[tuple[Path, int, int, str]] = set()  # files that this process has found whole


class Run:
    """A run folder, opened for reading.

    Raises:
        SetupError: it is not a run folder.
    """

    def __init__(self, path: Path):
        self.path = utf8(path)
        self.recipe_file = path / "recipe.yaml"
        self.metrics_file = path / "metrics.jsonl"
        if not self.recipe_file.is_file():
            why = "no recipe.yaml in it"
            if not path.exists():
                why = f"no such folder{nearest_run(path)}"
            raise SetupError(f"{path} is not a run folder: {why}")
        self.recipe = recipe.load(str(self.recipe_file))

    @property
    def about(self) -> dict[str, Any]:
        """run.json."""
        try:
            about: dict[str, Any] = read_json(self.path / "run.json", RunRecord)
        except (OSError, ValueError) as error:
            raise SetupError(
                f"{self.path} is not a whole run folder: its run.json is damaged ({error})"
            ) from None
        return about

    @property
    def store_info(self) -> StoreInfo:
        """Of the store the run was trained on."""
        try:
            return StoreInfo.from_plain(self.about["store"]["info"])
        except ValueError as error:
            raise SetupError(
                f"{self.path} is not a whole run folder: its run.json: store: {error}"
            ) from None

    def has_checked(self, identity: tuple[int, int]) -> bool:
        """Whether a store, by size and date, is the file that was checked for this run."""
        known = self.about["store"].get("identity") == list(identity)
        return known and bool(self.checkpoints())

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of losses in metrics.jsonl."""
        return [row for row in self.entries() if "event" not in row]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Rows of another kind: "eval"."""
        return [row for row in self.entries() if row.get("event") == kind]

    def entries(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl, without a last row cut off by a kill.

        Raises:
            DataError: a line is not a row.
        """
        rows, damaged = self.whole_entries()
        if damaged:
            raise DataError(f"{damaged[0]}: remove it")
        return rows

    def whole_entries(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The rows of metrics.jsonl that are whole, and what is wrong with each other line."""
        if not self.metrics_file.exists():
            return [], []
        rows, damaged = [], []
        for number, line in enumerate(self.metrics_file.read_bytes().split(b"\n")[:-1], 1):
            try:
                row = json_of(line, RowRecord)
                rows.append(row if "event" in row else checked(dict[str, float], row))
            except ValueError as error:
                damaged.append(
                    f"line {number} of {self.metrics_file} is not a row of metrics ({error})"
                )
        return rows, damaged

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first; not yet checked."""
        return sorted((self.path / "checkpoints").glob("step-" + "[0-9]" * 8))

    def checkpoint(self, step: int | None = None, *, verify: bool = True) -> Checkpoint:
        """The checkpoint of a step, or the newest; SetupError: none. DataError: damaged."""
        return read_checkpoint(self.folder_of(step), verify=verify)

    def folder_of(self, step: int | None = None) -> Path:
        """Where that checkpoint lies; SetupError, with the steps that are there, if it does not."""
        folders = self.checkpoints()
        if step is not None:
            folders = [p for p in folders if p.name == folder_name(step)]
        if not folders:
            which = "no checkpoint yet" if step is None else f"no checkpoint of step {step}"
            there = ", ".join(str(step_of(p)) for p in self.checkpoints()) or "none"
            raise SetupError(f"{self.path} has {which} (there are: {there})")
        return folders[-1]


def read_checkpoint(folder: Path, *, verify: bool = True) -> Checkpoint:
    """A checkpoint by its folder; its files are looked at when they are read.

    Raises:
        DataError: its checkpoint.json is damaged.
    """
    try:
        meta = read_json(folder / CHECKPOINT_META, CheckpointRecord)
    except (OSError, ValueError) as error:
        raise DataError(f"checkpoint {folder} is damaged: {error}") from None
    return Checkpoint(folder, meta, verify)
