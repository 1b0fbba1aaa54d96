"""The rooms together: resuming, killing, judging, and the demo."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import finished, one_line
from documented import check
from safetensors.torch import load_file

from sra2cli.demo import digits as demo
from sra2cli.runs.run import Run

STEPS = 12
MEASURED = ("images_per_second", "memory_gb", "data_seconds")  # of no two runs the same
SETTINGS = ["train.batch=8", "log.every=5", "log.save_every=4", f"train.steps={STEPS}"]
SETS = [part for setting in SETTINGS for part in ("--set", setting)]

ROOT = Path(__file__).parent.parent


def training(store: Path, out: Path, recipe="digits-sra2") -> list[str]:
    command = [sys.executable, "-m", "sra2cli", "train", "--recipe", recipe]
    return [*command, "--data", str(store), "--out", str(out), *SETS]


def weights(run: Path, step: int = STEPS) -> dict[str, dict[str, torch.Tensor]]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {name: load_file(folder / f"{name}.safetensors") for name in ("model", "ema", "heads")}


def losses(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


def assert_same_run(a: Path, b: Path, *, split: int | None = None) -> None:
    """To the bit; split: the step of a row that a stop cut in two."""
    for name, tensors in weights(a).items():
        other = weights(b)[name]
        assert tensors.keys() == other.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, other[key]), (name, key)
    rows, found = losses(a), losses(b)
    if split is not None:
        cut = next(row["step"] for row in rows if row["step"] >= split)
        rows = [row for row in rows if row["step"] != cut]
        found = [row for row in found if row["step"] not in (cut, split)]
    assert rows == found


@pytest.fixture(scope="module")
def uninterrupted(digits_store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    assert finished(training(digits_store, out)).returncode == 0
    return out


def test_a_killed_run_resumes_to_the_same_bits(digits_store, uninterrupted, tmp_path):
    out, dice = tmp_path / "killed", random.Random(0)
    for _ in range(3):
        wanted = 1 + len(list(out.glob("checkpoints/step-*")))
        kill_when(
            training(digits_store, out),
            lambda wanted=wanted: len(list(out.glob("checkpoints/step-*"))) >= wanted,
            dice.random() * 0.05,
        )
    assert finished(training(digits_store, out)).returncode == 0
    assert_same_run(uninterrupted, out)
    assert not list(out.glob("checkpoints/.*"))


def test_sigterm_saves_and_says_how_to_go_on(digits_store, uninterrupted, tmp_path):
    out = tmp_path / "stopped"
    command = training(digits_store, out)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail("the run ended before it could be stopped")
    assert process.returncode == 128 + signal.SIGTERM
    assert "run the same command again to go on" in stderr and "Traceback" not in stderr
    stopped = Run(out).metrics()[-1]["step"]
    assert Run(out).checkpoint().step == stopped  # and a row was written for it
    assert finished(command).returncode == 0
    assert_same_run(uninterrupted, out, split=stopped)


def test_a_damaged_newest_checkpoint_is_named_and_skipped(digits_store, uninterrupted, tmp_path):
    out = tmp_path / "damaged"
    assert finished(training(digits_store, out)).returncode == 0
    victim = out / "checkpoints" / f"step-{STEPS:08d}" / "ema.safetensors"
    os.truncate(victim, 1000)
    again = subprocess.run(
        training(digits_store, out), check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "ema.safetensors is not what was saved; going back" in again.stderr
    assert "resuming" in again.stderr and "at step 8" in again.stderr
    assert_same_run(uninterrupted, out)


def test_no_whole_checkpoint_is_not_a_fresh_start(digits_store, tmp_path):
    out = tmp_path / "damaged"
    assert finished(training(digits_store, out)).returncode == 0
    for victim in out.glob("checkpoints/step-*/model.safetensors"):
        os.truncate(victim, 1000)
    rows = (out / "metrics.jsonl").read_text()
    again = finished(training(digits_store, out))
    assert again.returncode == 1 and "no checkpoint in" in again.stderr
    assert (out / "metrics.jsonl").read_text() == rows


def test_fp16_trains_with_a_scaler_that_is_saved(digits_store, tmp_path):
    out = tmp_path / "half"
    command = [*training(digits_store, out), "--set", "train.precision=fp16"]
    assert finished(command).returncode == 0
    assert all(row["loss"] < 10 for row in losses(out))
    training_state = torch.load(
        out / "checkpoints" / f"step-{STEPS:08d}" / "training.pt", weights_only=True
    )
    assert training_state["scaler"]["scale"] > 1


def test_auto_precision_is_settled_once(digits_store, tmp_path):
    """A run that began in bf16 stays in bf16 where `auto` would now mean fp32."""
    from sra2cli.config import recipe
    from sra2cli.training.train import train

    small = ["train.steps=1", "train.batch=4", "train.precision=bf16"]
    train(recipe.load("digits-sit", small), digits_store, tmp_path / "run")
    small = ["train.steps=2", "train.batch=4", "train.precision=auto"]
    assert train(recipe.load("digits-sit", small), digits_store, tmp_path / "run")["step"] == 2
    assert Run(tmp_path / "run").recipe.train.precision == "bf16"


def test_a_loss_that_is_not_finite_stops_before_the_weights(digits_store, tmp_path):
    out = tmp_path / "nan"
    command = [*training(digits_store, out), "--set", "train.lr=1e30"]
    process = finished(command)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "is not finite at step" in process.stderr
    for folder in out.glob("checkpoints/step-*"):
        assert all(t.isfinite().all() for t in load_file(folder / "model.safetensors").values())


def test_a_second_training_in_the_same_folder_refuses(digits_store, tmp_path):
    import fcntl

    out = tmp_path / "busy"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.run(
            training(digits_store, out), capture_output=True, text=True, cwd=ROOT
        )
    assert second.returncode == 2 and "another training is running" in second.stderr


def test_the_two_recipes_see_the_same_data_noise_and_start(digits_store, tmp_path):
    """SRA 2 with weight 0 is SiT, to the bit."""
    sit = training(digits_store, tmp_path / "sit", "digits-sit")
    zero = [*training(digits_store, tmp_path / "zero"), "--set", "align.sra2.weight=0"]
    for command in (sit, zero):
        assert finished(command).returncode == 0
    a, b = weights(tmp_path / "sit"), weights(tmp_path / "zero")
    assert all(torch.equal(a["ema"][k], b["ema"][k]) for k in a["ema"])
    assert losses(tmp_path / "sit") == losses(tmp_path / "zero")


def kill_when(command: list[str], ready, delay: float) -> None:
    """Start a command, wait until `ready()`, and kill -9 it `delay` seconds later."""
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not ready() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.wait()


def test_samples_are_resumed_and_do_not_depend_on_the_batch(run_sra2, uninterrupted, tmp_path):
    draw = ["sample", uninterrupted, "--num", 10, "--solver", "em", "--steps", 3, "--cfg", 1.5]
    assert run_sra2(*draw, "--out", "a", "--batch", 10).returncode == 0
    assert run_sra2(*draw, "--out", "b", "--batch", 3).returncode == 0
    first = {p.name: p.read_bytes() for p in sorted((tmp_path / "a").glob("0*.png"))}
    assert len(first) == 10
    assert first == {p.name: p.read_bytes() for p in sorted((tmp_path / "b").glob("0*.png"))}
    for i in (2, 7):
        (tmp_path / "a" / f"{i:06d}.png").unlink()
    untouched = (tmp_path / "a" / "000003.png").stat().st_mtime_ns
    assert run_sra2(*draw, "--out", "a").returncode == 0
    assert first == {p.name: p.read_bytes() for p in sorted((tmp_path / "a").glob("0*.png"))}
    assert (tmp_path / "a" / "000003.png").stat().st_mtime_ns == untouched


def test_eval_judges_samples_through_json(run_sra2, uninterrupted, tmp_path):
    draw = ["sample", uninterrupted, "--num", 40, "--solver", "euler", "--steps", 2]
    assert run_sra2(*draw, "--labels", "balanced", "--out", "s").returncode == 0
    judged = run_sra2("eval", "s", "--json")
    result = json.loads(judged.stdout)
    assert result["fd-digits"] > 0 and 0 <= result["accuracy"] <= 1 and result["count"] == 40
    assert result["how"]["sampling"]["solver"] == "euler" and result["how"]["step"] == STEPS
    assert result == json.loads((tmp_path / "s" / "eval-fd-digits.json").read_text())


def test_real_digits_are_their_own_reference(run_sra2, digits_folder):
    """Against itself the distance is 0; a flat folder of images works as samples."""
    result = json.loads(
        run_sra2(
            "eval",
            digits_folder,
            "--ref",
            digits_folder,
            "--metrics",
            "fd-digits",
            "--json",
            "--out",
            "e.json",
        ).stdout
    )
    assert result["fd-digits"] == pytest.approx(0, abs=1e-4)


def test_demo_end_to_end_small(run_sra2, tmp_path, monkeypatch):
    """Six steps instead of 2,400, fewer samples; all files there, run again does nothing twice."""
    monkeypatch.setattr(demo, "JUDGED_COUNT", 30)
    first = run_sra2("demo", "--steps", 6)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "runs" / "demo"
    made = {p.name for p in out.iterdir()}
    assert {
        "report.html",
        "report.md",
        "results.json",
        "loss.png",
        "samples-step3.png",
        "samples-step6.png",
    } <= made
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(r["run"], r["steps"]) for r in rows] == [
        ("digits-sit", 3),
        ("digits-sit", 6),
        ("digits-sra2", 3),
        ("digits-sra2", 6),
    ]
    commands = [line for line in first.stderr.splitlines() if line.startswith("$ sra2 ")]
    assert len(commands) == 1 + 2 + 8 + 8
    repeated = run_sra2(*commands[-1].split()[2:], "--json")
    assert json.loads(repeated.stdout)["fd-digits"] == pytest.approx(rows[-1]["guided_fd_digits"])
    stamp = (out / "digits-sit" / "checkpoints" / "step-00000006").stat().st_mtime_ns
    check("demo", json.loads(run_sra2("demo", "--steps", 6, "--json").stdout))
    assert (out / "digits-sit" / "checkpoints" / "step-00000006").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("name", ["sit_official.npz", "sit_repa.npz", "sit_sra.npz"])
def test_sample_opens_checkpoints_of_others(run_sra2, golden, tmp_path, name):
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=[8], norm_num_groups=4).save_pretrained(tmp_path / "vae")
    torch.save({"ema": golden(name).state_dict()}, tmp_path / "last.pt")
    draw = ["sample", "last.pt", "--num", 4, "--steps", 3, "--cfg", 1.8, "--vae", "vae"]
    process = run_sra2(*draw, "--labels", "1,207", "--num-heads", 4, "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["kind"] == {"official": "SiT", "repa": "REPA", "sra": "SRA"}[name[4:-4]]
    assert len(list((tmp_path / "last-samples").rglob("0*.png"))) == 4
    assert "its number of attention heads" in one_line(run_sra2(*draw), 2)
    assert "has no checkpoint" not in one_line(run_sra2(*draw, "--step", 3), 2)


def test_export_of_a_run_samples_the_same(run_sra2, uninterrupted, tmp_path):
    from sra2cli.models.checkpoints import export
    from sra2cli.models.sit import SiT, SiTConfig

    checkpoint = Run(uninterrupted).checkpoint()
    model = SiT(SiTConfig(**checkpoint.meta["sit"]))
    model.load_state_dict(checkpoint.weights("ema"))
    export(model, tmp_path / "exported")
    draw = ["--num", 3, "--steps", 3, "--vae", "digits", "--labels", "balanced"]
    saved = checkpoint.path
    sources = [uninterrupted, "exported", saved, saved / "ema.safetensors"]
    for source, out in zip(sources, "abcd", strict=True):
        assert run_sra2("sample", source, *draw, "--out", out).returncode == 0
    for i in range(3):
        image = (tmp_path / "a" / f"{i:06d}.png").read_bytes()
        for out in "bcd":
            assert image == (tmp_path / out / f"{i:06d}.png").read_bytes()


def test_images_without_labels_train_an_unconditional_model(run_sra2, digits_folder, tmp_path):
    import shutil

    (tmp_path / "flat").mkdir()
    for path in sorted(digits_folder.rglob("*.png"))[:20]:
        shutil.copy(path, tmp_path / "flat")
    encode = ["extract", "flat", "--out", "a.h5", "--vae", "digits", "--resolution", 32]
    assert json.loads(run_sra2(*encode, "--json").stdout)["classes"] == 0
    train = ["train", "--recipe", "digits-sra2", "--data", "a.h5", "--out", "run"]
    small = ["--set", "train.steps=2", "--set", "train.batch=4"]
    assert "has 0 classes, the recipe wants 10" in one_line(run_sra2(*train, *small), 2)
    assert run_sra2(*train, *small, "--set", "data.classes=0").returncode == 0
    draw = ["sample", "run", "--num", 2, "--steps", 3, "--out", "s"]
    assert "--cfg needs a class-conditional model" in one_line(run_sra2(*draw, "--cfg", 2), 2)
    assert run_sra2(*draw).returncode == 0
    assert json.loads((tmp_path / "s" / "samples.json").read_text())["labels"] is None
