"""Writing a run folder: made or taken up again, locked against a second training."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sra2cli.config import recipe
from sra2cli.config.settings import Recipe
from sra2cli.core.environment import environment
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import file_digest, hold, is_full, sync, utf8, write_atomically, write_json
from sra2cli.data.store import Store
from sra2cli.runs.naming import folder_name, step_of
from sra2cli.runs.run import (
    CHECKPOINT_META,
    EMA,
    EMA_HEADS,
    TRAINING,
    Checkpoint,
    Run,
    read_checkpoint,
)

CHANGEABLE = ("train.steps", "train.micro_batch", "log", "name")  # may differ on resume


def changeable(wanted: Recipe) -> tuple[str, ...]:
    """Settings that may differ when a run goes on; a falling rate depends on the last step."""
    fixed = ("train.steps",) if wanted.train.lr_decay != "constant" else ()
    moved = (f"align.{name}.teacher" for name, s in wanted.align.items() if "frozen" in s.needs)
    return (*(key for key in CHANGEABLE if key not in fixed), *moved)  # its weights are compared


Weights = Mapping[str, Mapping[str, Tensor]]


class RunWriter(Run):
    """A run folder held for training.

    Args:
        init: digest of the weights the run starts from; None: from scratch.
        teacher: the same of a frozen network it aligns with; None: there is none.

    Raises:
        SetupError: the folder belongs to another recipe, store or start, or is in use.
    """

    def __init__(
        self,
        path: Path,
        wanted: Recipe,
        store: Store,
        *,
        device: str = "cpu",
        init: Mapping[str, str] | None = None,
        teacher: Mapping[str, str] | None = None,
    ):
        if utf8(path).exists() and not path.is_dir():
            raise SetupError(f"{path} is a file, not a run folder")
        if path.is_dir() and any(path.iterdir()) and not _is_run_folder(path):
            raise SetupError(f"{path} holds other files: choose another --out")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            busy = f"another training is running in {path}: stop it, or choose another --out"
            self._lock = hold(path / ".lock", busy)
            if not (path / "recipe.yaml").exists():
                about = _about(store, device, init, teacher)
                write_json(path / "run.json", about, indent=2)
                write_atomically(path / "recipe.yaml", _yaml(wanted))
        except OSError as error:
            if not isinstance(error, PermissionError | NotADirectoryError | FileExistsError) and (
                error.errno != errno.EROFS
            ):
                raise
            raise SetupError(f"cannot write to the run folder {path}: {error.strerror}") from None
        super().__init__(path)
        self._check_same(wanted, store, init, teacher)
        self.recipe = wanted
        if _yaml(wanted) != self.recipe_file.read_text(encoding="utf-8"):
            write_atomically(self.recipe_file, _yaml(wanted))
        for leftover in (path / "checkpoints").glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in self.checkpoints():  # a kill may have come while it was made smaller
            with suppress(DataError):
                _remove_unlisted(folder, read_checkpoint(folder).meta["files"])
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._saving: Future[None] | None = None

    def _check_same(
        self,
        wanted: Recipe,
        store: Store,
        init: Mapping[str, str] | None,
        teacher: Mapping[str, str] | None,
    ) -> None:
        """Refuse to mix two runs."""
        differ = recipe.differences(self.recipe, wanted, ignore=changeable(wanted))
        if differ:
            raise SetupError(
                f"{self.path} belongs to another recipe (differs in {', '.join(differ)}): "
                f"choose another --out, or go on as it was begun with --recipe {self.recipe_file}"
            )
        about = self.about
        if self.store_info.vae_fingerprint != store.info.vae_fingerprint:
            raise SetupError(
                f"{self.path} was trained on latents of the VAE '{self.store_info.vae}', "
                f"{store.path} was made with another ('{store.info.vae}'): choose another --out"
            )
        if about["store"]["checksums"] != store.checksums:
            raise SetupError(
                f"{self.path} was trained on another store than {store.path}: choose another --out"
            )
        before = about.get("init")
        if (before or {}).get("digest") != (init or {}).get("digest"):
            began = f"the weights of {before['path']}" if before else "scratch"
            raise SetupError(
                f"{self.path} began from {began}: give the same --init, or another --out"
            )
        if (about.get("teacher") or {}).get("digest") != (teacher or {}).get("digest"):
            raise SetupError(
                f"{self.path} was trained with other weights of its frozen teacher: choose "
                "another --out"
            )

    def remember(self, store: Store) -> None:
        """The store has been checked, every byte of it."""
        about = self.about
        about["store"] |= {"path": str(store.path.resolve()), "identity": list(store.identity)}
        write_json(self.path / "run.json", about, indent=2)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint to go on from, whole, and a line for each damaged one skipped."""
        skipped: list[str] = []
        kept_for_good = False
        for folder in reversed(self.checkpoints()):
            try:
                checkpoint = read_checkpoint(folder)
                if not checkpoint.resumable:
                    kept_for_good = True
                    continue
                checkpoint.verify_all()
                return checkpoint, skipped
            except DataError as error:
                skipped.append(str(error))
        if skipped or kept_for_good:
            why = skipped[0] if skipped else "those kept for good hold the EMA alone"
            raise DataError(
                f"no checkpoint in {self.path} is whole ({why}): "
                "remove the folder to start again, or start another run with --init"
            )
        return None, skipped

    def save(self, step: int, weights: Weights, training: Any, record: dict[str, Any]) -> None:
        """Write the checkpoint of `step`: a copy is taken now, a thread brings it to the disk.

        record: what says which network it is, {kind: config}.

        An error of the save before this one is raised here.
        """
        self.finish_saving()
        copied = {n: {k: _copy(v).contiguous() for k, v in w.items()} for n, w in weights.items()}
        self._saving = self._thread.submit(self._write, step, copied, _copy(training), record)

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is on the disk; raises what went wrong."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def _write(self, step: int, weights: Weights, training: Any, record: dict[str, Any]) -> None:
        """Under a temporary name, synced, then renamed."""
        final = self.path / "checkpoints" / folder_name(step)
        scratch = final.with_name("." + final.name)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            about = {kind: json.dumps(config) for kind, config in record.items()}
            about["path"] = self.recipe.path.kind  # opens anywhere
            for name, tensors in weights.items():
                file = scratch / f"{name}.safetensors"
                save_file(dict(tensors), file, metadata=None if "heads" in name else about)
            torch.save(training, scratch / TRAINING)
            meta = {
                "step": step,
                **record,
                "recipe": self.recipe.to_dict(),
                "files": {p.name: file_digest(p) for p in sorted(scratch.iterdir())},
            }
            write_json(scratch / CHECKPOINT_META, meta, indent=2)
            for file in scratch.iterdir():
                sync(file)
            sync(scratch)
        except (RuntimeError, OSError, SafetensorError) as error:
            there = self.path.is_dir()
            full = there and is_full(self.path)  # torch hides why it could not write
            shutil.rmtree(scratch, ignore_errors=True)
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            why = str(error) if there else "its folder is gone"
            raise DataError(f"checkpoint {final} cannot be written: {why}") from None
        if final.exists():  # a damaged one that was skipped
            shutil.rmtree(final)
        os.replace(scratch, final)
        sync(final.parent)
        self._prune(step)

    def _prune(self, newest: int) -> None:
        """Keep the newest `log.keep` checkpoints, and the EMA of multiples of `log.keep_every`."""
        log = self.recipe.log
        older = [p for p in self.checkpoints() if step_of(p) <= newest][: -log.keep]
        for folder in older:
            if step_of(folder) % log.keep_every:
                shutil.rmtree(folder)
            else:
                with suppress(DataError):  # a damaged one stays as it is
                    _keep_ema(folder)

    def start_metrics(self, step: int) -> TextIO:
        """Open metrics.jsonl for appending, without the rows after `step`."""
        rows = [row for row in self.entries() if row["step"] <= step]
        write_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        return self.metrics_file.open("a", encoding="utf-8")

    def close(self) -> None:
        """Wait for the last save, and let go of the lock."""
        self._thread.shutdown(wait=True)
        self._lock.close()


