"""Runs that are told captions: training, prompts, processes, batches; refusals in one line."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finished, one_line, write_captioned
from test_train import assert_same, killed_run, run

from sra2cli.core.clock import scalars
from sra2cli.data.batches import Batches, to_batch
from sra2cli.data.conditions import CONDITIONS
from sra2cli.data.prompts import of_store, of_texts, read_prompts
from sra2cli.data.store import Store
from sra2cli.encoders.open import open_first_stage
from sra2cli.encoders.text import load_text_encoder
from sra2cli.models.build import shape_of
from sra2cli.models.checkpoints import export, load_model
from sra2cli.runs.network import open_network
from sra2cli.runs.run import Run
from sra2cli.training.assemble import prepare
from sra2cli.training.trial import Group

COUNT = 40
FEW = ["--steps", 3, "--num", 9, "--cfg", 2.5, "--solver", "euler", "--device", "cpu"]
SMALL = {"depth": 2, "width": 64, "heads": 2, "patch": 2}
SETS = [f"model.{k}={v}" for k, v in {"size": "custom", **SMALL}.items()]
SETS += ["data.channels=16", "train.batch=8", "train.steps=12", "log.every=1", "log.save_every=4"]
SETS += ["log.keep=9", "log.tensorboard=false"]
METHODS = {
    "sra2": ["align.sra2.depth=1"],
    "sra": ["align.sra.depth=1", "align.sra.teacher_depth=2"],
}


def caption(i: int) -> list[str]:
    """Of image i; the first has an empty one too, the second one that is cut."""
    more = {0: [""], 1: ["seven " * 9, "שלום 🙂"]}
    return [f"the digit {i % 10}", *more.get(i, [f"number {i % 10}"])]


@pytest.fixture(scope="module", params=[False, True], ids=["ids", "features"])
def store(request, tmp_path_factory) -> Path:
    return told_store(tmp_path_factory.mktemp("told") / "told.h5", features=request.param)


def told_store(path: Path, *, features: bool = False, fingerprint: str = "") -> Path:
    """Random moments as the digits' first stage makes them, with captions."""
    vae = open_first_stage("digits")
    own = {"vae": "digits", "vae_fingerprint": vae.fingerprint, "scale": vae.scale}
    own |= {"shift": vae.shift, "channels": 16, "latent": 8, "resolution": 32}
    captions = [caption(i) for i in range(COUNT)]
    words = load_text_encoder("words")
    if fingerprint:
        words.fingerprint = fingerprint
    write_captioned(path, captions, encoder=words, features=features, settings=own)
    return path


def training(store: Path, out: object, *sets: str, processes: int = 1, method="sra2") -> list:
    given = [*SETS, *METHODS[method], *sets]
    options = [part for setting in given for part in ("--set", setting)]
    start = ["train", "--recipe", "emoji-mmdit", "--data", store, "--out", out, *options]
    return [*start, "--processes", processes, "--device", "cpu"]


def in_processes(arguments: list) -> list[str]:
    return [sys.executable, "-m", "sra2cli", *map(str, arguments)]


def test_from_captions_to_pictures(run_sra2, store, tmp_path):
    sets = ["log.preview_every=12", "train.steps=12"]
    assert run_sra2(*training(store, "run", *sets)).returncode == 0
    assert (tmp_path / "run" / "previews" / "step-00000012.png").exists()
    checkpoint = Run(tmp_path / "run").checkpoint()
    assert checkpoint.weights("ema")["null_text"].abs().max() == 0  # of words: all padding
    drawn = {}
    for batch in (9, 2):
        to = tmp_path / f"by{batch}"
        done = run_sra2(
            "sample", "run", "--prompts", store, *FEW, "--batch", batch, "--out", to, "--json"
        )
        assert done.returncode == 0, done.stderr
        drawn[batch] = [p.read_bytes() for p in sorted(to.glob("0*.png"))]
    assert len(drawn[9]) == 9 and drawn[9] == drawn[2]
    about = json.loads((tmp_path / "by9" / "samples.json").read_text())
    assert all(text in caption(i) for i, text in enumerate(about["prompts"]))
    assert about["text_encoder"]["name"] == "words"
    lines = "the digit 3\n\n  number 4 \r\nline\u2028of a\x85caption\n"  # which ends none
    (tmp_path / "asked.txt").write_bytes(lines.encode())
    file = ["sample", "run", "--prompts", "asked.txt", *FEW, "--out", "file", "--json"]
    assert run_sra2(*[part for part in file if part not in ("--num", 9)]).returncode == 0
    about = json.loads((tmp_path / "file" / "samples.json").read_text())
    assert about["prompts"] == ["the digit 3", "number 4", "line\u2028of a\x85caption"]


