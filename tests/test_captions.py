"""Captions: how a store holds them, where they come from, and how they are extracted."""

import csv
import json
import tarfile
import unicodedata
import zipfile

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Letters, one_line, write_captioned
from PIL import Image

from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.processes import Group
from sra2cli.data.images import CROPS
from sra2cli.data.sources import Choice, open_source
from sra2cli.data.sources import captions as listed
from sra2cli.data.store import Store
from sra2cli.encoders.text import load_text_encoder
from sra2cli.extraction import captions as extraction_captions
from sra2cli.extraction import encode
from sra2cli.extraction.extract import extract, fill, open_writer
from sra2cli.extraction.makers import Options

LONG = "very " * 2000 + "long"
CAPTIONS = [("a red bus", "ein roter Bus"), (LONG,), ("", "שלום עולם", "🚲 🏽 naïve"), ("a\nb",)]
FLAT = [caption for those in CAPTIONS for caption in those]


def test_captions_come_back_as_they_are(tmp_path):
    store = write_captioned(tmp_path / "a.h5", CAPTIONS)
    store.verify()
    captions = store.captions
    assert captions is not None and not captions.has_features and len(captions) == 7
    assert [tuple(captions.of(row)) for row in range(4)] == CAPTIONS
    assert [captions.text(number) for number in range(7)] == FLAT
    numbers = np.array([6, 0, 0, 3])
    ids = captions.ids(numbers)
    assert ids.dtype == torch.int64
    assert np.array_equal(ids, Letters().tokens([FLAT[k] for k in numbers]))
    assert torch.equal(captions.null, Letters().encode(torch.full((6,), 256)))
    with pytest.raises(DataError, match="--text-features"):
        captions.features(numbers)


def test_features_lie_in_the_store_in_half_precision(tmp_path):
    captions = write_captioned(tmp_path / "a.h5", CAPTIONS, features=True).captions
    found = captions.features(np.array([2, 5, 2]))
    ids = torch.from_numpy(Letters().tokens([FLAT[2], FLAT[5], FLAT[2]]))
    assert found.dtype == torch.float16 and torch.equal(found, Letters().encode(ids).half())
    null = Letters().encode(torch.full((6,), 256)).half().float()
    assert captions.null.dtype == torch.float32 and torch.equal(captions.null, null)


def test_large_vocabularies_have_wider_ids(tmp_path):
    wide = Letters()
    wide.vocabulary = 1 << 17
    wide.tokens = lambda texts: np.full((len(texts), 6), (1 << 17) - 1)
    store = write_captioned(tmp_path / "a.h5", CAPTIONS, encoder=wide)
    assert store.captions.ids(np.array([3])).tolist() == [[(1 << 17) - 1] * 6]
    with h5py.File(tmp_path / "a.h5") as f:
        assert f["caption_ids"].dtype == np.int32
    small = Letters()
    small.vocabulary, small.tokens = 1 << 16, lambda texts: np.full((len(texts), 6), 65535)
    store = write_captioned(tmp_path / "b.h5", CAPTIONS, encoder=small)
    assert store.captions.ids(np.array([3])).tolist() == [[65535] * 6]
    with h5py.File(tmp_path / "b.h5") as f:
        assert f["caption_ids"].dtype == np.uint16


def test_a_caption_of_an_image_is_drawn_uniformly(tmp_path):
    captions = write_captioned(tmp_path / "a.h5", CAPTIONS).captions
    uniforms = (np.arange(9) + 0.5) / 9
    assert captions.pick(np.full(9, 2), uniforms).tolist() == [3] * 3 + [4] * 3 + [5] * 3
    assert captions.pick(np.array([0, 1, 3]), np.full(3, np.nextafter(1, 0))).tolist() == [1, 2, 6]


def test_rows_are_numbers_of_the_good_images(tmp_path):
    write_captioned(tmp_path / "a.h5", CAPTIONS)
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f["state"][1] = 2
        f.attrs["count"] = 3
    captions = Store(tmp_path / "a.h5").captions
    assert tuple(captions.of(1)) == CAPTIONS[2]
    assert captions.pick(np.array([1, 2]), np.zeros(2)).tolist() == [3, 6]


def test_a_store_of_empty_captions_alone(tmp_path):
    store = write_captioned(tmp_path / "a.h5", [("",), ("", "")])
    store.verify()
    assert store.captions.of(1) == ["", ""]


