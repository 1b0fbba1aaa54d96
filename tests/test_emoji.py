"""The packaged emoji: pictures, captions, classes, split."""

import json

import numpy as np
import pytest
from PIL import Image

from sra2cli.data import emoji as room
from sra2cli.data.emoji import (
    ASSETS,
    CLASSES,
    FIRST_STAGE,
    SHEET,
    TABLE,
    TONES,
    load_emoji,
    tone_of,
    write_folder,
)


def test_what_there_is():
    emoji = load_emoji(64)
    assert emoji.images.shape == (3284, 64, 64, 3) and emoji.images.dtype == np.uint8
    assert len(set(emoji.captions)) == 3284 and not any(c != c.strip() for c in emoji.captions)
    assert emoji.held_out.sum() == 292 and len(emoji.part("train").images) == 2992
    assert set(emoji.labels) == set(range(len(CLASSES)))
    for name in ("France", "Norway", "Spain", "United States"):
        assert f"flag: {name}" in emoji.captions
    assert not any(c.startswith(("family", "kiss:", "couple")) for c in emoji.captions)


def test_small_ones_are_the_mean_of_four_pixels():
    large, small = load_emoji(64).images[::97].astype(float), load_emoji(32).images[::97]
    mean = large.reshape(-1, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(mean - small).max() <= 0.5
    assert small[0, 0, 0].min() > 250  # on white
    heart = load_emoji().images[load_emoji().captions.index("red heart")]
    assert heart[14, 16, 0] > 180 and heart[14, 16, 1:].max() < 110


def test_held_out_is_one_tone_of_each():
    train, test = load_emoji().part("train"), load_emoji().part("test")
    assert not set(train.captions) & set(test.captions)
    known = [tone_of(caption) for caption in train.captions]
    held_out = [tone_of(caption) for caption in test.captions]
    assert len({base for base, _ in held_out}) == len(held_out)
    for base, tone in held_out:
        assert {t for b, t in known if b == base} == {"", *TONES} - {tone}
    assert {CLASSES[i] for i in test.labels} == {"hands", "people", "activities"}


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        ("waving hand: medium-dark skin tone", ("waving hand", "medium-dark")),
        ("man: dark skin tone, beard", ("man: beard", "dark")),
        ("flag: Norway", ("flag: Norway", "")),
    ],
)
def test_tone_of(caption, parts):
    assert tone_of(caption) == parts


def test_folders(tmp_path, monkeypatch):
    rows = room.table()[:400]  # faces and hands: the rest goes the same way
    monkeypatch.setattr(room, "table", lambda: rows)
    write_folder(tmp_path / "text", form="text")
    write_folder(tmp_path / "classes", form="class", resolution=64)
    emoji = load_emoji()
    for split in ("train", "test"):
        folder, part = tmp_path / "text" / split, emoji.part(split)
        text = (folder / "metadata.jsonl").read_text(encoding="utf-8")
        listed = [json.loads(line) for line in text.splitlines()]
        assert [row["text"] for row in listed] == part.captions
        assert {row["file_name"] for row in listed} == {file.name for file in folder.glob("*.png")}
        for row, image in zip(listed[::7], part.images[::7], strict=True):
            assert (np.asarray(Image.open(folder / row["file_name"])) == image).all()
    folders = {path.name: len(list(path.iterdir())) for path in (tmp_path / "classes").iterdir()}
    assert sum(folders.values()) == len(emoji.part("train").images)
    assert set(folders) == {CLASSES[i] for i in emoji.labels} == {"faces", "symbols", "hands"}
    assert Image.open(next((tmp_path / "classes" / "faces").iterdir())).size == (64, 64)


def test_extraction_needs_nothing_said(run_sra2, tmp_path, monkeypatch):
    rows = room.table()[:240]
    monkeypatch.setattr(room, "table", lambda: rows)
    write_folder(tmp_path / "c", form="class")
    made = ["--out", "c.h5", "--vae", "emoji", "--resolution", 32, "--device", "cpu", "--json"]
    process = run_sra2("extract", "c", *made)
    assert process.returncode == 0 and "warning" not in process.stderr
    about = json.loads(process.stdout)
    assert about["latents"] == [4, 8, 8] and about["vae_fingerprint"] == FIRST_STAGE


def test_sizes_and_licences():
    assert SHEET.stat().st_size < 4e6 and TABLE.stat().st_size < 2e5
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 8e6
    folder = SHEET.parent
    assert "SIL OPEN FONT LICENSE" in (folder / "OFL-1.1.txt").read_text(encoding="utf-8")
    assert "Apache License" in (folder / "Apache-2.0.txt").read_text(encoding="utf-8")
    assert "Google" in (folder / "NOTICE.txt").read_text(encoding="utf-8")
