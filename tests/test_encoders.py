"""REPA's encoder, run for real on small random weights, and its features in the store."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import one_line
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from sra2cli.core.errors import SetupError
from sra2cli.data.images import read_image
from sra2cli.data.sources import open_source
from sra2cli.data.store import Store
from sra2cli.encoders.image import load_encoder

WIDTH = 24


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A saved DINOv2 with random weights and a 5x5 position table."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "dinov2-tiny"
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_features_are_the_patch_tokens_of_the_normalised_image(dinov2):
    encoder = load_encoder(str(dinov2), side=5)  # its own grid: no resampling
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    features = encoder.features(images)
    x = images.permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    x = F.interpolate(x, (70, 70), mode="bicubic")
    model = Dinov2Model.from_pretrained(dinov2).eval()
    with torch.no_grad():
        expected = model(pixel_values=x).last_hidden_state[:, 1:]
    assert features.shape == (3, 25, WIDTH)
    torch.testing.assert_close(features, expected)


def test_positions_are_resampled_once(dinov2):
    encoder = load_encoder(str(dinov2), side=4)
    assert encoder.model.embeddings.position_embeddings.shape == (1, 17, WIDTH)
    assert encoder.features(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 16, WIDTH)
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_fingerprint_is_of_the_weights_as_given(dinov2):
    assert (
        load_encoder(str(dinov2), side=4).fingerprint
        == load_encoder(str(dinov2), side=5).fingerprint
    )


def test_what_is_no_encoder_says_so(tmp_path):
    with pytest.raises(SetupError, match="cannot load the encoder 'nobody/nothing'"):
        load_encoder("nobody/nothing", side=4, offline=True)


def test_extract_stores_features_and_training_reads_them(run_sra2, digits_folder, dinov2, tmp_path):
    common = ["extract", digits_folder, "--vae", "digits", "--resolution", 32, "--offline"]
    made = run_sra2(*common, "--out", "a.h5", "--encoder", dinov2, "--flip", "--json")
    assert made.returncode == 0, made.stderr
    store = Store(tmp_path / "a.h5")
    store.verify()
    encoder = load_encoder(str(dinov2), side=4)
    source = open_source(digits_folder)
    image = torch.tensor(read_image(source.root / source.names[5], 32))[None]
    for flip, expected in [(False, image), (True, image.flip(2))]:
        stored = store.features(np.array([5]), np.array([flip]))
        torch.testing.assert_close(
            stored.float(), encoder.features(expected), rtol=2e-3, atol=2e-3
        )  # float16

    train = ["train", "--recipe", "digits-sit", "--set", "train.steps=2", "--set", "train.batch=8"]
    repa = ["--set", "align.repa.depth=2", "--set", f"align.repa.encoder={dinov2}"]
    process = run_sra2(*train, *repa, "--data", "a.h5", "--set", "data.mirror=true", "--json")
    assert process.returncode == 0, process.stderr
    assert '"repa"' in process.stdout

    run_sra2(*common, "--flip", "--out", "plain.h5")
    mirrored = [*repa, "--set", "data.mirror=true", "--json"]
    online = run_sra2(
        *train, *mirrored, "--data", "plain.h5", "--images", digits_folder, "--out", "online"
    )
    assert online.returncode == 0, online.stderr
    stored, live = (json.loads(p.stdout)["last"] for p in (process, online))
    assert live["repa"] == pytest.approx(stored["repa"], abs=1e-4)  # the store is float16
    assert live["denoise"] == pytest.approx(stored["denoise"], abs=1e-5)
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    wrong = [*train, *mirrored, "--data", "plain.h5", "--images", tmp_path, "--out", "x"]
    assert "is not the source of plain.h5" in one_line(run_sra2(*wrong), 2)

    other = ["--set", "align.repa.depth=2"]
    line = one_line(run_sra2(*train, *other, "--data", "a.h5", "--out", "x"), 2)
    assert "the recipe wants facebook/dinov2-base" in line
    run_sra2(*common, "--out", "b.h5")
    line = one_line(run_sra2(*train, *other, "--data", "b.h5", "--out", "x"), 2)
    assert "has no encoder features, which REPA needs: extract with --encoder" in line
    mirror = ["--set", "data.mirror=true", "--data", "b.h5", "--out", "x"]
    assert "extract with --flip" in one_line(run_sra2(*train, *mirror), 2)
