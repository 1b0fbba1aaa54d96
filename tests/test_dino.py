"""Fréchet and kernel distance on DINOv2's class token, on small random weights."""

import json

import numpy as np
import pytest
import torch
from conftest import one_line
from PIL import Image
from test_evaluate import pictures, small_extractor, write_folder
from transformers import Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from sra2cli.core.errors import SetupError
from sra2cli.encoders.image import load_encoder, load_for_class_token
from sra2cli.evaluation import networks
from sra2cli.evaluation.dino import CODE, SIZE, dino_extractor
from sra2cli.evaluation.metrics import frechet_distance, kernel_distance, statistics

SMALL = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 70, "patch_size": 14,
}  # fmt: skip
BOTH = ["--metrics", "fdd,kdd", "--offline", "--json"]


def write_dinov2(folder, seed=0, **changed):
    torch.manual_seed(seed)
    Dinov2Model(Dinov2Config(**SMALL | changed)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return write_dinov2(tmp_path_factory.mktemp("dino") / "one")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(
        networks, "inception_extractor", lambda weights, *, device: small_extractor()
    )


def result(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def cubic(at, old):
    """Weights (old,) of Keys' kernel (a = -0.75) at a place in cells; the border goes on."""
    weights = np.zeros(old)
    for cell in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
        d = abs(at - cell)
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        weights[min(max(cell, 0), old - 1)] += near if d <= 1 else far
    return weights


def test_the_feature_is_the_class_token_as_published(tmp_path):
    """By hand: PIL's bicubic resize of the whole image, ImageNet's numbers, and the position table
    read where DINOv2's own code reads it."""
    write_dinov2(tmp_path / "d", image_size=56)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    model = Dinov2Model.from_pretrained(tmp_path / "d").eval()
    table = model.embeddings.position_embeddings.detach()
    at = (np.arange(16) + 0.5) * 4 / 16.1 - 0.5
    read = torch.from_numpy(np.stack([cubic(place, 4) for place in at])).float()
    grid = torch.einsum("ri,cj,ijd->rcd", read, read, table[0, 1:].view(4, 4, -1))
    whole = torch.cat([table[:, :1], grid.reshape(1, 256, -1)], dim=1)
    model.embeddings.position_embeddings = torch.nn.Parameter(whole)
    resized = [Image.fromarray(i).resize((224, 224), Image.Resampling.BICUBIC) for i in images]
    x = np.stack([np.asarray(image) for image in resized]) / 255
    x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        tokens = model(pixel_values=torch.from_numpy(x).float().permute(0, 3, 1, 2))
    found = dino_extractor(str(tmp_path / "d"))
    torch.testing.assert_close(found.run(images)["dino"], tokens.last_hidden_state[:, 0])
    assert found.fingerprint == load_encoder(str(tmp_path / "d"), side=4).fingerprint
    assert found.about["size"] == SIZE and found.name == str(tmp_path / "d")


def test_what_has_no_class_token_or_cannot_see_224_pixels_is_refused(tmp_path):
    config = SiglipVisionConfig(**SMALL | {"image_size": 224, "patch_size": 32})
    SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    with pytest.raises(SetupError, match="has no class token"):
        load_for_class_token(str(tmp_path / "siglip"), size=224)
    write_dinov2(tmp_path / "odd", patch_size=15, image_size=60)
    with pytest.raises(SetupError, match="patches of 15, which do not divide 224"):
        load_for_class_token(str(tmp_path / "odd"), size=224)


HUB = """
import os, torch
def dinov2_vits14(*, pretrained=True):
    parts = [torch.nn.AvgPool2d(56), torch.nn.Flatten(), torch.nn.Linear(48, 5)]
    model = torch.nn.Sequential(*parts)
    if pretrained:
        file = os.path.join(torch.hub.get_dir(), "checkpoints", "dinov2_vits14_pretrain.pth")
        model.load_state_dict(torch.load(file))
    return model
"""


def test_torch_fidelitys_extractor_out_of_its_cache(run_sra2, tmp_path, monkeypatch):
    """The very features of torch-fidelity's class; what is missing or broken is said."""
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write_folder(tmp_path / "s", pictures(4))
    asked = ["eval", "s", "--ref", "s", "--metrics", "fdd", "--dino-model", "dinov2-vit-s-14"]
    line = one_line(run_sra2(*asked), 2)
    code, checkpoints = (tmp_path / "torch" / "hub" / x for x in (CODE, "checkpoints"))
    assert str(code) in line and "dinov2_vits14_pretrain.pth at" in line
    for folder in (code, checkpoints):
        folder.mkdir(parents=True)
    (code / "hubconf.py").write_text(HUB)
    torch.manual_seed(0)
    state = {"2.weight": torch.randn(5, 48), "2.bias": torch.randn(5)}
    torch.save(state, checkpoints / "dinov2_vits14_pretrain.pth")
    found = dino_extractor("dinov2-vit-s-14")
    load = torch.hub.load
    monkeypatch.setattr(torch.hub, "load", lambda _, name: load(str(code), name, source="local"))
    theirs = FeatureExtractorDinoV2("dinov2-vit-s-14", ["dinov2"])
    monkeypatch.setattr(torch.hub, "load", load)
    images = np.random.default_rng(0).integers(0, 256, (3, 300, 40, 3), dtype=np.uint8)
    (expected,) = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(found.run(images)["dino"], expected)
    assert found.widths == {"dino": 5} and "torch-fidelity" in found.about["through"]
    torch.save({**state, "2.bias": torch.full((5,), torch.nan)}, checkpoints / WEIGHTS)
    assert "holds values that are not finite" in one_line(run_sra2(*asked), 1)
    torch.save({"2.bias": state["2.bias"]}, checkpoints / WEIGHTS)
    assert "cannot load dinov2-vit-s-14" in one_line(run_sra2(*asked), 2)


WEIGHTS = "dinov2_vits14_pretrain.pth"


def test_both_metrics_are_those_of_the_features(run_sra2, tmp_path, dinov2):
    fake, real = pictures(20), pictures(24, seed=1)
    write_folder(tmp_path / "s", fake)
    write_folder(tmp_path / "ref", real)
    option = ["--dino-model", dinov2]
    found = result(run_sra2("eval", "s", "--ref", "ref", *BOTH, *option))
    network = dino_extractor(str(dinov2))
    a, b = (network.run(images)["dino"] for images in (fake, real))
    assert found["fdd"] == pytest.approx(frechet_distance(*(statistics(f.numpy()) for f in (a, b))))
    assert found["kdd"] == pytest.approx(kernel_distance(a, b))
    assert found["extractor"] == {
        "name": str(dinov2),
        "fingerprint": network.fingerprint,
        **network.about,
    }
    turned = result(run_sra2("eval", "s", "--ref", "ref", *BOTH, *option, "--batch", 7))
    assert turned["fdd"] == pytest.approx(found["fdd"], rel=1e-4)
    shown = run_sra2("eval", "s", "--ref", "ref", *BOTH[:3], *option)
    assert "fdd ↓" in shown.stdout and "kdd ↓" in shown.stdout


def test_saved_statistics_name_their_network(run_sra2, tmp_path, dinov2):
    """They serve it alone: another DINOv2, and files that do not say theirs, are refused."""
    write_folder(tmp_path / "s", pictures(20))
    write_folder(tmp_path / "ref", pictures(24, seed=1))
    option = ["--dino-model", dinov2]
    straight = result(run_sra2("eval", "s", "--ref", "ref", *BOTH, *option))
    save = ["--save-stats", "ref.npz", "--metrics", "fdd", *option, "--offline"]
    assert run_sra2("eval", "ref", *save).returncode == 0
    saved = dict(np.load("ref.npz"))
    assert {"mu_dino", "sigma_dino", "arr_0", "meta"} == set(saved)
    assert json.loads(str(saved["meta"]))["extractor"]["name"] == str(dinov2)
    found = result(run_sra2("eval", "s", "--ref", "ref.npz", *BOTH, *option))
    assert [found[m] for m in ("fdd", "kdd")] == pytest.approx([straight["fdd"], straight["kdd"]])
    assert found["reference_about"]["statistics_from_file"] == ["dino"]

    def refused(ref, *more):
        return one_line(run_sra2("eval", "s", "--ref", ref, *more), 2)

    other = ["--dino-model", write_dinov2(tmp_path / "two", seed=1)]
    assert "was made with another network" in refused("ref.npz", *BOTH, *other)
    np.savez("unsaid.npz", **{k: v for k, v in saved.items() if k != "meta"})
    assert "does not say which network its mu_dino is of" in refused("unsaid.npz", *BOTH, *option)
    np.savez("adm.npz", mu=np.zeros(12), sigma=np.eye(12), mu_s=np.zeros(9), sigma_s=np.eye(9))
    line = refused("adm.npz", "--metrics", "fdd", *option)
    assert "adm.npz has no mu_dino and sigma_dino, or images (arr_0): fdd" in line
    assert "adm.npz has no images (arr_0): kdd" in refused("adm.npz", "--metrics", "kdd", *option)


def test_images_of_an_adm_file_serve_both(run_sra2, tmp_path, dinov2):
    write_folder(tmp_path / "s", pictures(20))
    write_folder(tmp_path / "ref", pictures(24, seed=1))
    np.savez("adm.npz", arr_0=pictures(24, seed=1), mu=np.zeros(12), sigma=np.eye(12))
    option = ["--dino-model", dinov2]
    found = [result(run_sra2("eval", "s", "--ref", r, *BOTH, *option)) for r in ("ref", "adm.npz")]
    assert found[0]["fdd"] == pytest.approx(found[1]["fdd"])
    assert found[0]["kdd"] == pytest.approx(found[1]["kdd"])


def test_beside_inception_in_one_command(run_sra2, tmp_path, dinov2):
    """One pass over the images, and the numbers of two; saved statistics serve each network."""
    write_folder(tmp_path / "s", pictures(20))
    write_folder(tmp_path / "ref", pictures(24, seed=1))
    option = ["--dino-model", dinov2, "--offline", "--json"]

    def judged(names, ref):
        return result(run_sra2("eval", "s", "--ref", ref, "--metrics", names, *option))

    fdd = judged("fdd,kdd", "ref")
    fid = result(run_sra2("eval", "s", "--ref", "ref", "--metrics", "fid,is,kid", "--json"))
    save = ["--save-stats", "both.npz", "--metrics", "fid,fdd", *option]
    saved = result(run_sra2("eval", "ref", *save))
    assert saved["settings"]["metrics"] == []
    assert {"mu", "mu_s", "mu_dino"} <= set(np.load("both.npz"))
    for ref in ("ref", "both.npz"):
        both = judged("fid,fdd,is,kid,kdd", ref)
        for name, alone in (("fid", fid), ("is", fid), ("kid", fid), ("fdd", fdd), ("kdd", fdd)):
            assert both[name] == pytest.approx(alone[name]), (ref, name)
        assert both["extractor"]["name"] == "small"
        assert both["beside"] == [fdd["extractor"]]
        assert judged("fdd", ref)["fdd"] == pytest.approx(fdd["fdd"])
    other = write_dinov2(tmp_path / "two", seed=1)
    wrong = ["--metrics", "fid,fdd", "--dino-model", other]
    line = one_line(run_sra2("eval", "s", "--ref", "both.npz", *wrong), 2)
    assert f"was made with another network ({dinov2}) than {other}" in line
    reread = result(run_sra2("eval", "s", "--ref", "both.npz", "--metrics", "fid", "--json"))
    assert reread["fid"] == pytest.approx(fid["fid"])


def test_of_a_run(run_sra2, tmp_path, dinov2, digits_store, digits_folder):
    """Drawn and judged in one: the numbers of the folder that `sample` draws; known when asked
    again, and not of another network."""
    train = ["train", "--recipe", "digits-sit", "--data", digits_store, "--out", "run"]
    sets = ["train.steps=1", "train.batch=8", "log.preview_every=0"]
    assert run_sra2(*train, *(x for s in sets for x in ("--set", s))).returncode == 0
    draw = ["--num", 6, "--steps", 2]
    assert run_sra2("sample", "run", *draw, "--out", "drawn").returncode == 0
    judge = ["--ref", digits_folder, "--metrics", "fdd,kdd", "--json", "--dino-model", dinov2]
    folder = result(run_sra2("eval", "drawn", *judge))
    (row,) = result(run_sra2("eval", "run", *draw, *judge, "--batch", 4))["rows"]
    assert row["fdd"] == pytest.approx(folder["fdd"], rel=1e-4)
    assert row["kdd"] == pytest.approx(folder["kdd"], abs=1e-4)
    again = run_sra2("eval", "run", *draw, *judge, "--batch", 4)
    assert "already judged" in again.stderr
    judge[-1] = write_dinov2(tmp_path / "two", seed=1)
    (other,) = result(run_sra2("eval", "run", *draw, *judge, "--batch", 4))["rows"]
    assert other["extractor"]["fingerprint"] != row["extractor"]["fingerprint"]
    assert other["fdd"] != row["fdd"]


def test_refusals(run_sra2, tmp_path, dinov2):
    write_folder(tmp_path / "s", pictures(4))

    def refused(*arguments):
        return one_line(run_sra2("eval", "s", *arguments), 2)

    option = ["--dino-model", dinov2]
    assert "is for --metrics fdd or kdd" in refused("--metrics", "fid", "--ref", "s", *option)
    assert "compared with what?" in refused("--metrics", "fdd", *option)
    assert "two commands" in refused("--metrics", "fdd,fd-digits", "--ref", "s")
    gone = ["--metrics", "fdd", "--ref", "s", "--dino-model", "nobody/nothing", "--offline"]
    assert "cannot load the encoder 'nobody/nothing'" in refused(*gone)
