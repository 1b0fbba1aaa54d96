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
from sra2cli.data.captions import Packed, Text
from sra2cli.data.store import Store
from sra2cli.data.store_info import StoreInfo
from sra2cli.data.store_writer import StoreWriter
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


class Letters:
    """A text encoder as `encoders.text` has them: ids are the bytes of a text, features a table."""

    name, fingerprint, length, width, vocabulary = "letters", "1e77e25" + 9 * "0", 6, 4, 257
    device = torch.device("cpu")

    def tokens(self, captions) -> np.ndarray:
        ids = np.full((len(captions), self.length), 256, np.int64)
        for row, caption in zip(ids, captions, strict=True):
            text = caption.encode()[: self.length]
            row[: len(text)] = list(text)
        return ids

    def too_long(self, captions) -> list[bool]:
        return [len(caption.encode()) > self.length for caption in captions]

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        table = torch.randn(self.vocabulary, self.width, generator=torch.Generator().manual_seed(0))
        return table[ids]


@pytest.fixture
def letters() -> Letters:
    return Letters()


def write_captioned(
    path: Path, captions, *, encoder=None, features: bool = False, settings=None, labels=None
) -> Store:
    """A store of random moments, one an image, with `captions` of each; settings: of StoreInfo."""
    encoder = encoder or Letters()
    base = {"vae": "random", "vae_fingerprint": "0", "scale": 1.0, "shift": 0.0}
    sizes = {"channels": 2, "latent": 4, "resolution": 32, "classes": 0}
    info = StoreInfo(
        **{**base, **sizes, **(settings or {})},
        text_encoder=encoder.name,
        text_fingerprint=encoder.fingerprint,
        text_tokens=encoder.length,
        text_width=encoder.width,
        text_vocabulary=encoder.vocabulary,
        text_features=features,
    )

    def encoded(texts) -> np.ndarray:
        return encoder.encode(torch.from_numpy(encoder.tokens(texts))).cpu().numpy()

    names = [f"{i:04d}.png" for i in range(len(captions))]
    text = Text(Packed.of(captions), encoder.tokens, lambda: encoded([""])[0])
    writer = StoreWriter(path, info, names, labels or [-1] * len(names), text=text)
    shape = (len(names), *info.sets["moments"].shape)
    moments = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    writer.write(range(len(names)), {"moments": np.abs(moments)})
    if features:
        every = [caption for those in captions for caption in those]
        writer.write_captions(np.arange(len(every)), encoded(every))
    writer.finish()
    return Store(path)
