"""The Inception network, with random weights: loaded, checked and run as the published ones."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import one_line
from PIL import Image

from sra2cli.core.errors import SetupError
from sra2cli.evaluation import inception


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """Weights of torch-fidelity's network that keep the scale of activations."""
    import torch_fidelity.feature_extractor_inceptionv3 as theirs

    network = theirs.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        model = network("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def accepted(random_weights, monkeypatch):
    """The random weights, as if they were the published ones."""
    _, digest = inception_bytes(random_weights)
    monkeypatch.setattr(inception, "SHA256", digest[:8])
    return random_weights


def inception_bytes(path):
    import hashlib

    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()


def images_of(count, side=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_features_are_those_of_a_forward_pass_by_hand(accepted):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    images = images_of(3)
    extractor = inception.inception_extractor(accepted)
    found = extractor.run(images)
    assert {k: v.shape[1] for k, v in found.items()} == extractor.widths
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in found.values())
    assert extractor.fingerprint == inception_bytes(accepted)[1]

    m = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(accepted)
    )
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = (resize(x, size=(299, 299), align_corners=False) - 128) / 128
    for layer in (m.Conv2d_1a_3x3, m.Conv2d_2a_3x3, m.Conv2d_2b_3x3, m.MaxPool_1):
        x = layer(x)
    for layer in (m.Conv2d_3b_1x1, m.Conv2d_4a_3x3, m.MaxPool_2, m.Mixed_5b, m.Mixed_5c):
        x = layer(x)
    for layer in (m.Mixed_5d, m.Mixed_6a, m.Mixed_6b, m.Mixed_6c):
        x = layer(x)
    branch = m.Mixed_6d.branch1x1
    spatial = torch.relu(branch.bn(branch.conv(x)))  # (3, 192, 17, 17)
    assert spatial.shape == (3, 192, 17, 17)
    by_hand = np.stack([spatial[i, :7].numpy().transpose(1, 2, 0).ravel() for i in range(3)])
    assert np.array_equal(found["spatial"].numpy(), by_hand)
    x = m.Mixed_7c(m.Mixed_7b(m.Mixed_7a(m.Mixed_6e(m.Mixed_6d(x)))))
    pool = m.AvgPool(x).flatten(1)
    assert torch.equal(found["pool"], pool)
    assert torch.allclose(found["logits"], pool @ m.fc.weight.T, atol=1e-6)


def test_weights_are_checked_before_anything_is_unpickled(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(SetupError, match="its SHA-256 begins with"):
        inception.inception_extractor(path)
    assert not (tmp_path / "exploded").exists()
    assert inception.SHA256 == "6726825d"
    torch.save({"fc.weight": torch.zeros(2)}, path)
    monkeypatch.setattr(inception, "SHA256", "")
    with pytest.raises(SetupError, match="does not hold the weights of Inception"):
        inception.inception_extractor(path)


def test_weights_are_looked_for_in_torchs_cache(run_sra2, tmp_path, monkeypatch, accepted):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    place = tmp_path / "home" / "hub" / "checkpoints" / inception.WEIGHTS
    for i, image in enumerate(images_of(2)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    line = one_line(run_sra2("eval", ".", "--metrics", "is"), 2)
    assert str(place) in line and "https://" in line and "--inception" in line
    place.parent.mkdir(parents=True)
    place.symlink_to(accepted)
    assert inception.inception_extractor().fingerprint == inception_bytes(accepted)[1]


def test_eval_against_a_reference_that_eval_saved(run_sra2, tmp_path, accepted):
    """Folder → reference; the same images as an .npz score 0 against it, others do not."""
    pixels = images_of(6)
    (tmp_path / "data").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "data" / f"{i:02d}.png")
    made = run_sra2("eval", "data", "--save-stats", "ref.npz", "--weights", accepted, "--json")
    assert made.returncode == 0, made.stderr
    assert set(np.load(tmp_path / "ref.npz")) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s", "meta"}
    assert np.array_equal(np.load(tmp_path / "ref.npz")["arr_0"], pixels)

    np.savez(tmp_path / "same.npz", arr_0=pixels)
    np.savez_compressed(tmp_path / "other.npz", arr_0=images_of(6, seed=1) // 2)
    results = []
    for name in ("same", "other"):
        judged = run_sra2(
            "eval", f"{name}.npz", "--ref", "ref.npz", "--weights", accepted, "--json"
        )
        assert judged.returncode == 0, judged.stderr
        results.append(json.loads(judged.stdout))
        assert "rank" in judged.stderr and "50,000" in judged.stderr
    same, other = results
    assert list(same["settings"]["metrics"]) == ["fid", "sfid", "is", "precision", "recall"]
    assert same["fid"] == pytest.approx(0, abs=1e-6) and same["precision"] == same["recall"] == 1
    assert other["fid"] > 1 and other["sfid"] > 0.1 and other["is"] > 1
    assert same["extractor"]["fingerprint"] == inception_bytes(accepted)[1]
    assert same["reference_about"]["sha256"] == inception_bytes(tmp_path / "ref.npz")[1]
    assert (
        same["samples_about"]["pixels_sha256"]
        == json.loads(made.stdout)["samples_about"]["pixels_sha256"]
    )
