"""Judging of images by their prompts: PickScore, CLIP score, what is refused and warned of."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN, one_line
from PIL import Image
from test_backbone_chains import here
from test_evaluate import pictures, small_extractor
from test_text_runs import FEW, METHODS, told_store, training
from tiny_text import save_clip
from transformers import AutoTokenizer, CLIPModel

from sra2cli.data.images import square_crop
from sra2cli.evaluation import network_judge, networks, pickscore
from sra2cli.evaluation.pickscore import clip_extractor, pickscore_extractor
from sra2cli.sampling.settings import PRESETS
from sra2cli.tables import ablate, methods, paper
from sra2cli.training import counting

COSTS = json.loads((GOLDEN / "costs_t2i.json").read_text())
BOTH = ["--metrics", "pickscore,clip-score"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two small CLIPs: PickScore's network, and that of clip-score."""
    root = tmp_path_factory.mktemp("clips")
    save_clip(root / "pick")
    save_clip(root / "clip", seed=1)
    return root


@pytest.fixture
def models(clips):
    return ["--pickscore-model", clips / "pick", "--clip-model", clips / "clip"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(
        networks, "inception_extractor", lambda weights, *, device: small_extractor()
    )


def write_samples(folder, images, prompts=None, **record):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    told = {} if prompts is None else {"prompts": prompts}
    about = {"num": len(images), "complete": True, "labels": None, **told, **record}
    (folder / "samples.json").write_text(json.dumps(about))


def prompts_of(count):
    return [f"a cat number {i}" for i in range(count)]


def result(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_golden(golden):
    g = golden("pickscore.npz")
    found = pickscore.pick_scores(g["image_embeds"], g["text_embeds"], g["logit_scale"])
    torch.testing.assert_close(found, g["scores"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.double().mean().float(), g["mean"], rtol=1e-5, atol=1e-4)
    seen = pickscore.pixel_values(g["image"].numpy(), 224)
    torch.testing.assert_close(torch.from_numpy(seen), g["pixel_values"], rtol=0, atol=1e-6)


def test_clip_score_is_never_below_zero():
    images = torch.tensor([[1.0, 0], [1, 0], [0, 2]])
    texts = torch.tensor([[3.0, 0], [-1, 0], [1, 1]])
    expected = torch.tensor([100.0, 0, 50 * 2**0.5])
    torch.testing.assert_close(pickscore.clip_scores(images, texts), expected)


def test_scores_are_those_of_the_whole_network(clips):
    """As CLIP itself pairs images and texts, with a mask or without."""
    images, prompts = pictures(5, side=36), ["a cat", "", "cat cat", "x" * 300, "שלום"]
    model = CLIPModel.from_pretrained(clips / "pick").eval()
    tokenizer = AutoTokenizer.from_pretrained(clips / "pick")
    words = tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    pixels = torch.from_numpy(np.stack([pickscore.pixel_values(i, 28) for i in images]))
    with torch.no_grad():
        out = model(pixel_values=pixels, **words)
    expected = out.logits_per_image.diagonal().double().mean()
    pick = pickscore_extractor(str(clips / "pick"))
    seen = pick.run(images)["pickscore"]
    assert pick.fits(seen, prompts)["pickscore"] == pytest.approx(float(expected), abs=1e-4)
    clip = clip_extractor(str(clips / "pick"))
    cosines = out.logits_per_image.diagonal() / model.logit_scale.detach().exp()
    found = clip.fits(clip.run(images)["clip-score"], prompts)["clip-score"]
    assert found == pytest.approx(float((100 * cosines.clamp(min=0)).mean()), abs=1e-4)
    assert pick.too_long(prompts) == [False, False, False, True, False]
    assert pick.fingerprint == clip.fingerprint


def test_all_in_one_command(run_sra2, tmp_path, clips, models):
    images, prompts = pictures(24), prompts_of(24)
    write_samples(tmp_path / "s", images, prompts)
    np.savez(tmp_path / "ref.npz", arr_0=pictures(30, seed=1))
    every = ["--metrics", "clip-score,fid,is,pickscore", "--ref", "ref.npz"]
    found = result(run_sra2("eval", "s", *every, *models, "--offline", "--json"))
    assert found["metric"] == "clip-score,fid,is,pickscore"
    alone = result(run_sra2("eval", "s", "--metrics", "fid,is", "--ref", "ref.npz", "--json"))
    assert [found[m] for m in ("fid", "is")] == [alone[m] for m in ("fid", "is")]
    pick = pickscore_extractor(str(clips / "pick"))
    seen = pick.run(images)["pickscore"]
    assert found["pickscore"] == pytest.approx(pick.fits(seen, prompts)["pickscore"], abs=1e-5)
    assert found["extractor"]["name"] == "small"
    assert {(e["name"], e["fingerprint"]) for e in found["beside"]} == {
        (str(clips / "pick"), pick.fingerprint),
        (str(clips / "clip"), clip_extractor(str(clips / "clip")).fingerprint),
    }
    assert any("fewer than the 30,000" in line for line in found["warnings"])
    turned = result(run_sra2("eval", "s", *BOTH, *models, "--json", "--batch", 5))
    assert turned["pickscore"] == pytest.approx(found["pickscore"], abs=1e-5)
    assert turned["extractor"]["name"] == str(clips / "pick") and turned["reference"] is None
    assert not any("50,000" in line or "30,000" in line for line in turned["warnings"])
    write_samples(tmp_path / "other", images, prompts[::-1])
    other = result(run_sra2("eval", "other", *BOTH, *models, "--json"))
    assert other["pickscore"] != turned["pickscore"]
    shown = run_sra2("eval", "s", *BOTH, *models)
    assert "pickscore ↑" in shown.stdout


def test_images_with_captions_of_their_own(run_sra2, tmp_path, models):
    """As of real images, which say what a score may reach; the first caption counts."""
    images, prompts = pictures(4), prompts_of(4)
    write_samples(tmp_path / "s", images, prompts)
    (tmp_path / "own").mkdir()
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        Image.fromarray(image).save(tmp_path / "own" / f"{i}.png")
        (tmp_path / "own" / f"{i}.txt").write_text(f"{prompt}\nanother\n")
    common = [*BOTH, *models, "--json"]
    own = result(run_sra2("eval", "own", "--captions", "auto", *common))
    drawn = result(run_sra2("eval", "s", *common))
    assert own["pickscore"] == drawn["pickscore"]
    assert "which these were not" in one_line(run_sra2("eval", "own", *common), 2)


def test_refusals(run_sra2, tmp_path, clips, models):
    write_samples(tmp_path / "s", pictures(4), prompts_of(4))
    write_samples(tmp_path / "bare", pictures(4))
    write_samples(tmp_path / "few", pictures(4), prompts_of(3))

    def refused(code, *arguments):
        return one_line(run_sra2("eval", *arguments), code)

    assert "which these were not" in refused(2, "bare", *BOTH, *models)
    assert "3 prompts of 4 images" in refused(1, "few", *BOTH, *models)
    assert "is for --metrics pickscore" in refused(2, "s", "--metrics", "clip-score", *models)
    no = ["--pickscore-model", tmp_path / "bare"]
    assert "--pickscore-model" in refused(2, "s", "--metrics", "pickscore", *no)
    assert "add fid" in refused(2, "s", *BOTH, *models, "--save-stats", "x.npz")


def test_what_would_mislead(run_sra2, tmp_path, models):
    prompts = ["caf\udce9", *prompts_of(28), "word " * 400]  # the first as a terminal may give it
    write_samples(tmp_path / "s", pictures(30), prompts, crop="uvit-center")
    x = np.random.default_rng(0).normal(size=(40, 12))
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x.T))
    common = ["--metrics", "fid,pickscore", *models[:2], "--json"]
    found = result(run_sra2("eval", "s", *common, "--ref", "theirs.npz"))
    said = "\n".join(found["warnings"])
    assert "mu and sigma alone" in said and "reads 1 of 30 prompts in part" in said

    (tmp_path / "theirs.npz").rename(tmp_path / "fid_stats_mscoco256_val.npz")
    write_samples(tmp_path / "bare", pictures(30))
    bare = ["eval", "bare", "--metrics", "fid", "--ref", "fid_stats_mscoco256_val.npz", "--json"]
    assert any("mu and sigma alone" in line for line in result(run_sra2(*bare))["warnings"])

    write_samples(tmp_path / "val", pictures(30, side=24, seed=1))
    save = ["--metrics", "is", "--save-stats"]
    assert run_sra2("eval", "val", *save, "adm.npz", "--crop", 16).returncode == 0
    assert run_sra2("eval", "val", *save, "own.npz", "--crop", "uvit-center:16").returncode == 0
    found = result(run_sra2("eval", "s", *common, "--ref", "adm.npz"))
    assert any("was cropped as adm-center" in line for line in found["warnings"])
    found = result(run_sra2("eval", "s", *common, "--ref", "own.npz"))
    assert not any("cropped" in line or "alone" in line for line in found["warnings"][:-1])
    expected = [square_crop(Image.fromarray(i), 16) for i in pictures(30, side=24, seed=1)]
    np.testing.assert_array_equal(np.load("own.npz")["arr_0"], np.stack(expected))


def test_of_a_run(run_sra2, tmp_path, models, monkeypatch):
    """Drawn and judged in one: the numbers of the folder; a kill goes on where it was."""
    store = told_store(tmp_path / "told.h5")
    sets = ["train.steps=2", "log.save_every=2"]
    assert run_sra2(*training(store, "run", *sets)).returncode == 0
    (tmp_path / "prompts.txt").write_text("\n".join(prompts_of(9)))
    told = ["--prompts", "prompts.txt", *[o for o in FEW if o not in ("--num", 9)]]
    assert run_sra2("sample", "run", *told, "--out", "drawn").returncode == 0
    folder = result(run_sra2("eval", "drawn", *BOTH, *models, "--json"))
    judge = ["eval", "run", *told, *BOTH, *models, "--batch", 4, "--json"]

    fill, written = network_judge.Parts.write, []

    def stopped(self, part, images):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(part)
        fill(self, part, images)

    monkeypatch.setattr(network_judge.Parts, "write", stopped)
    assert run_sra2(*judge).returncode != 0
    monkeypatch.setattr(network_judge.Parts, "write", fill)
    row = result(run_sra2(*judge))["rows"][0]
    for name in ("pickscore", "clip-score"):
        assert row[name] == pytest.approx(folder[name], abs=1e-5)
    assert "already judged" in run_sra2(*judge).stderr
    line = one_line(run_sra2("eval", "run", *FEW, *BOTH, *models), 2)
    assert "--prompt" in line


def test_table_4(run_sra2, tmp_path, models, monkeypatch):
    """Runs and checkpoints beside the paper's numbers, drawn of a store's captions; resumed."""
    monkeypatch.setattr(ablate, "run_cells", here)
    monkeypatch.setitem(METHODS, "none", [])
    store = told_store(tmp_path / "told.h5")
    sets = ["train.steps=1", "log.save_every=1"]
    for method in ("none", "sra2"):
        assert run_sra2(*training(store, method, *sets, method=method)).returncode == 0
    weights = tmp_path / "none" / "checkpoints" / "step-00000001" / "ema.safetensors"
    (tmp_path / "their.safetensors").write_bytes(weights.read_bytes())
    np.savez(tmp_path / "ref.npz", arr_0=pictures(30, side=32))
    how = ["--steps", 2, "--ref", "ref.npz", "--vae", "digits", "--device", "cpu", *models[:2]]
    compare = ["ablate", "t2i", "none@1", "sra2", "their.safetensors", "--prompts", store, *how]
    compare += ["--num", 9, "--out", "out", "--jobs", 1, "--json"]
    table = result(run_sra2(*compare))["tables"]["t2i"]
    assert table["metrics"] == ["fid", "pickscore"]
    ours = {row["label"]: row for row in table["rows"] if row["metrics"]}
    assert list(ours) == ["none@1 (none)", "sra2 (SRA 2)", "their.safetensors (none)"]
    values = [row["metrics"]["pickscore"]["mean"] for row in ours.values()]
    assert values[0] == values[2] != values[1]
    rows = {row["label"]: row["paper"] for row in table["rows"]}
    assert rows["paper: MMDiT + SRA 2"] == {"fid": 4.67, "pickscore": 20.92}
    assert rows["paper: MMDiT"] == {"fid": 5.08, "pickscore": 20.54}
    assert rows["SRA's paper: MMDiT + REPA, ODE 50"] == {"fid": 4.6, "pickscore": 20.88}
    text = (tmp_path / "out" / "t2i.md").read_text()
    assert "PickScore ↑" in text and "sampling steps: 2 (Table 4: 250)" in text
    assert "train.steps: 1 (paper: 150000)" in text and "sampling cfg" not in text
    assert "paper_pickscore" in (tmp_path / "out" / "t2i.csv").read_text()
    how = json.loads(next((tmp_path / "out" / "results").glob("sra2.*/*-*seed0*.json")).read_text())
    assert how["how"]["sampling"]["cfg"] == 2.0 and how["count"] == 9
    again = json.loads(run_sra2(*compare, "--dry-run").stdout)
    assert [cell["done"] for cell in again["cells"]] == [True, True, True]


def test_table_4_refuses(run_sra2, tmp_path, digits_store, models):
    told = told_store(tmp_path / "told.h5")
    assert run_sra2(*training(told, "text", "train.steps=1")).returncode == 0
    train = ["train", "--recipe", "digits-sit", "--data", digits_store, "--out", "classes"]
    sets = ["--set", "train.steps=1", "--set", "log.tensorboard=false"]
    assert run_sra2(*train, *sets).returncode == 0

    def refused(*arguments):
        return one_line(run_sra2("ablate", *arguments), 2)

    assert "--prompts" in refused("t2i", "text")
    assert "is told classes" in refused("t2i", "classes", "--prompts", told)
    assert "is told captions" in refused("systems", "text", "--ref", "r.npz")
    assert "compared with what" in refused("t2i", "text", "--prompts", told, *models[:2])
    assert "told captions: `ablate t2i`" in refused("systems", "text", "--prompts", told)
    assert "give some" in refused("t2i", "--prompts", told)
    wrong = ["--metrics", "clip-score", *models]
    assert "--pickscore-model is for" in refused("t2i", "text", "--prompts", told, *wrong)


def test_what_the_papers_tell():
    assert paper.text_to_image("MMDiT-L/2", "sra2", 150_000) == {
        "method": "sra2",
        "fid": 4.67,
        "pickscore": 20.92,
        "source": "paper",
    }
    assert paper.text_to_image("MMDiT-L/2", "repa", 150_000) is None
    assert paper.text_to_image("MMDiT-L/2", "sra2", 100_000) is None
    assert paper.text_to_image("MMDiT-S/2", "sra2", 150_000) is None
    assert PRESETS["t2i"] == {"solver": "em", "steps": 250, "last_step": 0.04, "cfg": 2.0}


def test_while_training(run_sra2, tmp_path, clips, digits_store, monkeypatch):
    monkeypatch.setattr(networks, "PICKSCORE", str(clips / "pick"))
    told = told_store(tmp_path / "told.h5")
    judge = ["log.eval_every=1", "log.eval_metrics=pickscore", "log.eval_num=4", "log.eval_steps=2"]
    assert run_sra2(*training(told, "x", "train.steps=1", *judge)).returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").open()]
    (row,) = [row for row in rows if row.get("event") == "eval"]
    assert np.isfinite(row["pickscore"]) and row["count"] == 4
    plain = ["train", "--recipe", "digits-sit", "--data", digits_store, "--out", "y"]
    sets = [part for setting in judge for part in ("--set", setting)]
    assert "which these were not" in one_line(run_sra2(*plain, *sets), 2)


def within(found: float, expected: float) -> None:
    assert abs(found / expected - 1) <= 1e-3


def test_counts():
    text = counting.text_cost("openai/clip-vit-large-patch14")
    expected = COSTS["clip_vit_l14_text_77"]
    within(text.parameters, expected["params"])
    within(text.macs / 1e9, expected["gmacs"])
    found, expected = counting.pickscore_cost(), COSTS["pickscore_clip_vit_h14"]
    within(found["whole"].parameters, expected["params"])
    within(found["vision"].parameters, expected["vision_params"])
    within(found["vision"].macs / 1e9, expected["vision_gmacs_224"])
    within(found["text"].parameters, expected["text_params"])
    within(found["text"].macs / 1e9, expected["text_gmacs_77"])
    assert counting.text_cost("words").macs == 0


def test_cost_shows_what_reading_captions_adds(run_sra2):
    share = methods.text_share("MMDiT-L/2")
    expected = COSTS["clip_vit_l14_text_77"]["overhead_percent_when_run_in_the_step"]
    within(share["gmacs_percent"], expected)
    assert methods.text_share("XL/2") is None
    shown = run_sra2("cost", "--model", "MMDiT-S/2", "--baseline", "sit", "--no-measure")
    assert "123.1M parameters, 6.65 GMACs a caption" in " ".join(shown.stderr.split())


def test_counted_in_the_step(run_sra2, tmp_path):
    told = told_store(tmp_path / "told.h5")
    planned = result(run_sra2(*training(told, "x", "train.steps=1"), "--dry-run", "--json"))
    assert planned["text_encoder_gmacs"] == 0  # words are looked up
    stored = told_store(tmp_path / "stored.h5", features=True)
    planned = result(run_sra2(*training(stored, "x", "train.steps=1"), "--dry-run", "--json"))
    assert "text_encoder_gmacs" not in planned