def _keep_ema(folder: Path) -> None:
    """A checkpoint kept for good: of XL/2, 2.7 GB instead of 10.8."""
    checkpoint = read_checkpoint(folder)
    if not checkpoint.resumable:
        return
    meta = checkpoint.meta
    meta["files"] = {k: v for k, v in meta["files"].items() if k in (EMA, EMA_HEADS)}
    write_json(folder / CHECKPOINT_META, meta, indent=2)
    _remove_unlisted(folder, meta["files"])


def _remove_unlisted(folder: Path, listed: Mapping[str, str]) -> None:
    """What is needed to go on alone, where a checkpoint no longer has it."""
    for name in ("model.safetensors", "heads.safetensors", TRAINING):
        if name not in listed:
            (folder / name).unlink(missing_ok=True)


def _copy(value: Any) -> Any:
    """Tensors, in dicts and lists, copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _about(
    store: Store,
    device: str,
    init: Mapping[str, str] | None,
    teacher: Mapping[str, str] | None,
) -> dict[str, Any]:
    data = {"path": str(store.path.resolve()), "checksums": store.checksums, "count": len(store)}
    return {
        "id": uuid.uuid4().hex,  # of the run, for services that watch it
        "environment": environment(device),
        "store": {**data, "info": asdict(store.info), "identity": None},
        "init": dict(init) if init else None,
        **({"teacher": dict(teacher)} if teacher else {}),
    }


def _is_run_folder(path: Path) -> bool:
    """Ours, or the beginning of ours: killed before its recipe was written."""
    return (path / "recipe.yaml").exists() or {
        p.name for p in path.iterdir() if p.name[0] != "."
    } <= {"checkpoints", "run.json"}


def _yaml(wanted: Recipe) -> str:
    return yaml.safe_dump(wanted.to_dict(), sort_keys=False)
