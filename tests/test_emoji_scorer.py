"""The packaged first stage and scorer of the emoji: what they are worth, as docs/emoji.md says."""

import json

import numpy as np
import pytest
import torch
from conftest import one_line
from PIL import Image

from sra2cli.data.digits import load_digits
from sra2cli.data.emoji import ASSETS, FIRST_STAGE, TONES, load_emoji, table, tone_of
from sra2cli.encoders.first_stage import scaled_latents
from sra2cli.encoders.vae import load_vae
from sra2cli.evaluation import emoji_scorer as room
from sra2cli.evaluation.emoji_scorer import RECONSTRUCTED, SCORER, load_scorer, vocabulary
from sra2cli.evaluation.extractors import emoji_extractor, features_of
from sra2cli.evaluation.metrics import frechet_distance
from sra2cli.evaluation.scores import wanted


@pytest.fixture(scope="module")
def held_out():
    return load_emoji().part("test")


@pytest.fixture(scope="module")
def reconstructed(held_out):
    vae = load_vae("emoji")
    moments = vae.encode(torch.from_numpy(held_out.images))
    return vae.decode(scaled_latents(moments, None, scale=vae.scale, shift=vae.shift))


@pytest.fixture(scope="module")
def distance_to_real():
    """fd-emoji of images, against the network's own reference."""
    extractor, want = emoji_extractor(), wanted(("fd-emoji",))
    assert extractor.stand_in is not None

    def statistics(images):
        return features_of(extractor, [images], want).statistics["emoji"]

    real = statistics(extractor.stand_in[1]())
    return lambda images: frechet_distance(statistics(images), real)


def test_the_first_stage(held_out, reconstructed):
    vae = load_vae("emoji")
    assert vae.fingerprint == FIRST_STAGE and vae.scale == 1.0 and vae.factor == 4
    error = (held_out.images.astype(float) - reconstructed) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 27
    z = vae.encode(torch.from_numpy(load_emoji().part("train").images[::9]))[:, :4]
    assert z.shape[1:] == (4, 8, 8)
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.1
    assert (z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.1


def test_sizes():
    folder = ASSETS / "emoji-vae"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1.5e6
    assert SCORER.stat().st_size < 1e6


def test_words_of_held_out_captions_are_known():
    for caption, _, split in table():
        if split == "test":
            assert set(room.words_of(caption)) <= set(vocabulary()), caption


def test_figures_of_reconstructions(held_out, reconstructed, distance_to_real):
    """Those that stand beside every figure of drawn pictures; it has seen none of these."""
    expected = dict(RECONSTRUCTED)
    distance = expected.pop("fd-emoji")
    found = room.judge_images(reconstructed, held_out.captions)
    assert found == pytest.approx(expected, abs=0.004)  # one picture of 292
    assert distance_to_real(reconstructed) == pytest.approx(distance, abs=0.05)


def test_pairs(held_out):
    images, captions = held_out.images[:60], held_out.captions[:60]
    found = room.judge_images(images, captions)
    assert found["emoji-top5"] >= found["emoji-top1"] > 0.5
    mixed = room.judge_images(images, captions[30:] + captions[:30])
    assert mixed["emoji-top1"] < 0.1
    ever_unknown = room.judge_images(images[:2], ["qwerty", "qwerty"])
    assert set(ever_unknown) == {"emoji-top1", "emoji-top5"}  # a prompt of no skin tone
    assert room.variants("man: dark skin tone, beard") == ["man: beard"] + [
        f"man: {tone} skin tone, beard" for tone in TONES
    ]
    assert room.variants("red apple") == []
    alone = room.judge_images(images[:1], [tone_of(captions[0])[0]])
    assert alone["emoji-tone"] == 0.0  # asked for without a tone, drawn with one


def test_fd_emoji(distance_to_real):
    real, distance = load_emoji().part("train").images, distance_to_real
    order = np.random.default_rng(0).permutation(len(real))
    floor = distance(real[order[:500]])
    assert 4 < floor < 6  # 5.00
    noise = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    assert distance(noise) > 4 * floor and distance(load_digits()[0][:300]) > 4 * floor


def test_eval_of_pictures_and_their_prompts(run_sra2, tmp_path, held_out):
    folder = tmp_path / "s"
    folder.mkdir()
    for i, image in enumerate(held_out.images[:40]):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    about = {"num": 40, "complete": True, "prompts": held_out.captions[:40]}
    (folder / "samples.json").write_text(json.dumps(about))
    command = ("eval", "s", "--metrics", "fd-emoji,emoji-text", "--json")
    result = json.loads(run_sra2(*command).stdout)
    expected = room.judge_images(held_out.images[:40], held_out.captions[:40])
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    assert result["fd-emoji"] > 0 and result["reference"] == "emoji to train on"
    assert result["emoji-reconstructions"] == RECONSTRUCTED
    assert any("few for a Frechet distance" in line for line in result["warnings"])
    about["prompts"] = ["a qwerty heart"] * 40
    (folder / "samples.json").write_text(json.dumps(about))
    process = run_sra2(*command)  # before anything is looked at
    assert "--metrics fd-emoji,emoji-top1,emoji-top5" in one_line(process, 2)
    process = run_sra2("eval", "s", "--metrics", "emoji-top1", "--json")
    assert process.returncode == 0 and "1 of 1 prompts in part alone" in process.stderr
    assert json.loads(process.stdout)["reference"] is None
    del about["prompts"]
    (folder / "samples.json").write_text(json.dumps(about))
    assert run_sra2(*command).returncode == 2


def test_the_model_judges_any_size():
    large = torch.from_numpy(load_emoji(64).images[:20])
    small = torch.from_numpy(load_emoji(32).images[:20])
    cosines = torch.cosine_similarity(load_scorer()(large), load_scorer()(small), dim=1)
    assert cosines.min() > 0.98
