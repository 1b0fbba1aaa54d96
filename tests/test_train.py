"""The training engine: several processes, kills, faults, starting weights, watching."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Finished, finished, one_line
from safetensors.torch import load_file
from test_encoders import dinov2  # noqa: F401  (a fixture)

from sra2cli.config import recipe
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.processes import Group
from sra2cli.data.store import Store, checksums
from sra2cli.runs.network import open_network
from sra2cli.runs.run import Run
from sra2cli.training.engine import Engine
from sra2cli.training.judging import TrainingJudge
from sra2cli.training.train import train

STEPS = 12
MEASURED = ("images_per_second", "memory_gb", "data_seconds")  # of no two runs the same
ROOT = Path(__file__).parent.parent
SETTINGS = ["train.batch=8", "log.every=5", "log.save_every=4", f"train.steps={STEPS}"]
SETTINGS += ["log.tensorboard=false", "log.keep=9"]
METHODS = {
    "none": [],
    "sra2": ["align.sra2.depth=2"],
    "repa": ["align.repa.depth=2"],
    "sra": ["align.sra.depth=1", "align.sra.teacher_depth=3"],
    "layersync": ["align.layersync.depth=1", "align.layersync.target_depth=3"],
    "internal": ["align.internal.depth=2"],
    "dispersive": ["align.dispersive.depth=2", "train.group=4"],
    "contrastive": ["train.contrastive=0.05", "train.group=4"],
    "irepa": ["align.repa.depth=2", "align.repa.projector=conv", "align.repa.spatial_norm=0.6"],
    "repa+sra2": ["align.repa.depth=2", "align.sra2.depth=2"],
}


def command(store: Path, out: Path, *settings: str, processes: int = 1) -> list[str]:
    sets = [part for s in [*SETTINGS, *settings] for part in ("--set", s)]
    arguments = ["--recipe", "digits-sit", "--data", str(store), "--out", str(out), *sets]
    start = [sys.executable, "-m", "sra2cli", "train", "--processes", str(processes)]
    return [*start, *arguments]


def run(arguments: list[str], *, code: int = 0) -> Finished:
    done = finished(arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def weights(out: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    folder = out / "checkpoints" / f"step-{step:08d}"
    names = ("model", "ema", "heads")
    found = {n: load_file(folder / f"{n}.safetensors") for n in names}
    return {f"{n}.{k}": v for n, tensors in found.items() for k, v in tensors.items()}


def losses(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


def assert_same(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert losses(a) == losses(b)


def killed_run(arguments: list[str], out: Path, kills: int, dice: random.Random) -> None:
    """Kill -9 at random moments, most of them while it trains or saves; then let it end."""
    for _ in range(kills):
        before = len(list(out.glob("checkpoints/step-*")))
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        if dice.random() < 0.7:
            wanted = min(before + dice.randrange(2), STEPS // 4)
            while process.poll() is None and time.monotonic() < deadline:
                new = len(list(out.glob("checkpoints/step-*")))
                if (out / "metrics.jsonl").exists() and new >= wanted:
                    break
                time.sleep(0.001)
            time.sleep(dice.random() * 0.2)
        else:
            time.sleep(dice.random() * 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for folder in out.glob("checkpoints/step-*"):  # whatever is there is whole
            assert int(folder.name[5:]) % 4 == 0
            assert (folder / "checkpoint.json").exists()
    for _ in range(50):  # processes that the kernel is still ending hold the lock
        last = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        if "another training is running" not in last.stderr:
            break
        time.sleep(0.2)
    assert last.returncode == 0, last.stderr


@pytest.fixture(scope="module")
def store(digits_folder, dinov2, tmp_path_factory) -> Path:  # noqa: F811
    """Digits with encoder features."""
    from sra2cli.extraction.extract import extract
    from sra2cli.extraction.makers import Options

    out = tmp_path_factory.mktemp("store") / "features.h5"
    options = Options(vae="digits", resolution=32, encoder=str(dinov2))
    extract(digits_folder, out, options, device="cpu")
    return out


def settings_of(method: str, encoder: Path) -> list[str]:
    repa = [f"align.repa.encoder={encoder}"] if "repa" in method else []
    return [*METHODS[method], *repa]


def test_processes_and_accumulation_do_not_change_the_run(store, dinov2, tmp_path):  # noqa: F811
    """1 x 8, 2 x 4 and 1 x 2 x 4: the same losses and weights, but for rounding."""
    settings = [*settings_of("repa+sra2", dinov2), "train.lr=1e-4", "align.sra.depth=1"]
    settings += ["align.sra.teacher_depth=3"]
    variants = {"one": ([], 1), "two": ([], 2), "accumulated": (["train.micro_batch=2"], 1)}
    for name, (more, processes) in variants.items():
        run(command(store, tmp_path / name, *settings, *more, processes=processes))
    first, rows = weights(tmp_path / "one"), losses(tmp_path / "one")
    for name in ("two", "accumulated"):
        for a, b in zip(rows, losses(tmp_path / name), strict=True):
            assert a == pytest.approx(b, abs=1e-6)
        for key, tensor in weights(tmp_path / name).items():
            assert (tensor - first[key]).abs().max() < 1e-5, (name, key)


FROZEN = ["align.self-transcendence.depth=1", "align.self-transcendence.teacher_depth=3"]


def test_a_frozen_teacher_is_named_and_recorded(store, tmp_path):
    first, out = tmp_path / "first", tmp_path / "second"
    run(command(store, first, "align.sra2.depth=2", "train.steps=4"))
    missing = run(command(store, out, *FROZEN), code=2)
    assert "--set align.self-transcendence.teacher=RUN" in one_line(missing, 2)
    teacher = f"align.self-transcendence.teacher={first}"
    other = run(command(store, out, *FROZEN, teacher, "model.width=48"), code=2)
    assert "a network of another shape" in one_line(other, 2)
    run(command(store, out, *FROZEN, teacher, "train.steps=4"))
    about = json.loads((out / "run.json").read_text())["teacher"]
    checkpoint = first / "checkpoints" / "step-00000004" / "checkpoint.json"
    files = json.loads(checkpoint.read_text())["files"]
    assert about == {"path": str(first), "digest": files["ema.safetensors"]}
    assert losses(out)[-1]["self-transcendence"] > 0
    moved = first.rename(tmp_path / "moved")  # the same weights elsewhere
    run(command(store, out, *FROZEN, teacher.replace(str(first), str(moved)), "train.steps=5"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_with_a_frozen_teacher_killed_and_resumed(store, tmp_path, processes):
    first, whole, killed = (tmp_path / name for name in ("first", "whole", "killed"))
    run(command(store, first, "align.sra2.depth=2"))
    settings = [*FROZEN, f"align.self-transcendence.teacher={first}"]
    run(command(store, whole, *settings, processes=processes))
    arguments = command(store, killed, *settings, processes=processes)
    killed_run(arguments, killed, 2, random.Random(processes))
    assert_same(whole, killed)
    run(command(store, first, "align.sra2.depth=2", "train.steps=16"))
    changed = run(command(store, whole, *settings, "train.steps=16"), code=2)
    assert "other weights of its frozen teacher" in one_line(changed, 2)


def test_terms_over_pairs_do_not_depend_on_processes(store, tmp_path):
    """1 x 8 and 2 x 4, in groups of 4; accumulation: tests/test_objective.py."""
    settings = [*METHODS["dispersive"], *METHODS["contrastive"], "train.lr=1e-4"]
    for name, processes in (("one", 1), ("two", 2)):
        run(command(store, tmp_path / name, *settings, processes=processes))
    for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    first = weights(tmp_path / "one")
    for key, tensor in weights(tmp_path / "two").items():
        assert (tensor - first[key]).abs().max() < 1e-5, key


def test_two_processes_killed_and_resumed(store, tmp_path):
    arguments = ["align.sra2.depth=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(command(store, whole, *arguments, processes=2))
    killed_run(command(store, killed, *arguments, processes=2), killed, 2, random.Random(0))
    assert_same(whole, killed)


@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5])
def test_processes_do_not_outlive_the_one_that_started_them(store, tmp_path, seconds):
    """Killed at any moment of the start, before the processes have found each other too."""
    out = tmp_path / "unique-run-folder"
    arguments = command(store, out, "train.steps=100000", processes=2)
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while still_running(str(out)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def still_running(text: str) -> list[str]:
    """Processes with this text in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in words:
            found.append(words)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_killed_and_resumed(store, dinov2, tmp_path, method, processes):  # noqa: F811
    settings = settings_of(method, dinov2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(command(store, whole, *settings, processes=processes))
    arguments = command(store, killed, *settings, processes=processes)
    killed_run(arguments, killed, 5, random.Random(processes))
    assert_same(whole, killed)


def test_a_run_goes_on_with_other_processes_and_micro_batches(store, tmp_path):
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    settings = ["align.sra2.depth=2", "train.lr=1e-4"]
    run(command(store, whole, *settings))
    run(command(store, changed, *settings, "train.steps=4"))
    run(command(store, changed, *settings, "train.steps=8", processes=2))
    run(command(store, changed, *settings, "train.micro_batch=2"))
    for key, tensor in weights(changed).items():
        assert (tensor - weights(whole)[key]).abs().max() < 1e-5, key
    refused = run(command(store, changed, *settings, "train.precision=bf16"), code=2)
    assert "differs in train.precision" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_signals_stop_all_processes_at_one_step(store, tmp_path, number):
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    more = ["align.sra2.depth=2", "train.steps=60", "log.save_every=60"]
    arguments = command(store, out, *more, processes=2)
    process = subprocess.Popen(
        arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (out / "metrics.jsonl").exists() or not losses(out):
        assert process.poll() is None
        time.sleep(0.005)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal: to every process
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "run the same command again to go on" in stderr and "Traceback" not in stderr
    saved = [int(p.name[5:]) for p in out.glob("checkpoints/step-*")]
    assert len(saved) == 1 and 0 < saved[0] < 60
    if number == signal.SIGINT:
        run(arguments)
        run(command(store, whole, *more, processes=2))
        first, second = weights(whole, 60), weights(out, 60)
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_batch_that_does_not_divide_is_refused(run_sra2, digits_store):
    train = ["train", "--recipe", "digits-sit", "--data", digits_store]
    line = one_line(run_sra2(*train, "--set", "train.micro_batch=3"), 2)
    assert "micro-batch 3 does not divide the 32 samples" in line
    line = one_line(run(command(digits_store, "x", "train.batch=9", processes=2), code=2), 2)
    assert "a global batch of 9 does not divide over 2 processes" in line


def prepared(settings: list[str]) -> recipe.Recipe:
    return recipe.load("digits-sra2", [*SETTINGS, *settings])


def test_nan_stops_before_the_weights_are_touched(digits_store, tmp_path, monkeypatch):
    """At step 7; the checkpoint of step 4 stays, and the optimiser did nothing after step 6."""
    engines = []
    update = Engine.update

    def poisoned(self, raws):
        engines.append(self)
        if self.step == 6:
            raws[0].noise[0, 0, 0, 0] = float("nan")
            self.before = {k: v.clone() for k, v in self.objective.state_dict().items()}
        update(self, raws)

    monkeypatch.setattr(Engine, "update", poisoned)
    with pytest.raises(DataError, match="not finite at step 7; the weights were not touched"):
        train(prepared([]), digits_store, tmp_path / "run")
    engine = engines[-1]
    after = engine.objective.state_dict()
    assert all(torch.equal(engine.before[k], after[k]) for k in after)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    assert train(prepared([]), digits_store, tmp_path / "run")["step"] == STEPS


def test_a_bad_step_switches_the_optimiser_off_until_it_is_looked_at(digits_store, monkeypatch):
    """As on a GPU, where nothing is read back between rows: later good steps change nothing."""
    from sra2cli.core.processes import Group
    from sra2cli.data.batches import Batches
    from sra2cli.data.store import Store
    from sra2cli.training.objective import Objective

    wanted, store = prepared([]), Store(digits_store)
    engine = Engine(wanted, store, Objective(wanted), Group())
    source = Batches(store, wanted, [range(8)])
    for step in range(4):
        raw = source.raw(step, range(8))
        if step == 1:
            raw.noise[:] = float("inf")
        parameters = list(engine.objective.parameters())
        before = [p.clone() for p in parameters]
        engine.update([raw])
        same = all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        assert same == (step >= 1)
    with pytest.raises(DataError, match="not finite at step 2"):
        engine.check("here")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_while_saving(digits_store, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk]).returncode:
        pytest.skip("cannot mount here")
    try:
        arguments = command(digits_store, disk / "run", "align.sra2.depth=2", "log.keep=1")
        filler = disk / "filler"
        filler.write_bytes(b"x" * 17_000_000)  # room for one checkpoint, not for two
        process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert "the disk is full" in one_line(process, 1)
        saved = sorted(p.name for p in (disk / "run/checkpoints").iterdir())
        assert saved == ["step-00000004"]
        filler.unlink()
        again = run(arguments)
        assert "resuming" in again.stderr and "at step 4" in again.stderr
        run(command(digits_store, tmp_path / "whole", "align.sra2.depth=2", "log.keep=1"))
        assert_same(tmp_path / "whole", disk / "run")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_read_only_run_folder(digits_store, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk]).returncode:
        pytest.skip("cannot mount here")
    try:
        line = one_line(run(command(digits_store, disk / "run"), code=2), 2)
        assert "cannot write to the run folder" in line and "Read-only" in line
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_store_that_changes_under_the_run(digits_store, tmp_path, monkeypatch):
    copy = shutil.copy(digits_store, tmp_path / "a.h5")
    update = Engine.update

    def replace(self, raws):
        update(self, raws)
        if self.step == 6:
            os.replace(shutil.copy(digits_store, tmp_path / "b.h5"), copy)

    monkeypatch.setattr(Engine, "update", replace)
    with pytest.raises(DataError, match="was changed or removed while it was read"):
        train(prepared([]), Path(copy), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]


