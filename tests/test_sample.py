"""Samples as a user draws them: the same images whatever the batch, processes or kills."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finished, one_line
from PIL import Image
from torch._dynamo.utils import counters

from sra2cli.config import recipe
from sra2cli.models.sit import SiTConfig, named_size
from sra2cli.sampling.draw import in_parts, to_device, unit
from sra2cli.sampling.opening import Options
from sra2cli.sampling.sample import sample
from sra2cli.sampling.settings import PRESETS, Sampling
from sra2cli.training.train import train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(digits_store, tmp_path_factory) -> Path:
    """A short training with two checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    settings = ["train.steps=6", "train.batch=8", "log.save_every=3", "log.tensorboard=false"]
    train(recipe.load("digits-sra2", settings), digits_store, out)
    return out


def command(run: Path, out: Path, *options: object) -> list[str]:
    draw = ["sample", run, "--num", 17, "--steps", 3, "--cfg", 1.5, "--interval", "0.2:0.8"]
    arguments = [*draw, "--out", out, *options]
    return [sys.executable, "-m", "sra2cli", *map(str, arguments)]


def images(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("0*.png"))}


@pytest.mark.parametrize("solver", ["em", pytest.param("heun", marks=pytest.mark.slow)])
def test_batches_and_processes_draw_the_same_bits(run, tmp_path, solver):
    """Bit for bit on a CPU in fp32: a pass always computes as many images, filled up if need be."""
    variants = {"b1": ["--batch", 1], "b7": ["--batch", 7], "b64": ["--batch", 64]}
    variants["two"] = ["--batch", 5, "--processes", 2]
    found = {}
    for name, options in variants.items():
        process = finished(command(run, tmp_path / name, "--solver", solver, *options))
        assert process.returncode == 0, process.stderr
        found[name] = images(tmp_path / name)
        assert len(found[name]) == 17
    assert all(pngs == found["b64"] for pngs in found.values())


