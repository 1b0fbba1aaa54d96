"""Guidance by a head of the network's own: closed forms, and as a user asks for it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import finished, one_line
from safetensors.torch import load_file

from sra2cli.config import recipe
from sra2cli.diffusion import path
from sra2cli.diffusion.guidance import SelfGuidance, guided
from sra2cli.models.build import build
from sra2cli.models.contract import Condition
from sra2cli.models.ema import Ema
from sra2cli.training.objective import build_heads
from sra2cli.training.train import train

SHORT = ["train.steps=4", "train.batch=8", "log.save_every=2", "log.keep_every=2", "log.keep=1"]


def tiny(*settings: str):
    wanted = recipe.load("digits-sra2", ["model.depth=2", "model.width=12", *settings])
    torch.manual_seed(0)
    model = build(wanted).eval()
    for p in model.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return model, build_heads(wanted, feature_width=None)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_head_that_knows_z_gives_the_true_velocity(kind):
    model, _ = tiny()
    z, noise = torch.randn(2, 3, 16, 8, 8, dtype=torch.float64)
    t = torch.full((3,), 0.3, dtype=torch.float64)
    x_t, v = path.interpolate(z, noise, t, kind)
    for scale in (0.0, 1.5):
        own = SelfGuidance(lambda tokens, c: z, "z", 2, scale, (0.1, 1.0), kind)
        found = guided(model, torch.arange(3), own=own)(x_t, 0.3, 0.3)
        plain = guided(model, torch.arange(3))(x_t, 0.3, 0.3)
        expected = v if scale == 0 else plain + 0.5 * (plain - v)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # t is float32 inside


@pytest.mark.parametrize("method", ["sra2", "internal"])
def test_both_passes_are_guided_by_their_own_tokens(method):
    settings = [] if method == "sra2" else ["align={internal: {depth: 1}}"]
    model, heads = tiny(*settings)
    head = heads[method]
    for p in head.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    x, y = torch.randn(2, 16, 8, 8, dtype=torch.float64), torch.tensor([3, 7])
    own = SelfGuidance(head.read, head.settings.reads, head.settings.depth, 1.4, (0.2, 1.0))
    with torch.no_grad():
        both = guided(model, y, scale=2.0, interval=(0.0, 0.7), own=own)
        alone = [guided(model, label, own=own)(x, 0.5, 0.5) for label in (y, torch.full((2,), 10))]
        expected = alone[1] + 2.0 * (alone[0] - alone[1])
        torch.testing.assert_close(both(x, 0.5, 0.5), expected, rtol=1e-5, atol=1e-5)
        # outside the interval of the one, and of the other
        plain = guided(model, y, scale=2.0, interval=(0.0, 0.7))
        assert torch.equal(both(x, 0.1, 0.1), plain(x, 0.1, 0.1))
        torch.testing.assert_close(both(x, 0.9, 0.9), guided(model, y, own=own)(x, 0.9, 0.9))
        # by hand
        out = model(x.float(), torch.full((2,), 0.5), Condition(y), taps=(head.settings.depth,))
        read = head.read(out.taps[head.settings.depth], out.c).double()
        weak = (x - read) / 0.5 if method == "sra2" else read
        v = out.v.double()
        torch.testing.assert_close(alone[0], v + 0.4 * (v - weak), rtol=1e-5, atol=1e-5)


def test_a_class_token_is_not_guided():
    size = [
        "model.size=custom",
        "model.width=24",
        "model.depth=2",
        "model.heads=2",
        "model.patch=2",
    ]
    data = ["data.latent=4", "data.classes=3", "align={sra2: {depth: 1}, reg: {depth: 1}}"]
    wanted = recipe.load("b-reg", [*size, *data])
    model = build(wanted).eval()
    head = build_heads(wanted, feature_width=model.shape.class_width)["sra2"]
    x = torch.randn(2, *model.shape.state, dtype=torch.float64)
    own = SelfGuidance(head.read, "z", 1, 1.7, (0.1, 1.0))
    with torch.no_grad():
        z, token = model.unpack(guided(model, torch.arange(2), own=own)(x, 0.5, 0.5))
        z_plain, token_plain = model.unpack(guided(model, torch.arange(2))(x, 0.5, 0.5))
    assert torch.equal(token, token_plain) and not torch.equal(z, z_plain)


def test_ema_of_a_head():
    _, heads = tiny()
    ema, decay = Ema(heads, 0.9), 0.9
    start = [p.detach().clone() for p in heads.parameters()]
    for p in heads.parameters():
        p.data.add_(1.0)
    ema.update(heads)
    for before, averaged in zip(start, ema.model.parameters(), strict=True):
        torch.testing.assert_close(averaged, before + (1 - decay))


@pytest.fixture(scope="module")
def run(digits_store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    train(recipe.load("digits-sra2", SHORT), digits_store, out)
    return out


def draw(run: Path, out: object) -> list[object]:
    settings = ["--num", 5, "--steps", 3, "--solver", "euler", "--cfg", 1.5]
    return ["sample", run, *settings, "--out", out]


def images(out: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(out).glob("0*.png"))}


def drawn(run_sra2, run: Path, out: object, *options: object) -> dict[str, bytes]:
    done = run_sra2(*draw(run, out), *options)
    assert done.returncode == 0, done.stderr
    return images(out)


def test_one_is_plain_to_the_bit_and_batches_do_not_matter(run_sra2, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = drawn(run_sra2, run, "plain")
    assert drawn(run_sra2, run, "one", "--self-guidance", 1) == plain
    guided = drawn(run_sra2, run, "guided", "--self-guidance", 1.4)
    assert guided != plain
    again = ["--self-guidance", 1.4, "--batch", 2, "--processes", 2]
    two = finished(
        [sys.executable, "-m", "sra2cli", *map(str, [*draw(run, tmp_path / "again"), *again])]
    )
    assert two.returncode == 0, two.stderr
    assert images("again") == guided
    early = drawn(run_sra2, run, "early", "--self-guidance", 1.4, "--self-interval", "0.9:1")
    assert early not in (plain, guided)
    about = json.loads((tmp_path / "early" / "samples.json").read_text())
    assert about["sampling"]["self_guidance"] == 1.4 and about["guide"]["method"] == "sra2"
    assert about["sampling"]["self_interval"] == [0.9, 1.0]
    about = json.loads((tmp_path / "one" / "samples.json").read_text())
    assert not [key for key in about["sampling"] if "self" in key] and "guide" not in about
    milestone = drawn(run_sra2, f"{run}@2", "milestone", "--self-guidance", 1.4)  # holds the EMAs
    assert milestone != guided
    folder = run / "checkpoints" / "step-00000002"
    assert {p.name for p in folder.glob("*.safetensors")} == {
        "ema.safetensors",
        "ema_heads.safetensors",
    }
    drawn(run_sra2, run, "newest", "--self-guidance", 1.4, "--weights", "model")


def test_sweep_over_both(run_sra2, run, tmp_path):
    asked = ["--self-guidance", "1,1.4", "--self-interval", "0.1:1,0.9:1", "--num", 20]
    done = run_sra2("eval", run, *asked, "--steps", 2, "--solver", "euler", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["point"] for row in rows] == ["1 0.1:1", "1 0.9:1", "1.4 0.1:1", "1.4 0.9:1"]
    assert rows[0]["fd-digits"] == rows[1]["fd-digits"] != rows[2]["fd-digits"]
    assert rows[2]["fd-digits"] != rows[3]["fd-digits"]


def test_refused_in_one_line(run_sra2, run, tmp_path, digits_store):
    ask = ["sample", run, "--num", 2, "--steps", 2, "--out", "x"]
    assert "0 < a < b" in one_line(
        run_sra2(*ask, "--self-guidance", 1.4, "--self-interval", "0:1"), 2
    )
    assert "from 0, not -1" in one_line(run_sra2(*ask, "--self-guidance", -1), 2)
    assert "needs --self-guidance" in one_line(run_sra2(*ask, "--self-interval", "0.5:1"), 2)
    sit = tmp_path / "sit"
    train(recipe.load("digits-sit", [*SHORT, "train.steps=2"]), digits_store, sit)
    refused = run_sra2("sample", sit, "--num", 2, "--self-guidance", 1.4)
    assert "sra2" in one_line(refused, 2)
    file = sit / "checkpoints" / "step-00000002" / "ema.safetensors"
    assert "--self-guidance" in one_line(run_sra2("sample", file, "--self-guidance", 2), 2)
    heads = run / "checkpoints" / "step-00000004" / "ema_heads.safetensors"
    asked = ["sample", heads, "--num", 2, "--steps", 2, "--out", "x"]
    assert "holds no network: give ema.safetensors" in one_line(run_sra2(*asked), 2)
    ask = ["eval", run, "--num", 4, "--steps", 2]
    alone = run_sra2(*ask, "--self-interval", "0.5:1")
    assert "--self-interval needs --self-guidance" in one_line(alone, 2)
    wrong = run_sra2(*ask, "--self-guidance", 2, "--self-interval", "0.5")
    assert "--self-interval is a:b" in one_line(wrong, 2)


def test_a_head_does_not_guide_where_it_was_not_trained(run_sra2, tmp_path, digits_store):
    out = tmp_path / "half"
    window = "align.sra2.window=[0, 0.5]"
    train(recipe.load("digits-sra2", [*SHORT, "train.steps=2", window]), digits_store, out)
    ask = ["--num", 2, "--steps", 2, "--self-guidance"]
    refused = one_line(run_sra2("sample", out, *ask, 1.4), 2)
    assert "--self-interval 0.1:1 reaches out of 0:0.5" in refused
    swept = run_sra2("eval", out, *ask, "1,1.4", "--self-interval", "0.1:0.5,0.1:0.6")
    assert "0.1:0.6 reaches out" in one_line(swept, 2)
    assert run_sra2("sample", out, *ask, 1.4, "--self-interval", "0.1:0.5").returncode == 0


def test_a_sweep_without_a_head_is_refused_before_it_draws(run_sra2, tmp_path, digits_store):
    sit = tmp_path / "sit"
    train(recipe.load("digits-sit", [*SHORT, "train.steps=2"]), digits_store, sit)
    for source in (sit, sit / "checkpoints" / "step-00000002" / "ema.safetensors"):
        refused = run_sra2("eval", source, "--num", 4, "--steps", 2, "--self-guidance", "1,1.4")
        assert "--self-guidance" in one_line(refused, 2)
    assert not list(sit.rglob("*evals"))


def test_a_run_begun_without_goes_on_without(run_sra2, run, tmp_path, digits_store):
    """As of an sra2 before there was an EMA of heads."""
    old = tmp_path / "old"
    shutil.copytree(run, old)
    for folder in (old / "checkpoints").iterdir():
        (folder / "ema_heads.safetensors").unlink()
        meta = json.loads((folder / "checkpoint.json").read_text())
        del meta["files"]["ema_heads.safetensors"]
        (folder / "checkpoint.json").write_text(json.dumps(meta))
    whole = tmp_path / "whole"
    longer = [s for s in SHORT if "steps" not in s] + ["train.steps=6"]
    train(recipe.load("digits-sra2", longer), digits_store, old)
    train(recipe.load("digits-sra2", longer), digits_store, whole)
    newest = "checkpoints/step-00000006"
    assert not (old / newest / "ema_heads.safetensors").exists()
    for name in ("model", "ema", "heads"):
        a, b = (load_file(out / newest / f"{name}.safetensors") for out in (old, whole))
        assert all(torch.equal(tensor, b[key]) for key, tensor in a.items())
    refused = run_sra2("sample", old, "--num", 2, "--self-guidance", 1.4)
    assert "begun without the EMA of heads" in one_line(refused, 2)


def test_the_ema_of_heads_is_resumed_to_the_same_bits(run, tmp_path, digits_store):
    """Stopped at step 2 and gone on, against never stopped."""
    settings = [s for s in SHORT if "steps" not in s]
    for steps in (2, 4):
        train(
            recipe.load("digits-sra2", [*settings, f"train.steps={steps}"]),
            digits_store,
            tmp_path / "resumed",
        )
    a, b = (
        load_file(out / "checkpoints/step-00000004/ema_heads.safetensors")
        for out in (tmp_path / "resumed", run)
    )
    assert a.keys() == b.keys() and all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def test_an_export_with_its_head_guides_as_the_run_does(run_sra2, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guided = drawn(run_sra2, run, "run", "--self-guidance", 1.4)
    assert run_sra2("export", run, "--to", "alone").returncode == 0
    refused = run_sra2("sample", "alone", "--num", 2, "--self-guidance", 1.4)
    assert "without `export --head`" in one_line(refused, 2)
    done = run_sra2("export", run, "--to", "with", "--head", "--json")
    assert done.returncode == 0, done.stderr
    assert "head.safetensors" in json.loads(done.stdout)["files"]
    assert run_sra2("export", run, "--to", "with", "--head").returncode == 0  # it is there
    for number, source in enumerate(("with", "with/model.safetensors")):
        assert drawn(run_sra2, source, f"x{number}", "--self-guidance", 1.4) == guided
    about = json.loads(Path("x0/samples.json").read_text())
    assert about["guide"]["method"] == "sra2"
    shutil.copy("with/head.safetensors", "alone/head.safetensors")  # of the same network
    assert drawn(run_sra2, "alone", "y", "--self-guidance", 1.4) == guided
    assert run_sra2("export", f"{run}@2", "--to", "other").returncode == 0
    shutil.copy("with/head.safetensors", "other/head.safetensors")
    wrong = run_sra2("sample", "other", "--num", 2, "--self-guidance", 1.4)
    assert "the head of another network" in one_line(wrong, 1)
    Path("alone/head.safetensors").write_bytes(b"nothing")
    damaged = run_sra2("sample", "alone", "--num", 2, "--self-guidance", 1.4)
    assert "is damaged" in one_line(damaged, 1)
