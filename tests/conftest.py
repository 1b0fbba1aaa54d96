"""Shared by all tests: golden numbers, a small store, and `sra2` as a user calls it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks here are small: more threads only wait

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sra2cli.cli import app
from sra2cli.data import digits
from sra2cli.extraction.extract import extract
from sra2cli.extraction.makers import Options

GOLDEN = Path(__file__).parent / "golden"
torch.set_num_threads(1)


class Golden:
    """A golden file: arrays as tensors, `sd/` entries as a state dict, `meta` as JSON."""

    def __init__(self, name: str):
        self.arrays = dict(np.load(GOLDEN / name))
        self.meta = json.loads(str(self.arrays.pop("meta")))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {k[3:]: self[k] for k in self.arrays if k.startswith("sd/")}


@pytest.fixture
def golden():
    return Golden


@dataclass
class Finished:
    """What a finished command left: exit code and its two streams."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_sra2(tmp_path, monkeypatch):
    """`sra2` in a fresh folder, in this process: importing torch for each call takes seconds."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Finished:
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return Finished(result.exit_code, result.stdout, result.stderr)

    return run


def finished(command: list[str]) -> Finished:
    """`python -m sra2cli ...` to its end: in this process, where one is enough, as importing torch
    takes longer than most of what is tested."""
    arguments = [str(part) for part in command[3:]]
    several = "--processes" in arguments and arguments[arguments.index("--processes") + 1] != "1"
    if several or command[1:3] != ["-m", "sra2cli"]:  # or through a launcher
        done = subprocess.run(command, cwd=GOLDEN.parent.parent, capture_output=True, text=True)
        return Finished(done.returncode, done.stdout, done.stderr)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return Finished(result.exit_code, result.stdout, result.stderr)


def one_line(process: Finished, code: int) -> str:
    """The single error line of a failed command; asserts code, no traceback, one line."""
    assert process.returncode == code, (process.returncode, process.stdout, process.stderr)
    assert "Traceback" not in process.stderr
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], process.stderr
    return errors[0]


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """The first 96 digits as class folders of PNGs."""
    root = tmp_path_factory.mktemp("data") / "digits"
    images, labels = digits.load_digits()
    from PIL import Image

    for i in range(96):
        path = root / str(labels[i]) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(path)
    return root


@pytest.fixture(scope="session")
def digits_store(digits_folder, tmp_path_factory) -> Path:
    """Their latent store."""
    out = tmp_path_factory.mktemp("store") / "digits.h5"
    extract(digits_folder, out, Options(vae="digits", resolution=32), device="cpu")
    return out