def kills(run: Path, tmp_path: Path, count: int, *options: object) -> tuple[Path, Path]:
    """A folder drawn under kills, and one drawn without."""
    assert finished(command(run, tmp_path / "whole")).returncode == 0
    out, dice = tmp_path / "killed", random.Random(0)
    for _ in range(count):
        process = subprocess.Popen(
            command(run, out, "--batch", 1, *options),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = len(images(out))
        while process.poll() is None and len(images(out)) < min(before + 2, 17):
            time.sleep(0.001)
        time.sleep(dice.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = command(run, out, *options)
    assert finished(last).returncode == 0
    assert json.loads((out / "samples.json").read_text())["complete"]
    return out, tmp_path / "whole"


def test_killed_and_resumed(run, tmp_path):
    killed, whole = kills(run, tmp_path, 2)
    assert images(killed) == images(whole)
    assert (killed / "grid.png").read_bytes() == (whole / "grid.png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_many_points(run, tmp_path, processes):
    killed, whole = kills(run, tmp_path, 8, "--processes", processes)
    assert images(killed) == images(whole)


def test_npz_is_what_adm_reads(run_sra2, run, tmp_path):
    draw = ["sample", run, "--num", 5, "--steps", 3, "--out", "s"]
    assert run_sra2(*draw, "--npz").returncode == 0
    with np.load(tmp_path / "s" / "samples.npz") as file:
        assert file.files == ["arr_0"]
        array = file["arr_0"]
    assert array.dtype == np.uint8 and array.shape == (5, 32, 32, 3)
    for i in range(5):
        with Image.open(tmp_path / "s" / f"{i:06d}.png") as image:
            assert np.array_equal(array[i], np.asarray(image))


def test_presets_are_the_papers(run_sra2, run, tmp_path):
    draw = ["sample", run, "--num", 2, "--steps", 3, "--labels", "balanced"]
    assert run_sra2(*draw, "--preset", "sra2", "--out", "a").returncode == 0
    how = json.loads((tmp_path / "a" / "samples.json").read_text())["sampling"]
    assert how["cfg"] == 1.8 and how["interval"] == [0.0, 0.7] and how["last_step"] == 0.04
    assert how["solver"] == "em" and how["steps"] == 3  # an option overrides its preset
    assert run_sra2(*draw, "--preset", "sit", "--cfg", 1.25, "--out", "b").returncode == 0
    how = json.loads((tmp_path / "b" / "samples.json").read_text())["sampling"]
    assert how["cfg"] == 1.25 and how["cfg_channels"] == 3 and how["interval"] == [0.0, 1.0]
    ours = {name: p["steps"] for name, p in PRESETS.items() if p["solver"] == "em"}
    assert ours == dict.fromkeys(("sra2", "repa", "sit", "reg", "internal", "t2i"), 250)
    assert PRESETS["lightningdit"]["steps"] == 249 and PRESETS["maskdit"]["steps"] == 40
    assert "--preset is one of sra2, repa, " in one_line(run_sra2(*draw, "--preset", "dit"), 2)
    assert run_sra2(*draw, "--out", "c").returncode == 0  # no guidance unless asked for
    assert json.loads((tmp_path / "c" / "samples.json").read_text())["sampling"]["cfg"] == 1.0


def test_precision_and_compile_are_recorded_and_not_mixed(run_sra2, run, tmp_path):
    draw = ["sample", run, "--num", 2, "--steps", 3, "--out", "s"]
    assert run_sra2(*draw, "--precision", "bf16").returncode == 0
    record = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert record["precision"] == "bf16" and record["compiled"] is False
    assert record["device"] == "cpu"
    assert "differs in precision" in one_line(run_sra2(*draw), 2)


def test_one_picture_of_several_sources(run_sra2, run, tmp_path):
    """Two steps of a run and the run itself: the same noise and labels in each row."""
    draw = ["sample", f"{run}@3", f"{run}@6", run, "--num", 4, "--steps", 3]
    assert "several sources need --grid" in one_line(run_sra2(*draw), 2)
    made = run_sra2(*draw, "--grid", "--labels", "balanced", "--out", "figure", "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    with Image.open(tmp_path / result["picture"]) as picture:
        assert picture.width > picture.height > 300
    rows = [images(tmp_path / "figure" / n) for n in ("0-digits-3", "1-digits-6", "2-digits")]
    assert rows[1] == rows[2] and rows[0] != rows[1]
    two = command(run, tmp_path / "two", "--grid", "--processes", 2)
    two.insert(4, str(run))
    process = subprocess.run(two, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "two" / "comparison.png").exists()
    alone = ["sample", f"{run}@3", "--num", 4, "--steps", 3, "--labels", "balanced"]
    assert run_sra2(*alone, "--out", "alone").returncode == 0
    assert images(tmp_path / "alone") == rows[0]
    assert "give the step once" in one_line(run_sra2(*alone, "--step", 6), 2)


def test_the_size_of_a_pass_follows_from_the_network():
    def of(size: str) -> int:
        return unit(SiTConfig(**named_size(size), channels=4, latent=32, classes=1000).shape)

    assert of("S/2") == of("XL/2") == 1
    digits = SiTConfig(depth=4, width=96, heads=3, patch=2, channels=4, latent=8, classes=10)
    assert unit(digits.shape) == 32
    assert list(in_parts([1, 2, 3, 4, 5], 2)) == [([1, 2], 2), ([3, 4], 2), ([5, 5], 1)]


def test_what_is_on_the_device_already_is_not_pinned(monkeypatch):
    """Features of prompts are made there, and CUDA pins memory of the host alone."""
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: x)  # there may be no GPU here
    x = torch.empty(1, device="meta")
    assert to_device(x, torch.device("cuda")) is x


def test_a_set_of_another_device_is_not_mixed(run_sra2, run, tmp_path):
    draw = ["sample", run, "--num", 2, "--steps", 3, "--out", "s"]
    assert run_sra2(*draw).returncode == 0
    record = tmp_path / "s" / "samples.json"
    record.write_text(record.read_text().replace('"device": "cpu"', '"device": "cuda"', 1))
    assert "differs in device" in one_line(run_sra2(*draw), 2)
    shutil.rmtree(tmp_path / "s")


@pytest.mark.slow
def test_a_whole_sample_compiles_two_graphs(run, tmp_path):
    """One with and one without guidance, of fixed shapes, whatever the number of images."""
    torch._dynamo.reset()
    counters.clear()
    guided = Sampling(steps=5, cfg=1.5, interval=(0.0, 0.7), self_guidance=1.2)
    sample(
        run, num=37, sampling=guided, options=Options(compile=True, batch=16), out=tmp_path / "a"
    )
    assert counters["stats"]["unique_graphs"] == 2