def test_a_second_training_refuses_while_the_first_runs(store, tmp_path):
    out = tmp_path / "run"
    first = subprocess.Popen(
        command(store, out, "train.steps=100000", "log.save_every=100000"),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (out / "metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.01)
        second = run(command(store, out, "train.steps=100000", "log.save_every=100000"), code=2)
        assert "another training is running" in second.stderr
        first.send_signal(signal.SIGUSR1)  # what a batch system sends before the time is up
        assert first.wait(60) == 128 + signal.SIGUSR1
        assert list(out.glob("checkpoints/step-*"))
    finally:
        first.kill()


def test_permanent_and_newest_checkpoints_are_kept(digits_store, tmp_path):
    settings = ["log.save_every=2", "log.keep_every=6", "log.keep=1", "train.steps=10"]
    train(prepared(settings), digits_store, tmp_path / "run")
    kept = sorted(int(p.name[5:]) for p in (tmp_path / "run/checkpoints").iterdir())
    assert kept == [6, 10]


@pytest.mark.parametrize("compile_", [True, False])
def test_keys_are_plain_whatever_wraps_the_network(digits_store, tmp_path, compile_):
    settings = ["train.steps=2", f"train.compile={str(compile_).lower()}"]
    settings += ["train.checkpointing=true", "train.precision=bf16"]
    train(prepared(settings), digits_store, tmp_path / "run")
    keys = weights(tmp_path / "run", 2)
    assert not [k for k in keys if "module." in k or "_orig_mod" in k]
    assert "model.blocks.0.attn.qkv.weight" in keys


def test_gradient_checkpointing_changes_nothing(digits_store, tmp_path):
    for name, value in (("a", "false"), ("b", "true")):
        settings = ["train.steps=4", f"train.checkpointing={value}"]
        train(prepared(settings), digits_store, tmp_path / name)
    first, second = weights(tmp_path / "a", 4), weights(tmp_path / "b", 4)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_starting_from_weights(run_sra2, digits_store, tmp_path):
    """Ours with the same classes, and into a model of another number of them."""
    small = ["--set", "train.steps=4", "--set", "log.tensorboard=false", "--set", "train.batch=8"]
    base = ["train", "--recipe", "digits-sra2", "--data", digits_store, *small]
    assert run_sra2(*base, "--out", "first").returncode == 0
    lr = ["--set", "train.lr=1e-9"]
    more = run_sra2(*base, *lr, "--out", "more", "--init", "first")
    assert more.returncode == 0 and "starting from first (sra2, ema)" in more.stderr
    first, second = weights(tmp_path / "first", 4), weights(tmp_path / "more", 4)
    for key in (k for k in first if k.startswith("model.")):
        ema = first["ema" + key[5:]]
        assert torch.allclose(second[key], ema, atol=1e-6), key
    about = json.loads((tmp_path / "more/run.json").read_text())["init"]
    assert about["path"] == "first" and len(about["digest"]) == 32
    assert "began from the weights of first" in one_line(run_sra2(*base, *lr, "--out", "more"), 2)
    line = one_line(run_sra2(*base, "--out", "first", "--init", "more"), 2)
    assert "first began from scratch" in line
    assert "is not as what" not in more.stderr
    other = tmp_path / "other.h5"
    shutil.copy(digits_store, other)
    with h5py.File(other, "r+") as f:  # as if with other statistics
        f.attrs.modify("scale", 2 * f.attrs["scale"])
    sums = json.dumps(checksums(other, None))
    with h5py.File(other, "r+") as f:
        f.attrs.modify("checksums", np.bytes_(sums))
    moved = run_sra2(*train_on(base, other), "--out", "moved", "--init", "first")
    assert "another scale and shift" in moved.stderr and moved.returncode == 0
    refused = run_sra2("figures", "pca", "first", "--data", other, "--device", "cpu")
    assert "another scale and shift" in one_line(refused, 2)
    wide = [*base, "--set", "model.width=48", "--out", "wide", "--init", "first"]
    assert "width 96 instead of 48" in one_line(run_sra2(*wide), 2)


def train_on(arguments: list, store: Path) -> list:
    """The same command on another store."""
    at = arguments.index("--data") + 1
    return [*arguments[:at], store, *arguments[at + 1 :]]


@pytest.mark.parametrize("name", ["sit_official.npz", "sit_repa.npz", "sit_sra.npz"])
def test_starting_from_weights_of_others(golden, name):
    """The same velocity as the source where the classes are the same; else a new table."""
    from sra2cli.models.build import start_from
    from sra2cli.models.checkpoints import load
    from sra2cli.models.sit import SiT, SiTConfig

    loaded = load({"ema": golden(name).state_dict()}, num_heads=4)
    config = loaded.model.config.to_dict()
    model = SiT(SiTConfig(**config))
    assert start_from(model, loaded.model) is None
    x = torch.randn(2, config["channels"], config["latent"], config["latent"])
    t, y = torch.tensor([0.3, 0.8]), torch.tensor([1, 2])
    assert torch.equal(model(x, t, y)[0], loaded.model(x, t, y)[0])
    other = SiT(SiTConfig(**{**config, "classes": 7}))
    table = other.y_embedder.embedding_table.weight.clone()
    assert "7 classes instead of" in str(start_from(other, loaded.model))
    assert torch.equal(other.y_embedder.embedding_table.weight, table)
    with pytest.raises(SetupError, match="depth"):
        start_from(SiT(SiTConfig(**{**config, "depth": 1})), loaded.model)


def test_dry_run_counts_and_checks(run_sra2, digits_store, tmp_path):
    train = ["train", "--recipe", "digits-sra2", "--data", digits_store, "--dry-run"]
    result = json.loads(run_sra2(*train, "--json").stdout)
    assert result["parameters"] == 735_424 and result["head_parameters"] == 142_144
    assert result["epochs"] == 2400 * 32 / 96
    assert result["estimated_seconds_per_step"] > 0 and result["estimated_activations_gb"] > 0
    assert not list(tmp_path.iterdir())
    line = one_line(run_sra2(*train, "--set", "data.classes=7"), 2)
    assert "has 10 classes, the recipe wants 7" in line
    grouped = ["train.batch=12", "train.group=6", "align.dispersive.depth=2"]
    done = run_sra2(*train, *(part for s in grouped for part in ("--set", s)))
    assert done.returncode == 0, done.stderr


def test_tensorboard_and_previews(run_sra2, digits_store, tmp_path):
    train = ["train", "--recipe", "digits-sra2", "--data", digits_store, "--out", "run"]
    for setting in ("train.steps=4", "log.every=2", "log.preview_every=2", "train.batch=8"):
        train += ["--set", setting]
    assert run_sra2(*train).returncode == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"loss", "denoise", "sra2", "grad_norm"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [2, 4]
    previews = sorted(p.name for p in (tmp_path / "run" / "previews").iterdir())
    assert previews == ["step-00000002.png", "step-00000004.png"]


def test_previews_do_not_change_the_run(digits_store, tmp_path):
    for name, every in (("a", 0), ("b", 2)):
        settings = ["train.steps=6", f"log.preview_every={every}"]
        train(prepared(settings), digits_store, tmp_path / name)
    first, second = weights(tmp_path / "a", 6), weights(tmp_path / "b", 6)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_wandb_is_refused_where_it_is_not_installed(run_sra2, digits_store, tmp_path):
    train = ["train", "--recipe", "digits-sit", "--data", digits_store]
    assert "pip install wandb" in one_line(run_sra2(*train, "--set", "log.wandb=x"), 2)
    assert not list(tmp_path.iterdir())


def test_accelerate_launch_works_too(store, tmp_path):
    """As its documentation has it, for several machines as well."""
    arguments = command(store, tmp_path / "a", "align.sra2.depth=2", processes=1)[3:]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launcher += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "sra2cli"]
    run([*launcher, *arguments])
    run(command(store, tmp_path / "b", "align.sra2.depth=2", processes=2))
    assert_same(tmp_path / "a", tmp_path / "b")


def test_evaluation_while_training(run_sra2, digits_store, tmp_path, monkeypatch):
    """Written to metrics.jsonl and TensorBoard, does not change the run, kept on resume."""
    train_ = ["train", "--recipe", "digits-sra2", "--data", digits_store]
    for setting in ("train.steps=4", "train.batch=8", "log.save_every=2", "log.every=2"):
        train_ += ["--set", setting]
    judged = [*train_, "--out", "judged"]
    for setting in ("eval_every=2", "eval_num=12", "eval_steps=3", "eval_metrics=fd-digits"):
        judged += ["--set", f"log.{setting}"]
    assert run_sra2(*train_, "--out", "plain").returncode == 0
    assert run_sra2(*judged).returncode == 0
    run_, plain = Run(tmp_path / "judged"), Run(tmp_path / "plain")
    events = run_.events("eval")
    assert [e["step"] for e in events] == [2, 4] and all(e["fd-digits"] > 0 for e in events)
    assert events[0]["count"] == 12 and events[0]["sampling"]["solver"] == "euler"
    assert [r["loss"] for r in run_.metrics()] == [r["loss"] for r in plain.metrics()]
    first, second = weights(tmp_path / "judged", 4), weights(tmp_path / "plain", 4)
    assert all(torch.equal(first[k], second[k]) for k in first)
    more = [*judged, "--set", "train.steps=6"]
    assert run_sra2(*more).returncode == 0
    assert [e["step"] for e in Run(tmp_path / "judged").events("eval")] == [2, 4, 6]

    def killed(self, model):
        raise KeyboardInterrupt

    again = [*judged[:-10], "--out", "again", *judged[-8:], "--set", "train.steps=6"]
    with monkeypatch.context() as patch:  # killed after the checkpoint, before the evaluation
        patch.setattr(TrainingJudge, "look", killed)
        assert run_sra2(*again).returncode == 130
    assert run_sra2(*again).returncode == 0
    found = Run(tmp_path / "again").events("eval")
    assert found == Run(tmp_path / "judged").events("eval")
    missing = [*train_, "--out", "x", "--set", "log.eval_every=2"]
    line = one_line(run_sra2(*missing), 2)
    assert "weights" in line and not (tmp_path / "x").exists()


def test_processes_share_an_evaluation(run_sra2, digits_store, tmp_path):
    """Two draw 150 images in three parts while they train; the numbers are those of one process."""
    run_ = tmp_path / "run"
    settings = ["train.steps=2", "train.batch=8", "log.save_every=2", "log.preview_every=2"]
    settings += ["log.eval_every=2", "log.eval_num=150", "log.eval_steps=3"]
    settings += ["log.eval_metrics=fd-digits"]
    run(command(digits_store, run_, *settings, processes=2))
    (event,) = Run(run_).events("eval")
    drawn = ["--solver", "euler", "--steps", 3, "--labels", "balanced", "--num", 150]
    alone = run_sra2("eval", run_, *drawn, "--metrics", "fd-digits", "--json")
    (row,) = json.loads(alone.stdout)["rows"]
    assert row["fd-digits"] == event["fd-digits"] and row["count"] == event["count"] == 150
    shares = []
    for rank in range(2):
        judge = TrainingJudge(Run(run_).recipe, Store(digits_store), Group(rank, 2), offline=True)
        judge.look(open_network(run_).model)
        shares.append([len(part["features"]) for part in judge._found])
    assert shares == [[64, 22], [64]]
