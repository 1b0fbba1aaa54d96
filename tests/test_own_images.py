"""docs/own-images.md is followed as printed, on a small folder; and what `sra2 suggest` chooses."""

import json
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import one_line
from documented import check
from PIL import Image

from sra2cli.config import recipe
from sra2cli.data.emoji import CLASSES, load_emoji
from sra2cli.suggest import suggest as room
from sra2cli.suggest.choose import choose
from sra2cli.suggest.look import Images, Machine

PAGE = Path(__file__).parent.parent / "docs" / "own-images.md"
LAPTOP = Machine(2, 16.0)
CARD = Machine(16, 128.0, "a GPU", 80.0)
SHORT = {  # what makes a command of the page short, and nothing else of it different
    "suggest": [],
    "vae": ["--steps", "3", "--batch", "4", "--workers", "0"],
    "extract": ["--workers", "0"],
    "train": [
        *("--set", "train.steps=4", "--set", "train.batch=4", "--set", "log.save_every=2"),
        *("--set", "log.keep_every=2", "--set", "log.preview_every=0"),
        *("--set", "log.tensorboard=false"),
    ],
    "eval": ["--num", "12", "--steps", "2"],
    "sample": ["--num", "4", "--steps", "2"],
}


def commands() -> list[list[str]]:
    """Those of the page's blocks that are marked as to be run."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture
def my_images(tmp_path, monkeypatch) -> Path:
    """Thirty emoji in ten folders; two cores, whatever this machine has."""
    emoji = load_emoji(64).part("train")
    for kind, name in enumerate(CLASSES):
        (tmp_path / "my-images" / name).mkdir(parents=True)
        for row in np.flatnonzero(emoji.labels == kind)[:3]:
            Image.fromarray(emoji.images[row]).save(tmp_path / "my-images" / name / f"{row}.png")
    monkeypatch.setattr(room, "machine", lambda device: LAPTOP)
    return tmp_path / "my-images"


def test_the_page_is_followed_as_printed(my_images, run_sra2, monkeypatch):
    from test_evaluate import small_extractor

    from sra2cli.evaluation import networks

    monkeypatch.setattr(
        networks, "inception_extractor", lambda weights, *, device: small_extractor()
    )
    told: list[str] = []
    lines = commands()
    assert [line[1] for line in lines] == list(SHORT)
    for line in lines:
        more = [] if line[1] == "suggest" else ["--device", "cpu"]
        done = run_sra2(*line[1:], *SHORT[line[1]], *more)
        assert done.returncode == 0, (line, done.stderr)
        if line[1] == "suggest":
            told = [said for said in done.stdout.splitlines() if said.startswith("sra2 ")]
            check("suggest", json.loads(run_sra2(*line[1:], "--json").stdout))
    shown = [shlex.join(line) for line in lines[1:]]
    assert told == [line.replace("--num 2992", "--num 30") for line in shown]
    assert Path("my-images-vae/reconstructions.png").exists()
    assert len(list(Path("runs/my-images/samples").rglob("grid.png"))) == 1


def test_the_recipe_of_the_second_path_is_one(tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "my-xl.yaml").write_text(block)
    found = recipe.load(str(tmp_path / "my-xl.yaml"))
    assert found.data.classes is None and found.model.size == "XL/2"
    assert found.path.kind == recipe.load("xl-sit").path.kind == "linear"


def seen(count: int, *, classes: int = 12, side: int = 500, captioned: int = 0) -> Images:
    each = count // classes if classes else 0
    return Images(count, classes, each, each, (side, side, side), captioned, 0)


@pytest.mark.parametrize(
    "images, machine, side, network, steps, batch",
    [
        (seen(2000), LAPTOP, 64, "SiT of 6 blocks, 96 wide", 6_200, 32),
        (seen(2000), Machine(16, 64.0), 64, "SiT of 8 blocks, 192 wide", 6_200, 32),
        (seen(100), LAPTOP, 64, "SiT of 6 blocks, 96 wide", 2_400, 32),
        (seen(2000, side=40), LAPTOP, 32, "SiT of 6 blocks, 96 wide", 6_200, 32),
        (seen(2000, side=20), LAPTOP, 32, "SiT of 6 blocks, 96 wide", 6_200, 32),
        (seen(2000), CARD, 256, "SiT-S/2", 12_500, 64),
        (seen(2000, side=200), CARD, 128, "SiT-S/2", 12_500, 64),
        (seen(50_000), CARD, 256, "SiT-B/2", 78_100, 256),
        (seen(50_000), Machine(8, 32.0, "a GPU", 8.0), 256, "SiT-S/2", 78_100, 256),
        (seen(1_200_000), CARD, 256, "SiT-XL/2", 400_000, 256),
        (seen(2000, classes=0, captioned=2000), LAPTOP, 64, "MMDiT-S/2", 6_200, 32),
        (seen(2000, classes=0, captioned=1900), LAPTOP, 64, "SiT of 6 blocks, 96 wide", 6_200, 32),
    ],
)
def test_what_fits(images, machine, side, network, steps, batch):
    found = choose(images, machine)
    assert (found.resolution, found.what) == (side, network)
    assert (found.train["steps"], found.train["batch"]) == (steps, batch)
    assert any(f"{side} px" in line for line in found.why)
    tree = {"model": found.network, "align": {"sra2": {"depth": found.depth}}}
    recipe.from_dict({**tree, "train": found.train, "log": room.log_of(steps), "name": "x"})


def test_small_classes_are_said():
    said = " ".join(choose(seen(120), LAPTOP).why)
    assert "the smallest class has 10 images" in said
    assert "smallest class" not in " ".join(choose(seen(2400), LAPTOP).why)


def test_a_folder_without_classes_and_one_with_captions(run_sra2, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "machine", lambda device: LAPTOP)
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (40 + i, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    plain = tmp_path / "a b"
    plain.mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(plain / file.name)
    (plain / "broken.png").write_bytes(b"no image")
    found = json.loads(run_sra2("suggest", plain, "--json", "--device", "cpu").stdout)
    assert found["images"]["sides"] == [40, 42, 45] and found["images"]["unreadable"] == 1
    assert found["images"]["classes"] == 0 and found["machine"]["cores"] == 2
    assert "--labels" not in " ".join(found["commands"]) and "'a b'" not in found["recipe"]
    assert found["commands"][0].startswith(f"sra2 vae '{plain}' --out a-b-vae --resolution 32")
    assert found["expected"]["train_minutes"] > 0
    (plain / "broken.png").unlink()
    for i in range(6):
        (plain / f"{i}.txt").write_text(f"picture {i}")
    options = ("--out", "told.yaml", "--vae", "emoji", "--json", "--device", "cpu")
    told = json.loads(run_sra2("suggest", plain, *options).stdout)
    assert told["images"]["captioned"] == 6 and told["expected"]["vae_minutes"] == 0
    extract, *_ = told["commands"]
    assert extract.startswith("sra2 extract") and extract.endswith("--text-encoder words")
    assert yaml.safe_load(Path("told.yaml").read_text())["model"]["kind"] == "mmdit"


def test_the_store_is_no_file_of_images(my_images, run_sra2):
    """Of my-images.h5 here, "exists: remove it" would be said of the images themselves."""
    with h5py.File("my-images.h5", "w") as file:
        for image in my_images.rglob("*.png"):
            name = str(image.relative_to(my_images))
            file[name] = np.frombuffer(image.read_bytes(), np.uint8)
    done = run_sra2("suggest", "my-images.h5", "--vae", "emoji", "--json", "--device", "cpu")
    extract, train, *_ = json.loads(done.stdout)["commands"]
    assert "extract my-images.h5 --out my-images-latents.h5 " in extract
    assert "--data my-images-latents.h5 " in train


def test_what_is_refused(my_images, run_sra2, tmp_path):
    assert "no image folder" in one_line(run_sra2("suggest", "nowhere"), 2)
    Path("my-images.yaml").write_text("seed: 3\n")
    assert "says something else" in one_line(run_sra2("suggest", my_images), 2)
    assert Path("my-images.yaml").read_text() == "seed: 3\n"
    (tmp_path / "z").mkdir()
    np.save(tmp_path / "z" / "0.npy", torch.zeros(4, 2, 2).numpy())
    assert "trained on images" in one_line(run_sra2("suggest", "z"), 2)
