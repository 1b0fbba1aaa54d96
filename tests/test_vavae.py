"""VA-VAE and statistics of latents: the published forms of both, and all that uses them."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import GOLDEN as FOLDER
from conftest import Golden, finished, one_line
from diffusers import AutoencoderKL
from PIL import Image

from sra2cli.core.clock import Purpose, normals
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.processes import Group
from sra2cli.data.store import Store
from sra2cli.data.store_writer import StoreWriter
from sra2cli.encoders import ldm
from sra2cli.encoders.first_stage import scaled_latents, to_uint8, unscaled
from sra2cli.encoders.open import open_first_stage
from sra2cli.encoders.vae import Vae
from sra2cli.extraction.encode import prepare
from sra2cli.extraction.extract import fill
from sra2cli.extraction.latent_scale import computed
from sra2cli.extraction.makers import Options
from sra2cli.figures import tokens
from sra2cli.models import checkpoints
from sra2cli.models.statistics import read_statistics
from sra2cli.sampling import sample

GOLDEN = Golden("vavae.npz")
STATS = Golden("latent_stats.npz")
MEAN, STD = torch.linspace(-1, 2, 8), torch.linspace(0.5, 3, 8)
WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "with what was trained beside": lambda state: {"state_dict": state | extra()},
    "in a module": lambda state: {f"module.{k}": v for k, v in state.items()},
    "in a whole model": lambda state: {
        "state_dict": {f"first_stage_model.{k}": v for k, v in state.items()} | extra()
    },
}


def extra():
    return {k[6:]: GOLDEN[k] for k in GOLDEN.arrays if k.startswith("extra/")}


@pytest.fixture(scope="module")
def vavae(tmp_path_factory):
    """VA-VAE's file."""
    path = tmp_path_factory.mktemp("vavae") / "vavae.pt"
    torch.save({"state_dict": GOLDEN.state_dict() | extra()}, path)
    return path


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    """Statistics of its latents, as LightningDiT keeps them."""
    path = tmp_path_factory.mktemp("stats") / "latents_stats.pt"
    torch.save({"mean": MEAN.view(1, 8, 1, 1), "std": STD.view(1, 8, 1, 1)}, path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """100 images of 16 px in two classes."""
    root = tmp_path_factory.mktemp("data") / "images"
    dice = np.random.default_rng(0)
    for k in range(100):
        path = root / "ab"[k % 2] / f"{k:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return root


def as_diffusers(folder, **config):
    """The same autoencoder as diffusers saves it."""
    state = ldm.own_weights(GOLDEN.state_dict())
    model = AutoencoderKL(**GOLDEN.meta["diffusers"], **config)
    model.load_state_dict(ldm.diffusers_names(state))
    model.save_pretrained(folder)
    return str(folder)


def meets_golden(vae):
    """Both ways. x is of no 8 bits, as `encode` takes images: it is held against the network."""
    with torch.no_grad():
        posterior = vae.model.encode(GOLDEN["x"].float()).latent_dist
        decoded = vae.model.decode(GOLDEN["latent"]).sample
    moments = torch.cat([posterior.mean, posterior.std], dim=1)
    torch.testing.assert_close(moments, GOLDEN["moments"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoded, GOLDEN["image"], atol=1e-4, rtol=1e-4)
    z = scaled_latents(
        torch.cat([GOLDEN["latent"]] * 2, dim=1), None, scale=vae.scale, shift=vae.shift
    )
    shown, wanted = vae.decode(z), to_uint8(GOLDEN["image"])
    assert np.abs(shown.astype(int) - wanted).max() <= 1
    pixels = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        own = vae.model.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    torch.testing.assert_close(vae.encode(pixels), torch.cat([own.mean, own.std], 1))


@pytest.mark.parametrize("form", WRAPPED)
def test_a_file_of_vavae_is_a_first_stage(tmp_path, form):
    torch.save(WRAPPED[form](GOLDEN.state_dict()), tmp_path / "vavae.pt")
    vae = open_first_stage(str(tmp_path / "vavae.pt"))
    assert (vae.channels, vae.factor, vae.scale, vae.shift) == (8, 4, 1.0, 0.0)
    meets_golden(vae)


def test_the_diffusers_form_is_the_same(tmp_path, vavae):
    both = as_diffusers(tmp_path / "both", latents_mean=MEAN.tolist(), latents_std=STD.tolist())
    vae = open_first_stage(both)
    assert np.allclose(vae.shift, MEAN) and np.allclose(vae.scale, 1 / STD.double())
    assert vae.scaling_factor == 0.18215  # what diffusers writes, asked for or not
    meets_golden(vae)
    file = open_first_stage(str(vavae))
    assert (vae.fingerprint, vae.decoder) == (file.fingerprint, file.decoder)


def test_every_key_of_the_published_size():
    table = json.loads((FOLDER / "shapes_backbones.json").read_text())
    pairs = table["VA-VAE f16d32 -> diffusers"]
    assert len(pairs) == 342
    own = {name: torch.empty(shape, device="meta") for name, _, shape, _ in pairs}
    found = ldm.diffusers_names(own)
    assert {k: list(v.shape) for k, v in found.items()} == {
        new: shape for _, new, _, shape in pairs
    }
    with torch.device("meta"):
        model = AutoencoderKL(**ldm.config_of(own))
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in found.items()
    }


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: {k: v for k, v in s.items() if "quant_conv" not in k or "post" in k}, "is not"),
        (lambda s: s | {"decoder.norm_out.weight": torch.ones(3)}, "is not a whole VAE"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("decoder")}, "is not a whole"),
        (lambda s: {"blocks.0.attn.qkv.weight": torch.ones(3)}, "is not a VAE"),
        (lambda s: s | {"encoder.conv_in.bias": torch.full((32,), torch.nan)}, "not finite"),
    ],
)
def test_what_is_no_whole_vavae_is_one_line(tmp_path, run_sra2, change, said):
    torch.save(change(GOLDEN.state_dict()), tmp_path / "vavae.pt")
    if said == "is not":  # an autoencoder without quant_conv is one, where diffusers knows of it
        assert open_first_stage(str(tmp_path / "vavae.pt")).model.quant_conv is None
        return
    with pytest.raises((SetupError, DataError), match=said) as caught:
        open_first_stage(str(tmp_path / "vavae.pt"))
    assert "\n" not in str(caught.value)


