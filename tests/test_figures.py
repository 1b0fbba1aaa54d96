"""sra2 figures, as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line
from PIL import Image
from test_dino import write_dinov2

from sra2cli.config import recipe
from sra2cli.data.store import Store
from sra2cli.encoders.image import load_encoder
from sra2cli.extraction.extract import extract
from sra2cli.extraction.makers import Options
from sra2cli.figures.neighbours import cknna
from sra2cli.models.layers import patchify
from sra2cli.training.train import train


@pytest.fixture(scope="module")
def run(digits_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    settings = ["train.steps=4", "train.batch=8", "log.save_every=2", "log.tensorboard=false"]
    train(recipe.load("digits-sra2", settings), digits_store, out)
    return out


def test_pca_of_a_run_and_of_a_file(run_sra2, run, digits_folder):
    process = run_sra2("figures", "pca", run, "--index", 3, "--times", "0.2,0.8", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["blocks"] == [1, 2, 3, 4] and found["times"] == [0.2, 0.8]
    name = found["image"].replace("/", "-").removesuffix(".png")
    assert found["picture"] == str(run / "figures" / f"pca-{name}-step0000004.png")
    with Image.open(found["picture"]) as picture:
        assert picture.width > 600 and len(set(picture.convert("RGB").getdata())) > 100
    file = next(digits_folder.glob("3/*.png"))
    other = ["figures", "pca", f"{run}@2", "--image", file, "--label", 3, "--blocks", "1,4"]
    found = json.loads(run_sra2(*other, "--out", "here.png", "--json").stdout)
    assert found["image"] == file.name and found["blocks"] == [1, 4]
    assert found["source"].endswith("2 steps") and found["picture"] == "here.png"


def test_the_probe_finds_more_where_there_is_less_noise(run_sra2, run):
    process = run_sra2("figures", "probe", run, f"{run}@2", "--times", "0.1,0.9", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert len(found["results"]) == 2
    for result in found["results"]:
        r2 = {(row["block"], row["t"]): row["r2"] for row in result["rows"]}
        assert {block for block, _ in r2} == {0, 1, 2, 3, 4}
        assert r2[0, 0.1] > r2[0, 0.9] and r2[0, 0.1] > 0.5
        assert all(0 <= row["cka"] <= 1 for row in result["rows"])
    assert json.loads(Path(found["file"]).read_text())["results"] == found["results"]
    with Image.open(found["picture"]) as picture:
        assert picture.width > 600
    assert "block 4" in run_sra2("figures", "probe", run).stdout


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_dinov2(tmp_path_factory.mktemp("encoder") / "dinov2-tiny")


def test_the_probe_holds_tokens_beside_an_encoder(run_sra2, run, digits_folder, encoder, tmp_path):
    """The features of a store, or made of its images: the same numbers; the encoder is named."""
    options = Options(vae="digits", resolution=32, encoder=str(encoder))
    extract(digits_folder, tmp_path / "with.h5", options, device="cpu")
    common = ["figures", "probe", run, "--times", "0.1,0.9", "--encoder", encoder]
    stored = run_sra2(*common, "--data", "with.h5", "--out", "a.png", "--json")
    assert stored.returncode == 0, stored.stderr
    stored = json.loads(stored.stdout)["results"][0]
    made = run_sra2(*common, "--images", digits_folder, "--num", 96, "--out", "b.png", "--json")
    made = json.loads(made.stdout)["results"][0]
    network = load_encoder(str(encoder), side=4)
    assert made["encoder"] == {"name": str(encoder), "fingerprint": network.fingerprint}
    assert made["encoder"] == stored["encoder"] and made["neighbours"] == 10
    for a, b in zip(stored["rows"], made["rows"], strict=True):
        assert a == pytest.approx(b, abs=2e-3)
        assert all(abs(a[f"encoder_{name}"]) <= 1 for name in ("r2", "cka", "cknna"))
    store = Store(tmp_path / "with.h5")
    rows = np.arange(96)
    latents = store.moments(rows).chunk(2, dim=1)[0]
    features = store.features(rows).double()
    x0 = json.loads(run_sra2(*common[:3], "--data", "with.h5", "--times", "0", "--json").stdout)
    expected = cknna(patchify(latents, 2).double().mean(1) * store.info.scale, features.mean(1))
    found = run_sra2(*common, "--data", "with.h5", "--times", "0", "--json")
    (first, *_) = json.loads(found.stdout)["results"][0]["rows"]
    assert first["encoder_cknna"] == pytest.approx(expected, abs=1e-6)
    assert first["cknna"] == pytest.approx(
        1, rel=1e-4
    )  # the input without noise is the VAE's feature
    assert "encoder_cknna" not in x0["results"][0]["rows"][0]
    shown = run_sra2(*common, "--data", "with.h5").stdout
    assert "CKNNA with the VAE feature" in shown and "dinov2-tiny" in shown

    def refused(*more):
        return one_line(run_sra2("figures", "probe", run, *more), 2)

    assert "has no features of" in refused("--encoder", encoder)
    assert "(those of" in refused("--encoder", "other/name", "--data", "with.h5")
    assert "name one" in refused("--images", digits_folder)
    assert "is not the source of" in refused("--encoder", encoder, "--images", tmp_path)


def test_what_cannot_be_shown_is_refused(run_sra2, run, tmp_path):
    assert "blocks 1..4, no 9" in one_line(run_sra2("figures", "pca", run, "--blocks", "9"), 2)
    assert "numbers in [0, 1]" in one_line(run_sra2("figures", "pca", run, "--times", "2"), 2)
    assert "images 0..95, no 96" in one_line(run_sra2("figures", "pca", run, "--index", 96), 2)
    assert "--out is a .png" in one_line(run_sra2("figures", "pca", run, "--out", "x.txt"), 2)
    assert "needs 12 images" in one_line(run_sra2("figures", "probe", run, "--num", 5), 2)
    assert "no image x.png" in one_line(run_sra2("figures", "pca", run, "--image", "x.png"), 2)
    checkpoint = run / "checkpoints" / "step-00000004" / "ema.safetensors"
    about = json.loads((run / "run.json").read_text())
    lost = {**about, "store": {**about["store"], "path": str(tmp_path / "gone.h5")}}
    (run / "run.json").write_text(json.dumps(lost))
    try:
        assert "no longer at" in one_line(run_sra2("figures", "probe", run), 2)
        assert "no longer at" in one_line(run_sra2("figures", "probe", checkpoint), 2)
    finally:
        (run / "run.json").write_text(json.dumps(about))