def test_a_negative_prompt_and_the_empty_one(run_sra2, store, tmp_path):
    assert run_sra2(*training(store, "run", "train.steps=3")).returncode == 0
    ask = ["sample", "run", "--prompt", "the digit 3", *FEW[:2], "--num", 1, *FEW[4:]]
    pixels = {}
    for name, more in {"none": [], "empty": [""], "other": ["number 4"]}.items():
        negative = ["--negative-prompt", *more] if more else []
        assert run_sra2(*ask, *negative, "--out", name).returncode == 0
        pixels[name] = (tmp_path / name / "000000.png").read_bytes()
    assert pixels["none"] == pixels["empty"] != pixels["other"]
    said = run_sra2("sample", "run", "--prompt", "a " * 5000, *FEW[:2], "--out", "long")
    assert said.returncode == 0 and "longer than the 12 tokens" in said.stderr


def test_refusals(run_sra2, digits_store, tmp_path):
    store = told_store(tmp_path / "told.h5")
    assert "no captions" in one_line(run_sra2(*training(digits_store, "run")), 2)
    wide = run_sra2(*training(store, "run", "data.text_width=768"))
    assert "--set data.text_width=128" in one_line(wide, 2)
    assert run_sra2(*training(store, "run", "train.steps=1")).returncode == 0
    ask = ["sample", "run", "--num", 1]
    assert "--prompt TEXT" in one_line(run_sra2(*ask), 2)
    assert "told captions" in one_line(run_sra2(*ask, "--prompt", "a", "--labels", "1"), 2)
    assert "above 1" in one_line(run_sra2(*ask, "--prompt", "a", "--negative-prompt", "b"), 2)
    both = run_sra2(*ask, "--prompt", "a", "--prompts", store)
    assert "one of them" in one_line(both, 2)
    assert "no captions" in one_line(run_sra2(*ask, "--prompts", digits_store), 2)
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "no prompt" in one_line(run_sra2(*ask, "--prompts", "empty.txt"), 2)
    assert "cannot be read" in one_line(run_sra2(*ask, "--prompts", "nothing.txt"), 2)
    plain = ["train", "--recipe", "digits-sit", "--data", digits_store, "--out", "plain"]
    assert run_sra2(*plain, "--set", "train.steps=1", "--device", "cpu").returncode == 0
    refused = run_sra2("sample", "plain", "--num", 1, "--prompt", "a")
    assert "this one is not" in one_line(refused, 2)


def test_another_text_encoder_than_the_stores(run_sra2, tmp_path):
    store = told_store(tmp_path / "told.h5", fingerprint=16 * "f")
    refused = one_line(run_sra2(*training(store, "run")), 2)
    assert "'words'" in refused and "extract again" in refused


def test_steps_see_one_caption_of_each_image(tmp_path):
    """Which, by the clock; features from the store or from the encoder are the same."""
    stores = [told_store(tmp_path / f"{k}.h5", features=bool(k)) for k in (0, 1)]
    texts = []
    for path in stores:
        wanted = prepare(recipe_of(path), path, Group())
        raw = wanted.batches("cpu").raw(3, range(8))
        cpu = torch.device("cpu")
        batch = to_batch(raw, wanted.recipe, wanted.store, cpu, None, wanted.text_encoder)
        assert (raw.condition.text.dim() == 3) == (path is stores[1])
        texts.append(batch.condition.text)
    torch.testing.assert_close(texts[0], texts[1], rtol=0, atol=2e-3)  # float16 in the store


def recipe_of(store: Path):
    from sra2cli.config import recipe

    return recipe.load("emoji-mmdit", [*SETS, "data.classes=0"])


def test_captions_are_drawn_evenly(tmp_path):
    store = Store(told_store(tmp_path / "told.h5"))
    shape, rows = shape_of(recipe_of(store.path)), np.full(4000, 1)
    told = CONDITIONS["text"].of_rows(store, rows, None, scalars(0, 0, range(4000)), shape)
    found = [int((told.text == ids).all(1).sum()) for ids in store.captions.ids(np.arange(2, 5))]
    assert sum(found) == 4000 and min(found) > 1200  # of three captions


