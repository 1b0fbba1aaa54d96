"""The folder of a first stage that is trained here.

config.json  diffusion_pytorch_model.safetensors   the first stage, once it is finished
vae.json              settings, images, where it was made; once it is finished what it is worth
metrics.jsonl         a row every `ROWS` steps, and the PSNR at each checkpoint
reconstructions.png   images, and below them what comes back
training.pt           what going on needs, until it is finished
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sra2cli.config.reading import NotRequired, TypedDict, checked, json_of, read_json
from sra2cli.core.environment import environment
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import hold, is_full, sync, utf8, write_atomically, write_json
from sra2cli.first_stages.settings import VaeSettings, plain

RECORD, STATE, METRICS, SHEET = "vae.json", "training.pt", "metrics.jsonl", "reconstructions.png"
CONFIG = "config.json"


class VaeRecord(TypedDict):
    """vae.json, as far as it is read."""

    settings: dict[str, Any]
    images: dict[str, Any]
    features: NotRequired[str | None]
    result: NotRequired[dict[str, Any]]


class StateRecord(TypedDict):
    """training.pt: states as torch's own classes take them."""

    step: int
    seconds: float
    model: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]


class RowRecord(TypedDict):
    step: int


class VaeFolder:
    """Held for one training at a time.

    Raises:
        SetupError: the folder holds other files, belongs to other settings, or is in use.
    """

    def __init__(self, path: Path, wanted: VaeSettings):
        self.path, self.wanted = utf8(path), wanted
        if path.exists() and not path.is_dir():
            raise SetupError(f"{path} is a file: choose another --out")
        other = {p.name for p in path.iterdir() if p.name[0] != "."} if path.is_dir() else set()
        if other and RECORD not in other:
            raise SetupError(f"{path} holds other files: choose another --out")
        self._lock = hold(
            path / ".lock",
            f"another training is running in {path}: stop it, or choose another --out",
        )
        self.record = self._read()
        differ = [] if self.record is None else wanted.differs(self.record["settings"])
        if differ:
            raise SetupError(
                f"{path} belongs to a first stage of other settings (differs in "
                f"{', '.join(differ)}): choose another --out, or give those of {path / RECORD}"
            )

    def _read(self) -> dict[str, Any] | None:
        file = self.path / RECORD
        if not file.exists():
            return None
        try:
            record: dict[str, Any] = read_json(file, VaeRecord)
        except ValueError as error:
            raise SetupError(f"{file} is damaged ({error}): choose another --out") from None
        return record

    @property
    def result(self) -> dict[str, Any] | None:
        """What was made, if it is finished."""
        if self.record is None or not (self.path / CONFIG).is_file():
            return None
        return self.record.get("result")

    @property
    def names(self) -> str | None:
        """Digest of the names of the images it is trained on."""
        return None if self.record is None else self.record["images"].get("names")

    def begin(self, images: dict[str, Any], features: str | None, device: str) -> None:
        """Record what is trained on, or compare it with what was.

        Args:
            features: fingerprint of the image encoder of the perceptual term.

        Raises:
            SetupError: it is something else.
        """
        if self.record is None:
            about = {"settings": plain(self.wanted), "images": images, "features": features}
            self.record = {**about, "environment": environment(device)}
            write_json(self.path / RECORD, self.record, indent=2)
        if self.record["images"].get("digest") != images["digest"]:
            raise SetupError(
                f"{self.path} was begun on other images than {images['path']} holds: bring those "
                "back, or choose another --out"
            )
        if self.record.get("features") != features:
            raise SetupError(
                f"{self.path} was begun with other weights of {self.wanted.features}: choose "
                "another --out"
            )

    def save(self, state: dict[str, Any]) -> None:
        """Write what going on needs, whole or not at all."""
        with self.room_for(f".{STATE}") as scratch:
            torch.save(state, scratch)
            sync(scratch)
            os.replace(scratch, self.path / STATE)

    @contextmanager
    def room_for(self, name: str) -> Iterator[Path]:
        """A file or folder in here, to be written; what is left of it where the disk is full goes,
        and OSError says so, as torch and safetensors do not."""
        scratch = self.path / name
        try:
            yield scratch
        except (RuntimeError, OSError, SafetensorError):
            full = is_full(self.path)
            shutil.rmtree(scratch, ignore_errors=True)
            with suppress(OSError):
                scratch.unlink()
            if not full:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None

    def state(self) -> dict[str, Any] | None:
        """What the last `save` wrote, on the CPU; None: nothing yet.

        Raises:
            DataError: it is damaged.
        """
        file = self.path / STATE
        if not file.exists():
            return None
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            found: dict[str, Any] = checked(StateRecord, state)
            return found
        except Exception as error:  # torch and pickle have many for what is damaged
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{file} is damaged ({reason}): remove it to start again") from None

    def cut_rows(self, step: int) -> None:
        """Leave out rows of metrics after a step, and one cut off by a kill."""
        file, kept = self.path / METRICS, []
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                if json_of(line, RowRecord)["step"] <= step:
                    kept.append(line.decode() + "\n")
            except ValueError as error:
                raise DataError(f"line {number} of {file} is not a row: {error}") from None
        write_atomically(file, "".join(kept))

    def row(self, values: dict[str, Any]) -> None:
        """Write a row of metrics."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Record what was made; what going on needed is of no use any more."""
        assert self.record is not None
        self.record = {**self.record, "result": result}
        write_json(self.path / RECORD, self.record, indent=2)
        (self.path / STATE).unlink(missing_ok=True)

    def close(self) -> None:
        self._lock.close()