def test_scale_and_shift_are_what_lightningdit_does():
    mean, std = STATS["mean"], STATS["std"]
    scale, shift = tuple((1 / std.double()).flatten().tolist()), tuple(mean.flatten().tolist())
    moments = torch.cat([STATS["latents"], torch.zeros_like(STATS["latents"])], dim=1)
    z = scaled_latents(moments, None, scale=scale, shift=shift)
    torch.testing.assert_close(z, STATS["normalised"], atol=1e-5, rtol=1e-5)
    back = unscaled(z, scale=scale, shift=shift)
    torch.testing.assert_close(back, STATS["back"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "content",
    [
        {"mean": MEAN.view(1, 8, 1, 1), "std": STD.view(1, 8, 1, 1)},
        {"latents_bias": MEAN.view(1, 8, 1, 1), "latents_scale": 1 / STD.view(1, 8, 1, 1)},
        {"latents_mean": MEAN.tolist(), "latents_std": STD.tolist()},
        {"bn.running_mean": MEAN, "bn.running_var": STD**2},
        {"ema": {"bn.running_mean": MEAN, "bn.running_var": STD**2}, "steps": 3},
        {"mean": MEAN, "std": STD, "names": ["a", "b"], "ragged": [[1], [2, 3]]},
    ],
)
def test_statistics_are_read_whatever_they_are_called(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    scale, shift = read_statistics(tmp_path / "a.pt", 8)
    assert np.allclose(scale, 1 / STD) and np.allclose(shift, MEAN)
    with pytest.raises(SetupError, match="of 8 channels, the VAE has 4"):
        read_statistics(tmp_path / "a.pt", 4)


@pytest.mark.parametrize(
    "content, said",
    [
        ({"mean": MEAN, "std": STD * 0}, "deviations above 0"),
        ({"mean": MEAN * torch.nan, "std": STD}, "not finite"),
        ({"mean": MEAN, "std": STD[:3]}, "8 means, but 3 deviations"),
        ({"weight": MEAN}, "holds no statistics"),
        ({"mean": ["a", "b"], "std": STD}, "mean and std are no numbers"),
    ],
)
def test_what_holds_no_statistics_is_one_line(tmp_path, content, said):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises((SetupError, DataError), match=said) as caught:
        read_statistics(tmp_path / "a.pt", 8)
    assert "\n" not in str(caught.value)


def test_statistics_inside_a_network_are_those_of_its_latents(tmp_path):
    golden = Golden("sit_vavae.npz")
    torch.save(golden.state_dict(), tmp_path / "a.pt")
    scale, shift = checkpoints.load(tmp_path / "a.pt", num_heads=4).statistics
    moments = torch.cat([golden["latents"], torch.zeros_like(golden["latents"])], dim=1)
    z = scaled_latents(moments, None, scale=scale, shift=shift)
    torch.testing.assert_close(z, golden["normalised"], atol=1e-5, rtol=1e-5)


SIXTEEN = ("--resolution", 16, "--device", "cpu", "--workers", 0)


def test_scaling_factor_beside_statistics(tmp_path, images, run_sra2, vavae, stats):
    """The statistics alone, unless both are asked for; which it is, is said, and is compared."""
    both = as_diffusers(
        tmp_path / "both", latents_mean=MEAN.tolist(), latents_std=STD.tolist(), scaling_factor=0.25
    )
    alone = run_sra2("extract", images, "--out", "a.h5", "--vae", both, *SIXTEEN)
    assert "statistics of" in alone.stderr and "not scaling_factor 0.25" in alone.stderr
    twice = run_sra2(
        *("extract", images, "--out", "b.h5", "--vae", both, *SIXTEEN, "--latent-scale", "both")
    )
    assert "statistics times scaling_factor 0.25" in twice.stderr
    a, b = Store(tmp_path / "a.h5").info, Store(tmp_path / "b.h5").info
    assert np.allclose(a.scale, 1 / STD) and np.allclose(b.scale, 0.25 / STD)
    assert np.allclose(a.shift, MEAN) and a.shift == b.shift
    line = one_line(run_sra2("extract", images, "--out", "b.h5", "--vae", both, *SIXTEEN), 2)
    assert "differs in scale" in line
    line = one_line(
        run_sra2(
            *("extract", images, "--out", "c.h5", "--vae", vavae, *SIXTEEN),
            *("--latent-scale", "both"),
        ),
        2,
    )
    assert "has no statistics" in line
    compute = ("--latent-stats", "compute", "--latent-scale", "both")
    line = one_line(
        run_sra2("extract", images, "--out", "c.h5", "--vae", vavae, *SIXTEEN, *compute), 2
    )
    assert "not for compute" in line


def test_a_vae_that_says_no_scale_is_said(run_sra2, images, vavae):
    """VA-VAE's file has none: its latents would be trained on as they are, without a word."""
    plain = run_sra2("extract", images, "--out", "a.h5", "--vae", vavae, *SIXTEEN)
    assert plain.returncode == 0
    assert "does not say how its latents are scaled" in " ".join(plain.stderr.split())


def test_options_that_change_nothing_of_a_store_that_is_there(run_sra2, digits_store):
    for option in (("--latent-stats", "compute"), ("--flip",), ("--label", "x"), ("--dry-run",)):
        line = one_line(run_sra2("extract", "--check", digits_store, *option), 2)
        assert line.startswith(f"error: {option[0]} is for images that are encoded")


def brute_force(store):
    """Mean and deviation of all of its latents, drawn as training draws them."""
    moments = store.moments(np.arange(len(store))).float()
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    xi = torch.from_numpy(normals(0, Purpose.POSTERIOR, 0, range(len(store)), shape))
    z = scaled_latents(moments, xi, scale=1.0, shift=0.0).double().transpose(0, 1).flatten(1)
    return z.mean(1), z.std(1)


def test_computed_statistics(tmp_path, images, run_sra2, vavae):
    compute = ("--vae", vavae, *SIXTEEN, "--latent-stats", "compute")
    assert run_sra2("extract", images, "--out", "a.h5", *compute).returncode == 0
    store = Store(tmp_path / "a.h5")
    mean, std = brute_force(store)
    assert np.allclose(store.info.shift, mean, rtol=1e-6)
    assert np.allclose(store.info.scale, 1 / std, rtol=1e-6)
    checked = json.loads(run_sra2("extract", "--check", "a.h5", "--json").stdout)
    assert np.allclose(checked["channel_std"], 1, atol=0.1)
    again = run_sra2("extract", images, "--out", "a.h5", *compute)
    assert again.returncode == 0 and "complete already" in again.stderr
    plain = run_sra2("extract", images, "--out", "a.h5", *compute[:-2])
    assert "differs in" in one_line(plain, 2)

    def processes(out, ranks):  # each in turn fills what is its own
        jobs = [
            prepare(images, Options(str(vavae), 16, latent_stats="compute", workers=0), Group())
            for _ in ranks
        ]
        writer = StoreWriter(out, jobs[0].info, jobs[0].source.names, jobs[0].labels)
        for job, rank in zip(jobs, ranks, strict=True):
            fill(writer, job, Group(rank=rank, count=2))
        return writer

    writer = processes(tmp_path / "b.h5", [1, 0])
    writer.finish(computed(writer, writer.good))
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()
    killed = processes(tmp_path / "c.h5", [1])  # one of them; then all again, by one
    killed.close()
    assert (killed.state == 0).any()
    assert run_sra2("extract", images, "--out", "c.h5", *compute).returncode == 0
    assert (tmp_path / "c.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_statistics_of_few_images_are_none(tmp_path, digits_folder, images, run_sra2, vavae):
    compute = ("--vae", vavae, *SIXTEEN, "--latent-stats", "compute")
    line = one_line(run_sra2("extract", digits_folder, "--out", "a.h5", *compute), 2)
    assert "needs 100 images, not 96" in line and not (tmp_path / "a.h5.partial").exists()
    broken = tmp_path / "images"
    for file in images.glob("*/*.png"):
        copy = broken / file.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes() if file.stem != "003" else b"no image")
    line = one_line(run_sra2("extract", broken, "--out", "a.h5", *compute), 1)
    assert "needs 100 images, 99 are good" in line


def test_statistics_of_another_vae_are_refused_before_data_are_read(run_sra2, images, stats):
    (images / "a" / "odd.png").write_bytes(b"no image")
    try:
        line = one_line(
            run_sra2(
                *("extract", images, "--out", "a.h5", "--vae", "digits", "--resolution", 32),
                *("--device", "cpu", "--latent-stats", stats),
            ),
            2,
        )
    finally:
        (images / "a" / "odd.png").unlink()
    assert "statistics of 8 channels, the VAE has 16" in line


def test_check_tells_of_a_scale_that_does_not_fit(tmp_path, run_sra2, digits_store):
    right = run_sra2("extract", "--check", digits_store, "--json")
    assert "warning" not in right.stderr
    result = json.loads(right.stdout)
    assert len(result["channel_std"]) == 16 and 0.5 < result["latent_std"] < 2
    store = Store(digits_store)
    z = scaled_latents(store.moments(np.arange(96)), None, scale=store.info.scale, shift=0.0)
    assert np.allclose(result["channel_std"], z.std(dim=(0, 2, 3)), rtol=0.2)


@pytest.mark.parametrize("factor, warned", [(1.0, False), (0.18215, True), (10.0, True)])
def test_check_warns_outside_a_half_and_two(tmp_path, run_sra2, factor, warned):
    latents = tmp_path / "latents"
    latents.mkdir()
    dice = np.random.default_rng(0)
    for k in range(30):
        z = dice.normal(size=(8, 4, 4)) * STD.numpy()[:, None, None]
        np.save(latents / f"{k}.npy", np.concatenate([z, 0 * z]).astype(np.float32))
    vae = as_diffusers(
        *(tmp_path / "vae",),
        latents_mean=[0.0] * 8,
        latents_std=STD.tolist(),
        scaling_factor=factor,
    )
    both = ("--vae", vae, *SIXTEEN, "--latent-scale", "both")
    assert run_sra2("extract", latents, "--out", "a.h5", *both).returncode == 0
    done = run_sra2("extract", "--check", "a.h5", "--json")
    assert done.returncode == 0
    assert np.allclose(json.loads(done.stdout)["channel_std"], factor, rtol=0.2)
    assert ("deviation of 8 of 8 channels" in done.stderr) == warned


ROOT = FOLDER.parent.parent


@pytest.mark.parametrize("own", [True, False])
def test_a_network_of_others_is_decoded_by_its_statistics(tmp_path, capsys, vavae, own):
    golden = Golden("sit_vavae.npz")
    state = {k: v for k, v in golden.state_dict().items() if own or not k.startswith("bn.")}
    torch.save(state, tmp_path / "sit.pt")
    options = sample.Options(vae=str(vavae), num_heads=4, kind="repa")
    vae = sample.first_stage_of(options.open(tmp_path / "sit.pt"), options, device="cpu")
    assert ("says how latents were scaled" in " ".join(capsys.readouterr().err.split())) != own
    if own:
        assert np.allclose(vae.shift, golden["sd/bn.running_mean"])
        assert np.allclose(vae.scale, golden["sd/bn.running_var"].rsqrt())


SETTINGS = [
    *("data.vae=null", "data.classes=2", "data.channels=8", "data.latent=4"),
    *("model.patch=1", "model.depth=2", "model.width=24", "align.sra2.depth=1"),
    *("train.steps=2", "train.batch=4", "log.every=1", "log.save_every=2", "log.preview_every=2"),
]
SETS = [part for setting in SETTINGS for part in ("--set", setting)]


def test_scale_and_shift_of_a_store_are_used_everywhere(
    tmp_path, images, run_sra2, vavae, monkeypatch
):
    """extract → train, with previews → sample → figures: each decodes as the store scales."""
    seen = []
    decode = Vae.decode

    def recorded(self, z, **how):
        seen.append((self.scale, self.shift))
        return decode(self, z, **how)

    def scaled(moments, xi, *, scale, shift):
        seen.append((scale, shift))
        return scaled_latents(moments, xi, scale=scale, shift=shift)

    monkeypatch.setattr(Vae, "decode", recorded)
    monkeypatch.setattr(tokens, "scaled_latents", scaled)
    commands = {
        "extract": ("extract", images, "--out", "a.h5", "--vae", vavae, "--resolution", 16),
        "train": ("train", "--recipe", "digits-sra2", "--data", "a.h5", "--out", "run", *SETS),
        "sample": ("sample", "run", "--num", 2, "--steps", 2),
        "figures": ("figures", "pca", "run", "--image", images / "a" / "000.png"),
    }
    commands["extract"] += ("--latent-stats", "compute", "--preview")
    for name, command in commands.items():
        seen.clear()
        done = run_sra2(*command, "--device", "cpu")
        assert done.returncode == 0, (name, done.stderr)
        info = Store(tmp_path / "a.h5").info
        assert len(info.scale) == 8 and min(info.scale) > 0
        assert set(seen) == {(info.scale, info.shift)}, name
    assert list((tmp_path / "run" / "previews").glob("*.png"))


@pytest.mark.slow
def test_computed_statistics_under_kills_and_in_processes(tmp_path, images, vavae):
    def command(out, processes):
        return [
            *(sys.executable, "-m", "sra2cli", "extract", images, "--out", tmp_path / out),
            *("--vae", vavae, *SIXTEEN, "--latent-stats", "compute", "--processes", processes),
        ]

    texts = {n: [str(part) for part in command(f"{n}.h5", n)] for n in (1, 2)}
    for text in texts.values():
        assert finished(text).returncode == 0
    whole = (tmp_path / "1.h5").read_bytes()
    assert (tmp_path / "2.h5").read_bytes() == whole
    out, partial = tmp_path / "killed.h5", tmp_path / "killed.h5.partial"
    for number in range(3):
        text = [str(part) for part in command("killed.h5", 1 + number % 2)]
        process = subprocess.Popen(text, cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and not partial.exists():
            time.sleep(0.01)
        time.sleep(0.3 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for _ in range(50):  # processes that the kernel is still ending hold the lock
        last = finished(text)
        if "another extraction is writing" not in last.stderr:
            break
        time.sleep(0.2)
    assert last.returncode == 0, last.stderr
    assert out.read_bytes() == whole
