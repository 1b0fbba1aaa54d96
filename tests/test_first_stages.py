"""`sra2 vae`: a first stage of one's own."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import one_line
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.images import read_image
from sra2cli.data.store import Store
from sra2cli.encoders.vae import Vae, load_vae
from sra2cli.first_stages import settings, train
from sra2cli.first_stages.judge import psnr, sheet
from sra2cli.first_stages.losses import gradient_error, losses
from sra2cli.first_stages.pixels import held_out_of
from sra2cli.first_stages.settings import VaeSettings
from sra2cli.first_stages.statistics import drawn_latents, fold
from sra2cli.first_stages.trainer import Trainer, encoder_of, initial

TINY = (*("--resolution", 16, "--widths", "8,8", "--channels", 2, "--batch", 4, "--steps", 8),)
SMALL = (*TINY, "--held-out", 0.1, "--workers", 0, "--save-every", 3, "--device", "cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(digits_folder, tmp_path_factory) -> Path:
    """A first stage, trained without an interruption."""
    from typer.testing import CliRunner

    from sra2cli.cli import app

    out = tmp_path_factory.mktemp("made") / "vae"
    command = ["vae", str(digits_folder), "--out", str(out), *map(str, SMALL), "--json"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["held_out"] == 10
    return out


def same(a: Path, b: Path) -> None:
    """To the bit: weights, what the config says of the latents, pictures, losses."""
    left, right = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)
    assert (a / "config.json").read_bytes() == (b / "config.json").read_bytes()
    assert np.array_equal(*(read_image(p / "reconstructions.png") for p in (a, b)))
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}


def test_what_a_folder_holds(made):
    result = json.loads((made / "vae.json").read_text())["result"]
    assert result["trained_on"] == 86 and result["latents"] == [2, 8, 8]
    assert not (made / "training.pt").exists() and not (made / ".made").exists()
    config = json.loads((made / "config.json").read_text())
    assert config["latents_mean"] == pytest.approx(result["statistics"]["mean"], abs=1e-5)
    assert config["latents_std"] == pytest.approx(result["statistics"]["std"], abs=1e-5)
    rows = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "event" not in row] == [3, 6, 8]
    assert [row["step"] for row in rows if row.get("event") == "psnr"] == [3, 6]
    assert rows[0]["loss"] == pytest.approx(rows[0]["l1"] + 1e-4 * rows[0]["kl"])


def test_a_killed_training_goes_on_to_the_same_bits(made, digits_folder, run_sra2, tmp_path):
    out = tmp_path / "vae"
    command = ("vae", digits_folder, "--out", out, *SMALL)
    process = subprocess.Popen(
        [sys.executable, "-m", "sra2cli", *map(str, command)],
        cwd=Path(__file__).parent.parent,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (out / "training.pt").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = run_sra2(*command)
    assert again.returncode == 0, again.stderr
    same(made, out)
    assert "complete already" in run_sra2(*command).stderr


def test_ctrl_c_saves_and_loses_nothing(made, digits_folder, run_sra2, tmp_path, monkeypatch):
    out, update = tmp_path / "vae", Trainer.update
    command = ("vae", digits_folder, "--out", out, *SMALL)

    def interrupted(self: Trainer) -> None:
        update(self)
        if self.step == 4:  # between two checkpoints
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", interrupted)
    stopped = run_sra2(*command)
    assert stopped.returncode == 130 and "saved in" in stopped.stderr, stopped.stderr
    assert not (out / "config.json").exists()  # not yet a first stage
    monkeypatch.setattr(Trainer, "update", update)
    again = run_sra2(*command)
    assert again.returncode == 0 and "at step 4" in again.stderr, again.stderr
    same(made, out)


def test_it_is_taken_wherever_a_vae_is(made, digits_folder, run_sra2):
    extracted = run_sra2(
        "extract", digits_folder, "--out", "s.h5", "--vae", made, "--resolution", 16, "--workers", 0
    )
    assert extracted.returncode == 0, extracted.stderr
    store = Store(Path("s.h5"))
    config = json.loads((made / "config.json").read_text())
    assert store.info.shift == tuple(config["latents_mean"])
    assert store.info.scale == tuple(1 / std for std in config["latents_std"])
    with h5py.File("s.h5") as file:
        moments = torch.from_numpy(file["moments"][:])
    mean, std = moments.chunk(2, dim=1)
    z = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    scaled = (z - torch.tensor(store.info.shift).view(-1, 1, 1)) * torch.tensor(
        store.info.scale
    ).view(-1, 1, 1)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(2), atol=0.05, rtol=0)
    sets = ["data.classes=null", "data.channels=null", "data.latent=null", "data.vae=null"]
    sets += ["model.depth=2", "model.width=24", "train.steps=2", "train.batch=4"]
    sets += ["log.save_every=2", "log.preview_every=2", "log.tensorboard=false"]
    train = run_sra2(
        *("train", "--recipe", "digits-sra2", "--data", "s.h5", "--out", "run", "--device", "cpu"),
        *(part for s in sets for part in ("--set", s)),
    )
    assert train.returncode == 0, train.stderr
    assert list(Path("run/previews").glob("*.png"))  # decoded with it
    drawn = run_sra2("sample", "run", "--num", 2, "--out", "drawn", "--vae", made, "--steps", 2)
    assert drawn.returncode == 0, drawn.stderr
    assert read_image(next(Path("drawn").rglob("000000.png"))).shape == (16, 16, 3)


def test_statistics_in_the_weights_or_in_one_number(digits_folder, run_sra2):
    images = np.stack([read_image(p, 16) for p in sorted(digits_folder.rglob("*.png"))])
    for option in ("--fold-statistics", "--one-scale"):
        out = Path(option.strip("-"))
        done = run_sra2("vae", digits_folder, "--out", out, *SMALL, option, "--dtype", "float16")
        assert done.returncode == 0, done.stderr
        config = json.loads((out / "config.json").read_text())
        assert config["latents_mean"] is None
        assert {t.dtype for t in load_file(out / WEIGHTS).values()} == {torch.float16}
        vae = load_vae(str(out))
        z = drawn_latents(vae, images, seed=1, step=0) * vae.scale
        if option == "--one-scale":
            assert config["scaling_factor"] != 1.0
            assert z.std().item() == pytest.approx(1, abs=0.03)
        else:
            assert config["scaling_factor"] == 1.0
            torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(2), atol=0.05, rtol=0)
            torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(2), atol=0.05, rtol=0)


def test_folding_changes_latents_and_no_image():
    wanted = settings.checked({"resolution": 16, "widths": (8, 8), "channels": 3})
    model = initial(wanted).eval().requires_grad_(False)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 3.0, 1.0])
    before = model.encode(x).latent_dist
    image = model.decode(before.mode()).sample
    fold(model, mean, std)
    after = model.encode(x).latent_dist
    expected = (before.mean - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(after.mean, expected)
    torch.testing.assert_close(after.std, before.std / std.view(-1, 1, 1))
    torch.testing.assert_close(model.decode(after.mode()).sample, image, atol=1e-5, rtol=1e-5)


def test_losses_in_closed_form():
    a = torch.zeros(1, 3, 4, 4)
    step = torch.zeros(1, 3, 4, 4)
    step[..., 2:] = 0.5  # one edge of three across, none down
    assert gradient_error(a, step).item() == pytest.approx(0.5 / 3)
    assert gradient_error(a, a + 0.7).item() == pytest.approx(0)  # of constant errors nothing

    class Posterior:  # of mean 2 and variance 1: a divergence of 2 a dimension
        mean = torch.full((1, 4, 2, 2), 2.0)

        def kl(self) -> torch.Tensor:
            return 0.5 * self.mean.square().sum(dim=(1, 2, 3))

    wanted = VaeSettings(l1=2.0, mse=3.0, gradient=1.0, kl=0.1)
    found = losses(wanted, step, a, Posterior(), None)
    assert found["l1"].item() == pytest.approx(0.25) and found["mse"].item() == pytest.approx(0.125)
    assert found["kl"].item() == pytest.approx(2)
    total = 2 * 0.25 + 3 * 0.125 + 0.5 / 3 + 0.1 * 2
    assert found["loss"].item() == pytest.approx(total)


def test_psnr_is_of_all_pixels_together():
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    b = a.copy()
    b[0] += 10  # mean squared error 50 over both
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 50))
    assert psnr(a, a) == math.inf
    assert sheet(a, b).size == (2 * 6 + 2, 2 * 6 + 2)  # one above the other


def test_held_out_images_are_of_every_class():
    held = held_out_of(1200, 0.05)  # twelve classes of a hundred, in order
    assert held.sum() == 60 and set(held.reshape(12, 100).sum(1)) == {5}
    assert not held_out_of(10, 0.0).any() and held_out_of(100_000, 0.5).sum() == 1000


def test_a_perceptual_term_reaches_the_image(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path / "vit")
    given = {
        "resolution": 16,
        "widths": (8, 8),
        "perceptual": 0.5,
        "features": str(tmp_path / "vit"),
    }
    wanted = settings.checked({**given, "l1": 1.0, "kl": 0.0})
    encoder = encoder_of(wanted, device="cpu", offline=True)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    output = images.clone().requires_grad_(True)
    same_image = losses(wanted, output, images, None, encoder)
    assert same_image["perceptual"].item() == pytest.approx(0, abs=1e-6)
    output = torch.zeros(2, 3, 16, 16, requires_grad=True)
    found = losses(wanted, output, images, None, encoder)
    assert found["perceptual"].item() > 0
    found["perceptual"].backward()
    assert output.grad is not None and output.grad.abs().sum() > 0


def test_mirrored_images_are_drawn_by_step(digits_folder):
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    wanted = settings.checked({"resolution": 8, "widths": (8, 8), "flip": True, "batch": 16})
    trainer = Trainer(wanted, images, device="cpu", encoder=None)
    x, xi = trainer.batch()
    original = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    kinds = {
        (row, flipped)
        for seen in x
        for row in range(2)
        for flipped in (False, True)
        if torch.equal(seen, original[row].flip(-1) if flipped else original[row])
    }
    assert len(kinds) == 4 and xi.shape == (16, 4, 4, 4)
    assert torch.equal(trainer.batch()[0], x)  # of this step
    trainer.step = 1
    assert not torch.equal(trainer.batch()[1], xi)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--widths", "8,12"), "--widths are multiples of 8, not 12"),
        (("--widths", "8,x"), "--widths are whole numbers"),
        (("--resolution", 18, "--widths", "8,8,8"), "cannot be divided by 4"),
        (("--l1", 0), "--l1 or --mse must be above 0"),
        (("--perceptual", 0.1), "--perceptual WEIGHT and --features ENCODER go together"),
        (("--features", "x"), "--perceptual WEIGHT and --features ENCODER go together"),
        (("--fold-statistics", "--one-scale"), "give one of them"),
        (("--kl", -1), "--kl must not be negative"),
        (("--held-out", 1), "--held-out lies in [0, 1)"),
        (("--lr", "inf"), "--lr"),
    ],
)
def test_settings_that_are_refused(options, message, run_sra2):
    assert message in one_line(run_sra2("vae", "nowhere", "--out", "v", *options), 2)


def test_folders_and_sources_that_are_refused(made, digits_folder, run_sra2, tmp_path):
    def refused(images, out, *options, code=2) -> str:
        return one_line(run_sra2("vae", images, "--out", out, *SMALL, *options), code)

    assert "no image folder" in refused("nowhere", "v")
    assert "differs in kl" in refused(digits_folder, made, "--kl", 0.5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("a")
    assert "holds other files" in refused(digits_folder, "other")
    np.save(tmp_path / "z.npy", np.zeros((4, 2, 2), np.float32))
    (tmp_path / "latents").mkdir()
    (tmp_path / "z.npy").rename(tmp_path / "latents" / "z.npy")
    assert "trained on images" in refused("latents", "v")
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    Image.new("RGB", (20, 20), "red").save(fewer / "a.png")
    assert "begun on other images" in refused(fewer, made)
    (fewer / "b.png").write_bytes(b"no image")
    mended = run_sra2("vae", fewer, "--out", "v", *SMALL, "--steps", 1, "--held-out", 0)
    assert mended.returncode == 0 and "b.png: not an image" in mended.stderr
    (fewer / "a.png").unlink()
    assert "none of the images" in refused(fewer, "w", code=1)


def test_a_damaged_state_is_named(digits_folder, run_sra2, monkeypatch):
    command = ("vae", digits_folder, "--out", "v", *SMALL)
    monkeypatch.setattr("sra2cli.first_stages.train.finish", lambda *_: sys.exit(3))
    assert run_sra2(*command).returncode == 3
    state = Path("v/training.pt")
    state.write_bytes(state.read_bytes()[:-200])
    assert "v/training.pt is damaged" in one_line(run_sra2(*command), 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("before", ["state", "say_statistics"])  # a checkpoint; the end
def test_a_full_disk_while_saving(made, digits_folder, run_sra2, tmp_path, monkeypatch, before):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]).returncode:
        pytest.skip("cannot mount here")
    try:
        filler, where = disk / "filler", Trainer if before == "state" else train
        there = getattr(where, before)

        def fill(*arguments, **options):
            found = there(*arguments, **options)
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            return found

        command = ["vae", digits_folder, "--out", disk / "vae", *SMALL]
        with monkeypatch.context() as patched:
            patched.setattr(where, before, fill)
            assert "the disk is full" in one_line(run_sra2(*command), 1)
        filler.unlink()
        assert not {".training.pt", ".made"} & {p.name for p in (disk / "vae").iterdir()}
        assert run_sra2(*command).returncode == 0
        same(made, disk / "vae")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_dry_run_counts_and_writes_nothing(digits_folder, run_sra2):
    done = run_sra2("vae", digits_folder, "--out", "v", *SMALL, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["held_out"]) == (96, 10) and found["latents"] == [2, 8, 8]
    assert found["estimated_seconds_per_step"] > 0 and not Path("v").exists()


def test_defaults_of_the_command_are_those_of_the_settings():
    """The widths follow from the resolution; what is left is said in one place for both."""
    import inspect

    from sra2cli.cli.vae import vae

    defaults = {n: p.default for n, p in inspect.signature(vae).parameters.items()}
    for name, value in settings.plain(VaeSettings()).items():
        if name != "widths":
            assert defaults[name] == value, name
    assert settings.checked({"resolution": 64}).latent == (4, 16, 16)
    assert settings.checked({"resolution": 256}).latent == (4, 32, 32)
    with pytest.raises(SetupError, match="--steps"):
        settings.checked({"steps": 0})


@pytest.mark.slow
def test_digits_come_as_near_as_the_packaged_first_stage(tmp_path, monkeypatch):
    """At equal steps and size, within 0.3 dB: by the tool that prints both."""
    file = Path(__file__).parent.parent / "tools" / "make_first_stages.py"
    spec = importlib.util.spec_from_file_location("make_first_stages", file)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_first_stages.py", "digits"])
    tool.main()
    found = json.loads((tmp_path / "first-stage-digits.json").read_text())
    own, packaged = found["sra2 vae"], found["packaged"]
    assert own["PSNR, trained on"] > packaged["PSNR, trained on"] - 0.3


def test_glances_see_the_network_as_it_is(digits_folder):
    wanted = settings.checked({"resolution": 16, "widths": (8, 8), "batch": 2})
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    trainer = Trainer(wanted, images, device="cpu", encoder=None)
    seen = trainer.judged()
    trainer.update()
    assert isinstance(seen, Vae) and all(p.requires_grad for p in trainer.model.parameters())
    assert seen.fingerprint != trainer.judged().fingerprint


@pytest.mark.parametrize("steps", [1, 19, 20, 40])
def test_a_rise_of_one_step_is_none(digits_folder, run_sra2, steps):
    """Of 20 steps a rise over a twentieth ended in a division by zero."""
    small = [*map(str, SMALL)]
    small[small.index("--steps") + 1] = str(steps)
    done = run_sra2("vae", digits_folder, "--out", f"v{steps}", *small, "--warmup", 0.05)
    assert done.returncode == 0, done.stderr


def test_a_gradient_that_is_not_finite_is_said_before_it_is_saved():
    """Of a finite loss: the weights are broken by then."""
    wanted = settings.checked({"resolution": 16, "widths": (8, 8), "batch": 2})
    trainer = Trainer(wanted, np.zeros((4, 16, 16, 3), np.uint8), device="cpu", encoder=None)
    next(trainer.model.parameters()).register_hook(lambda grad: grad * torch.inf)
    trainer.update()
    with pytest.raises(DataError, match="or its gradient is not finite before step 1"):
        trainer.row()