def test_prompts_are_functions_of_seed_and_number(tmp_path):
    store = Store(told_store(tmp_path / "told.h5"))
    prompts = of_store(store)
    some = prompts.texts([5, 45, 7], 3)
    assert some == [prompts.texts([i], 3)[0] for i in (5, 45, 7)]
    assert some[0] in caption(5) and some[1] in caption(5)
    assert {prompts.texts([i], s)[0] for i in (5, 45) for s in range(20)} == set(caption(5))
    assert of_texts(["a", "b"]).texts(range(3), 0) == ["a", "b", "a"]
    assert read_prompts(store.path).digest == prompts.digest != of_texts(["a"]).digest


def test_exports_and_fine_tuning_keep_the_empty_caption(run_sra2, store, tmp_path):
    assert run_sra2(*training(store, "run", "train.steps=2")).returncode == 0
    weights = Run(tmp_path / "run").checkpoint().path / "ema.safetensors"
    model = load_model(weights)
    assert model.config.text_encoder == "words" and model.null_text.shape == (12, 128)
    (tmp_path / "file").mkdir()
    file = tmp_path / "file" / "text.safetensors"
    file.write_bytes(weights.read_bytes())
    ask = ["--prompt", "number 4", *FEW[:2], "--num", 2, *FEW[4:]]
    assert run_sra2("sample", "run", *ask, "--out", "a").returncode == 0
    assert run_sra2("sample", file, *ask, "--vae", "digits", "--out", "b").returncode == 0
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in ("000000.png", "000001.png")
    )
    tuned = run_sra2(*training(store, "tuned", "train.steps=1"), "--init", file)
    assert tuned.returncode == 0, tuned.stderr
    begun, info = open_network(tmp_path / "run"), Store(store).info
    assert begun.other_data(info) is None
    other = replace(info, text_encoder="other", text_fingerprint=16 * "f")
    assert begun.other_data(other) == "captions read by 'other', not by 'words'"
    model.tell_null(model.null_text + 1)  # as another text encoder would have read it
    export(model, tmp_path / "other")
    refused = one_line(run_sra2("sample", "other", *ask, "--vae", "digits"), 2)
    assert "reads the empty caption otherwise" in refused


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_processes_kills_and_batches(method, tmp_path):
    """One process, two, and two that are killed end at the same bits; so do their pictures."""
    store = told_store(tmp_path / "told.h5")
    alone, whole, killed = (tmp_path / name for name in ("alone", "whole", "killed"))
    run(in_processes(training(store, whole, processes=2, method=method)))
    run(in_processes(training(store, alone, "train.micro_batch=4", method=method)))
    killed_run(
        in_processes(training(store, killed, processes=2, method=method)),
        killed,
        2,
        random.Random(0),
    )
    assert_same(whole, killed)
    assert_same(whole, alone)
    drawn = []
    for number, options in enumerate((["--batch", 9], ["--batch", 4, "--processes", 2])):
        to = tmp_path / f"samples{number}"
        ask = ["sample", whole, "--prompts", store, *FEW, *options, "--out", to]
        assert finished(in_processes(ask)).returncode == 0
        drawn.append([p.read_bytes() for p in sorted(to.glob("0*.png"))])
    assert len(drawn[0]) == 9 and drawn[0] == drawn[1]


def test_batches_do_not_depend_on_their_share(tmp_path):
    store = Store(told_store(tmp_path / "told.h5", features=True))
    wanted = prepare(recipe_of(store.path), store.path, Group()).recipe
    whole = Batches(store, wanted, [range(8)]).raw(2, range(8))
    part = Batches(store, wanted, [range(4, 8)]).raw(2, range(4, 8))
    assert torch.equal(whole.condition.text[4:], part.condition.text)


@pytest.mark.slow
def test_the_demo_of_captions_in_short(run_sra2, tmp_path, monkeypatch):
    """Eight steps instead of 2,400, one drawing of each prompt; run again does nothing twice."""
    from sra2cli.demo import text

    monkeypatch.setattr(text, "DRAWINGS", 1)
    first = run_sra2("demo", "--text", "--steps", 8)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "runs" / "demo-text"
    made = {p.name for p in out.iterdir()}
    assert {"report.md", "results.json", "loss.png", "samples.png", "held-out.txt"} <= made
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["run"] for row in rows] == list(text.RECIPES)
    assert rows[0]["emoji-reconstructions"]["emoji-top5"] > 0.99 > rows[0]["emoji-top5"]
    commands = [line for line in first.stderr.splitlines() if line.startswith("$ sra2 ")]
    assert len(commands) == 1 + 2 + 4
    stamp = (out / "emoji-mmdit" / "checkpoints" / "step-00000008").stat().st_mtime_ns
    assert run_sra2("demo", "--text", "--steps", 8).returncode == 0
    assert (out / "emoji-mmdit" / "checkpoints" / "step-00000008").stat().st_mtime_ns == stamp