def test_other_captions_are_another_store(tmp_path, monkeypatch):
    from sra2cli.data import store_writer

    monkeypatch.setattr(store_writer.StoreWriter, "finish", lambda self: None)
    with pytest.raises(SetupError, match="no latent store"):
        write_captioned(tmp_path / "a.h5", CAPTIONS)
    other = [*CAPTIONS[:3], ("a\nc",)]
    with pytest.raises(SetupError, match=r"begun with other settings \(captions\)"):
        write_captioned(tmp_path / "a.h5", other)


def test_stores_without_captions_are_as_before(digits_store):
    store = Store(digits_store)
    assert store.captions is None
    with h5py.File(digits_store) as f:
        assert not {k for k in f.attrs if k.startswith(("text", "uncap"))}
        assert not {k for k in f if "caption" in k}


def damaged(name, change):
    def edit(f):
        values = f[name][()]
        change(values)
        f[name][...] = values

    return edit


DAMAGE = {
    "first": (damaged("caption_first", lambda v: v.__setitem__(1, 0)), "each of 4 images captions"),
    "last": (damaged("caption_first", lambda v: v.__setitem__(-1, 99)), "each of 4 images"),
    "ends": (
        damaged("caption_ends", lambda v: v.__setitem__(2, 0)),
        "'caption_ends' does not",
    ),
    "text": (damaged("caption_ends", lambda v: v.__setitem__(-1, 1 << 40)), "'captions' is uint8"),
    "missing": (lambda f: f.__delitem__("captions"), "'captions' is missing"),
    "width": (lambda f: f.attrs.modify("text_width", 5), "'null_caption' is float32"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_store_whose_captions_do_not_belong_together(tmp_path, kind):
    write_captioned(tmp_path / "a.h5", CAPTIONS)
    change, message = DAMAGE[kind]
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        change(f)
    with pytest.raises(DataError, match=message) as caught:
        Store(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)


def test_damage_inside_of_captions_is_found(tmp_path):
    write_captioned(tmp_path / "a.h5", CAPTIONS, features=True)
    sums = Store(tmp_path / "a.h5").checksums
    for name in ("captions", "caption_ids", "caption_features", "null_caption"):
        assert name in sums
        with h5py.File(tmp_path / "a.h5", "r+") as f:
            before = f[name][...]
            f[name][...] = before[::-1] + np.ones((), before.dtype)
        with pytest.raises(DataError, match=f"checksum of '{name}'"):
            Store(tmp_path / "a.h5").verify()
        with h5py.File(tmp_path / "a.h5", "r+") as f:
            f[name][...] = before


# Where they come from.

THREE = ("0.png", "1.png", "2.png")
AUTO = Choice(captions="auto")
SKIPPING = Choice(captions="auto", uncaptioned="skip")


def images(root, names=THREE):
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (k, 0, 0)).save(root / name)
    return root


def test_a_caption_is_a_line_of_the_text_beside_an_image(tmp_path):
    images(tmp_path, ("ant/0.png", "ant/1.png", "bee/0.png"))
    (tmp_path / "ant" / "0.txt").write_bytes("\ufeffone ant\r\n\n   \nzwei Ameisen".encode())
    (tmp_path / "ant" / "1.txt").write_text("שלום עולם 🐜")
    (tmp_path / "bee" / "0.txt").write_text(LONG)
    (tmp_path / "README.txt").write_text("of no image")
    source = open_source(tmp_path, AUTO)
    assert source.captions == [("one ant", "zwei Ameisen"), ("שלום עולם 🐜",), (LONG,)]
    assert source.labels == [0, 0, 1] and source.ignored == ["README.txt"]
    assert open_source(tmp_path).captions is None


def test_images_without_a_caption_are_refused_or_left_out(tmp_path):
    images(tmp_path, [f"{k}.png" for k in range(8)])
    (tmp_path / "3.txt").write_text("three")
    (tmp_path / "4.txt").write_text(" \n\t\n")
    with pytest.raises(SetupError) as caught:
        open_source(tmp_path, AUTO)
    assert "7 of 8 images have no caption (0.png, 1.png, 2.png, 4.png, 5.png, …)" in str(
        caught.value
    )
    assert "--skip-uncaptioned" in str(caught.value)
    source = open_source(tmp_path, SKIPPING)
    assert source.names == ["3.png"] and source.captions == [("three",)]
    assert source.uncaptioned == 7 and source.read(0) == (tmp_path / "3.png").read_bytes()
    assert "7 images without a caption are left out, as 0.png" in source.notes
    (tmp_path / "3.txt").unlink()
    with pytest.raises(SetupError, match="holds no captions"):
        open_source(tmp_path, SKIPPING)
    with pytest.raises(SetupError, match="--skip-uncaptioned is for"):
        open_source(tmp_path, Choice(uncaptioned="skip"))


ROWS = [("0.png", "zero"), ("in/1.png", 'eins, "zwei"\nund drei'), ("0.png", "null")]
EXPECTED = [("zero", "null"), ('eins, "zwei"\nund drei',)]


def write_metadata(root, suffix, rows=ROWS, column="text", names="file_name"):
    file = root / f"metadata{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".jsonl":
        lines = [json.dumps({names: name, column: text}) for name, text in rows]
        file.write_text("\n\n".join(lines) + "\n")
    elif suffix == ".csv":
        with file.open("w", newline="") as f:
            csv.writer(f).writerows([(names, column), *rows])
    else:
        pq.write_table(
            arrow.table({names: [n for n, _ in rows], column: [t for _, t in rows]}), file
        )
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_metadata_as_imagefolder_has_it(tmp_path, suffix):
    images(tmp_path / "a", ("0.png", "in/1.png"))
    file = write_metadata(tmp_path / "a", suffix)
    for choice in (AUTO, Choice(captions=str(file)), Choice(captions="text")):
        source = open_source(tmp_path / "a", choice)
        assert source.captions == EXPECTED and source.labels is None and not source.ignored
    with pytest.raises(SetupError, match=r"no column other \(it has file_name, text\)"):
        open_source(tmp_path / "a", Choice(captions="other"))
    images(tmp_path / "a", ("2.png",))
    with pytest.raises(SetupError, match=r"1 of 3 images have no caption \(2.png\)"):
        open_source(tmp_path / "a", AUTO)
    write_metadata(tmp_path / "a", suffix, [*ROWS, ("gone.png", "x")])
    assert (
        f"1 names in metadata{suffix} are of no image here, as gone.png"
        in open_source(tmp_path / "a", SKIPPING).notes
    )


@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_archives_hold_them_as_folders_do(tmp_path, pack):
    root = images(tmp_path / "a", ("0.png", "in/1.png"))
    for suffix in (".jsonl", ".txt"):
        if suffix == ".txt":
            (root / "metadata.jsonl").unlink()
            (root / "0.txt").write_text("zero\nnull")
            (root / "in" / "1.txt").write_text("eins")
            with pytest.raises(SetupError, match="beside class folders"):
                open_source(root, AUTO)
            (root / "0.png").rename(root / "in" / "0.png")
            (root / "0.txt").rename(root / "in" / "0.txt")
        else:
            write_metadata(root, suffix)
        file = tmp_path / f"{suffix[1:]}.{pack}"
        if pack == "tar":
            with tarfile.open(file, "w") as tar:
                tar.add(root, ".")
        else:
            with zipfile.ZipFile(file, "w") as archive:
                for each in sorted(root.rglob("*.*")):
                    archive.write(each, each.relative_to(root))
        a, b = open_source(root, AUTO), open_source(file, AUTO)
        assert (a.names, a.labels, a.captions) == (b.names, b.labels, b.captions)


def test_metadata_in_the_folder_of_a_split(tmp_path):
    for split in ("train", "test"):
        images(tmp_path / split, ("0.png",))
        write_metadata(tmp_path / split, ".jsonl", [("0.png", f"of {split}")], "caption")
    with pytest.raises(SetupError, match="several splits"):
        open_source(tmp_path, AUTO)
    for split in ("train", "test"):
        source = open_source(tmp_path, Choice(captions="auto", split=split))
        assert source.captions == [(f"of {split}",)]
    write_metadata(tmp_path, ".csv", [("train/0.png", "outer"), ("test/0.png", "outer")])
    source = open_source(tmp_path, Choice(captions="auto", split="train"))
    assert source.captions == [("of train",)]  # the innermost says it
    assert open_source(
        tmp_path, Choice(captions=str(tmp_path / "metadata.csv"), split="train")
    ).captions == [("outer",)]


def test_names_are_known_in_whatever_form_they_are_written(tmp_path):
    taken_apart = unicodedata.normalize("NFD", "é")
    images(tmp_path, (f"{taken_apart}/0.png",))
    write_metadata(tmp_path / taken_apart, ".jsonl", [("0.png", "a"), ("./0.png", "b")])
    assert open_source(tmp_path, AUTO).captions == [("a", "b")]


def test_a_table_in_each_folder_does_not_look_at_all_images_again(tmp_path, monkeypatch):
    for k in range(20):
        images(tmp_path / str(k), THREE)
        write_metadata(tmp_path / str(k), ".jsonl", [(name, f"{k}") for name in THREE])
    seen = []
    monkeypatch.setattr(listed, "plain", lambda name: seen.append(name) or name)
    source = open_source(tmp_path, AUTO)
    assert source.captions == [(name.split("/")[0],) for name in source.names]
    assert len(seen) < 4 * len(source)


def test_lists_of_captions_and_the_null_one(tmp_path):
    images(tmp_path, THREE)
    rows = [("0.png", ["", "  ", "a", None]), ("1.png", [""]), ("2.png", "")]
    write_metadata(tmp_path, ".jsonl", rows, "captions")
    with pytest.raises(SetupError, match=r"1 of 3 images have no caption \(2.png\)"):
        open_source(tmp_path, AUTO)
    source = open_source(tmp_path, SKIPPING)
    assert source.captions == [("", "a"), ("",)]
    assert "2 captions are empty, as of 0.png: they are the null caption" in source.notes


def test_webdataset_has_them_as_text_or_json(tmp_path):
    images(tmp_path, ("s/0.png", "s/1.png", "s/2.png"))
    (tmp_path / "s" / "0.txt").write_text("from text")
    (tmp_path / "s" / "0.json").write_text(json.dumps({"caption": "not taken", "label": 1}))
    (tmp_path / "s" / "1.json").write_text(json.dumps({"text": "b", "caption": "a", "label": 0}))
    (tmp_path / "s" / "2.json").write_text(json.dumps({"text": ["c", "d"], "alt": "\ud83d!"}))
    for k, names in enumerate((("0",), ("1", "2"))):
        with tarfile.open(tmp_path / f"{k}.tar", "w") as tar:
            for file in sorted((tmp_path / "s").iterdir()):
                if file.name[0] in names:
                    tar.add(file, file.name)
    choice = Choice(captions="auto", label="none")
    source = open_source(tmp_path / "{0,1}.tar", choice)
    assert source.captions == [("from text",), ("a",), ("c", "d")]
    assert not source.ignored
    with pytest.raises(SetupError, match=r"2 of 3 images .*0/0.png, 1/1.png"):
        open_source(tmp_path / "{0,1}.tar", Choice(captions="alt", label="none"))
    skipping = Choice(captions="alt", label="none", uncaptioned="skip")
    assert open_source(tmp_path / "{0,1}.tar", skipping).captions == [("?!",)]


def parquet(file, **columns):
    data = images(file.parent / "of").joinpath("0.png").read_bytes()
    count = len(next(iter(columns.values())))
    pq.write_table(arrow.table({"image": [data] * count, **columns}), file, row_group_size=2)
    return file


def test_parquet_has_a_column_of_them(tmp_path):
    file = parquet(tmp_path / "a.parquet", text=["a", None, "c"], alt=[["d", "e"], [], ["", "f"]])
    with pytest.raises(SetupError, match=r"1 of 3 images have no caption \(a.parquet/00000001\)"):
        open_source(file, AUTO)
    source = open_source(file, SKIPPING)
    assert source.captions == [("a",), ("c",)] and source.uncaptioned == 1
    assert source.names == ["a.parquet/00000000", "a.parquet/00000002"]
    assert source.read_many([1, 0]) == [source.read(1), source.read(0)]
    source = open_source(file, Choice(captions="alt", uncaptioned="skip"))
    assert source.captions == [("d", "e"), ("", "f")]
    with pytest.raises(SetupError, match=r"column image of .* holds binary, not texts"):
        open_source(file, Choice(captions="image"))
    with pytest.raises(SetupError, match="no such column"):
        open_source(file, Choice(captions="other"))
    several = parquet(tmp_path / "b.parquet", text=["a"], sentences=[["b"]])
    with pytest.raises(SetupError, match=r"several columns of captions \(text, sentences\)"):
        open_source(several, AUTO)
    assert open_source(several, Choice(captions="sentences")).captions == [("b",)]


def coco(file, names, offset=0):
    """Two captions an image, listed from the last to the first."""
    ids = [10 * k + 7 for k in range(len(names))]
    listed = [{"id": i, "file_name": name} for i, name in zip(ids, names, strict=True)]
    notes = [
        {"image_id": i, "id": 2 * i + k, "caption": f"{k} of {i + offset}"}
        for i in ids
        for k in (0, 1)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": listed[::-1], "annotations": notes[::-1]}))


def test_coco(tmp_path):
    root = images(tmp_path / "coco" / "train2014", THREE).parent
    images(root / "val2014", ("9.png",))
    coco(root / "annotations" / "captions_train2014.json", THREE)
    coco(root / "annotations" / "captions_val2014.json", ("9.png",), 100)
    expected = [(f"0 of {i}", f"1 of {i}") for i in (7, 17, 27)]
    for path, choice in (
        (root / "train2014", AUTO),
        (root, Choice(captions="auto", split="train2014")),
        (root, Choice(captions="annotations/captions_train2014.json", split="train2014")),
        (
            root / "train2014",
            Choice(captions=str(root / "annotations" / "captions_train2014.json")),
        ),
    ):
        source = open_source(path, choice)
        assert source.captions == expected and source.labels is None
    other = Choice(captions=str(root / "annotations" / "captions_val2014.json"))
    with pytest.raises(SetupError, match=r"lists no image of .*: its names are as 9.png, not 0"):
        open_source(root / "train2014", other)


def test_uvit_numbers_latents_as_coco_orders_its_images(tmp_path):
    train = tmp_path / "coco256_features" / "train"
    train.mkdir(parents=True)
    for name in ("0", "1", "2", "10", "0_0", "0_1", "10_0", "empty_context"):
        np.save(train / f"{name}.npy", np.zeros((8, 4, 4), np.float32))
    coco(tmp_path / "captions_train2014.json", [f"{k}.jpg" for k in range(11)])
    choice = Choice(captions=str(tmp_path / "captions_train2014.json"))
    with pytest.raises(SetupError, match="U-ViT's features of captions, not their texts"):
        open_source(train, AUTO)
    with pytest.raises(SetupError, match="4 numbered latents, and the captions are of 11 images"):
        open_source(train, choice)
    for k in range(3, 10):
        np.save(train / f"{k}.npy", np.zeros((8, 4, 4), np.float32))
    source = open_source(train, choice)
    assert len(source) == 11 and source.kind == "latents"
    at = source.names.index("10.npy")
    assert source.captions[at] == ("0 of 107", "1 of 107")
    assert "4 text features (U-ViT's i_k.npy) are passed over" in source.notes


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
FAULTS = {
    "both kinds": ({"metadata.csv": "file_name,text\n0.png,a", "0.txt": "b"}, "or --captions txt"),
    "two tables": ({"metadata.csv": "", "metadata.jsonl": ""}, "holds metadata.csv and metadata"),
    "no columns": ({"metadata.csv": ""}, r"no column file_name \(it has none\)"),
    "no names": ({"metadata.jsonl": '{"text": "a"}'}, r"no column file_name \(it has text\)"),
    "no text": ({"metadata.csv": "file_name,a\n0.png,b"}, "no column text or caption or captions"),
    "a number": ({"metadata.jsonl": '{"file_name": "0.png", "text": 3}'}, "row 1: a caption is a"),
    "no name": ({"metadata.jsonl": '{"file_name": 3, "text": "a"}'}, "row 1 has no file_name"),
    "other names": ({"metadata.csv": "file_name,text\nx,b"}, "names are as x, not 0.png"),
    "no JSON": ({"metadata.jsonl": "[1"}, "line 1: not an object"),
    "a list": ({"metadata.jsonl": "[1]"}, "line 1: not an object"),
    "a comma that is not quoted": (
        {"metadata.csv": "file_name,text\n0.png,a cat, sitting\n"},
        "row 1 has more fields than columns: put captions with commas in quotes",
    ),
    "a pointer beside": ({"0.txt": POINTER}, "0.txt is a pointer of Git LFS"),
    "a pointer that lists": ({"metadata.csv": POINTER}, "metadata.csv is a pointer of Git LFS"),
    "no parquet": ({"metadata.parquet": "PAR1"}, "damaged or not a parquet file"),
    "no UTF-8": ({"0.txt": b"\xff\xfea\0"}, r"0.txt is not UTF-8 \(byte 0\)"),
    "two of a key": ({"0.a.txt": "a", "0.b.txt": "b"}, "share their key"),
    "no JSON beside": ({"0.json": "{"}, "0.json is no JSON"),
    "a tree beside": ({"0.json": '{"text": {"a": 1}}'}, "a caption is a text"),
    "COCO without ids": ({"captions_a.json": '{"images": []}'}, "KeyError 'annotations'"),
    "COCO of lists": ({"captions_a.json": "[]"}, "not as COCO's"),
    "COCO with an id without end": (
        {"captions_a.json": '{"images": [{"id": 1e999, "file_name": "0.png"}], "annotations": []}'},
        "not as COCO's",
    ),
    "COCO of others": (
        {"captions_a.json": '{"images": [], "annotations": [{"image_id": 1, "caption": ""}]}'},
        "KeyError 1",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_wrong_with_captions_is_said(tmp_path, kind):
    files, message = FAULTS[kind]
    images(tmp_path, THREE)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SetupError, match=message) as caught:
        open_source(tmp_path, SKIPPING)
    assert "\n" not in str(caught.value)


def test_what_is_chosen_must_be_there(tmp_path):
    images(tmp_path, THREE)
    with pytest.raises(SetupError, match="there is no such file"):
        open_source(tmp_path, Choice(captions="nothing.json"))
    (tmp_path / "0.txt").write_text("a")
    for captions in ("json", "key"):
        with pytest.raises(SetupError, match=f"holds no captions, by --captions {captions}"):
            open_source(tmp_path, Choice(captions=captions))
    exact = Choice(captions="txt", uncaptioned="skip")
    (tmp_path / "0.other.txt").write_text("b")
    assert open_source(tmp_path, exact).captions == [("a",)]


# How they are extracted.


@pytest.fixture(scope="module")
def captioned_folder(tmp_path_factory):
    """Seven images of 40x32, two captions each."""
    root = tmp_path_factory.mktemp("captioned")
    for k in range(7):
        pixels = np.random.default_rng(k).integers(256, size=(32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k}.png")
        (root / f"{k}.txt").write_text(f"picture {k}\nthe same, {'very ' * k * k}noisy")
    return root


WITH_TEXT = ("--vae", "digits", "--resolution", 32, "--workers", 0, "--text-encoder", "words")


def test_extract_stores_captions_and_their_ids(run_sra2, captioned_folder, tmp_path):
    process = run_sra2("extract", captioned_folder, "--out", "a.h5", *WITH_TEXT, "--json")
    assert process.returncode == 0, process.stderr
    result, store = json.loads(process.stdout), Store(tmp_path / "a.h5")
    store.verify()
    assert (result["captions"], result["uncaptioned"], result["text_encoder"]) == (14, 0, "words")
    cut = "3 captions are longer than the 12 tokens that 'words' reads, as of 4.png"
    assert any(note.startswith(cut) for note in result["notes"])
    words = load_text_encoder("words")
    texts = [store.captions.text(k) for k in range(14)]
    assert texts[13] == "the same, " + "very " * 36 + "noisy"
    assert np.array_equal(store.captions.ids(np.arange(14)), words.tokens(texts))
    assert store.info.choice == {"captions": "auto"} and store.info.classes == 0
    assert store.info.text_fingerprint == words.fingerprint and not store.captions.has_features
    again = run_sra2("extract", captioned_folder, "--out", "a.h5", *WITH_TEXT)
    assert "complete already" in again.stderr
    shown = json.loads(run_sra2("extract", "--check", "a.h5", "--json").stdout)
    assert shown["some_captions"][0] == "0.png: picture 0 | the same, noisy"
    plain = run_sra2("extract", captioned_folder, "--out", "a.h5", *WITH_TEXT[:-2])
    assert "differs in text_fingerprint" in one_line(plain, 2)


def test_a_caption_that_has_changed_is_another_store(run_sra2, captioned_folder, tmp_path):
    for file in captioned_folder.iterdir():
        (tmp_path / "d" / file.name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / file.name).write_bytes(file.read_bytes())
    made = ("extract", "d", "--out", "a.h5", *WITH_TEXT)
    assert run_sra2(*made).returncode == 0
    (tmp_path / "d" / "3.txt").write_text("another")
    assert "differs in captions" in one_line(run_sra2(*made), 2)


def test_the_size_of_features_is_said_first(run_sra2, captioned_folder, tmp_path):
    made = ("extract", captioned_folder, "--out", "a.h5", *WITH_TEXT)
    process = run_sra2(*made, "--text-features", "--dry-run", "--json")
    result = json.loads(process.stdout)
    assert "text features: 14 x 12 x 128 in float16, 4.37e-05 GB" in process.stderr
    text = sum(file.stat().st_size - 1 for file in captioned_folder.glob("*.txt"))
    numbers = 8 * (14 + 8) + 14 * (12 * 4 + 12 * 128 * 2 + 1)  # ends, first; ids, features, state
    assert result["text_bytes"] == text + numbers and not (tmp_path / "a.h5").exists()
    fewer = json.loads(run_sra2(*made, "--dry-run", "--json").stdout)
    assert fewer["text_bytes"] == text + 8 * (14 + 8) + 14 * 12 * 4


def test_features_are_the_same_after_kills_and_for_any_processes(
    captioned_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(extraction_captions, "BLOCK", 4)
    options = Options(
        vae="digits", resolution=32, workers=0, text_encoder="words", text_features=True
    )
    extract(captioned_folder, tmp_path / "a.h5", options, device="cpu")
    words = load_text_encoder("words")
    captions = Store(tmp_path / "a.h5").captions
    numbers = np.arange(14)
    assert torch.equal(captions.features(numbers), words.encode(captions.ids(numbers)).half())
    assert not captions.null.any() and captions.null.shape == (12, 128)

    job = encode.prepare(captioned_folder, options, Group())
    writer = open_writer(tmp_path / "b.h5", job, Group())
    fill(writer, job, Group())
    job.text.fill(writer, Group(rank=1, count=2))  # and the other process is killed
    assert writer.captions_to_do.tolist() == [*range(4), *range(8, 12)]
    writer.close()
    del writer
    extract(captioned_folder, tmp_path / "b.h5", options, device="cpu")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_words_of_ascii_are_found_as_all_others():
    text = "".join(f"{chr(i)}a{chr(i)}{chr(i)}B7 " for i in range(128))
    words = load_text_encoder("words")
    words.length = 1000
    ascii, other = words.tokens([text, f"{text}é"])
    assert (ascii != other).sum() == 1


def test_what_needs_captions_says_so(run_sra2, captioned_folder):
    made = ("extract", captioned_folder, "--out", "a.h5", *WITH_TEXT[:-2])
    for options in (("--captions", "auto"), ("--text-features",)):
        assert "--text-encoder words" in one_line(run_sra2(*made, *options), 2)
    assert "--skip-uncaptioned is for" in one_line(run_sra2(*made, "--skip-uncaptioned"), 2)
    assert "--crop is one of" in one_line(run_sra2(*made, "--crop", "center"), 2)
    checked = run_sra2("extract", "--check", "a.h5", "--captions", "auto")
    assert "--captions is for images that are encoded" in one_line(checked, 2)


def test_uvit_crop_is_said_by_the_store(run_sra2, captioned_folder, tmp_path):
    made = ("extract", captioned_folder, *WITH_TEXT[:-2], "--crop", "uvit-center")
    assert run_sra2(*made, "--out", "a.h5").returncode == 0
    assert Store(tmp_path / "a.h5").info.crop == "uvit-center"
    options = Options(vae="digits", resolution=32, workers=0, crop="uvit-center")
    job = encode.prepare(captioned_folder, options, Group())
    image = Image.open(captioned_folder / "0.png")
    assert np.array_equal(job.chunks([range(1)])[0].values[0], CROPS["uvit-center"](image, 32))
    other = run_sra2("extract", captioned_folder, *WITH_TEXT[:-2], "--out", "a.h5")
    assert "differs in crop" in one_line(other, 2)


def test_uvit_latents_are_imported(run_sra2, tmp_path):
    train = tmp_path / "train"
    train.mkdir()
    for k in range(3):
        np.save(train / f"{k}.npy", np.full((32, 8, 8), k, np.float32))
        np.save(train / f"{k}_0.npy", np.zeros((77, 768), np.float32))
    coco(tmp_path / "annotations" / "captions_train.json", [f"{k}.jpg" for k in range(3)])
    made = ("extract", "train", "--out", "a.h5", *WITH_TEXT, "--logvar")
    assert run_sra2(*made).returncode == 0
    store = Store(tmp_path / "a.h5")
    assert store.captions.of(2) == ["0 of 27", "1 of 27"]
    assert torch.allclose(store.moments(np.array([2]))[0, 16:], torch.tensor(np.e).float())
