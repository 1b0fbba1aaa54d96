"""Kinds of folders and archives that people have met: each is read whole, or refused, or says what
it leaves out; the same data the same way, whatever holds them."""

import io
import json
import os
import random
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import finished, one_line
from PIL import Image

from sra2cli.core.errors import DataError, SetupError, UserError
from sra2cli.data.sources import Choice, Source, open_source
from sra2cli.data.sources import layout as limits
from sra2cli.evaluation.image_sets import open_images

HOLDERS = ("folder", "zip", "tar", "h5")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (32, 32), value).save(buffer, "png")
    return buffer.getvalue()


def classes(*names: str, count: int = 2) -> dict[str, bytes | None]:
    """Images by path; each has its own grey."""
    return {
        f"{name}/{i}.png": png(10 * k + i) for k, name in enumerate(names) for i in range(count)
    }


def put(root: Path, kind: str, files: dict[str, bytes | None]) -> Path:
    """Files in a folder or an archive; None: an empty folder."""
    path = root / ("data" if kind == "folder" else f"data.{kind}")
    if kind == "folder":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).mkdir() if data is None else (path / name).write_bytes(data)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name + "/" * (data is None), data or b"")
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                archive.addfile(*member("./" + name, data))
    else:
        with h5py.File(path, "w") as file:
            for name, data in files.items():
                if data is None:
                    file.create_group(name)
                else:
                    file[name] = np.frombuffer(data, np.uint8)
    return path


def member(name: str, data: bytes | None = None, *, link: str = "", hard: bool = False):
    info = tarfile.TarInfo(name)
    info.size = len(data or b"")
    if link:
        info.type, info.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), link
    elif data is None:
        info.type = tarfile.DIRTYPE
    return info, io.BytesIO(data or b"")


def greys(source: Source) -> list[int]:
    return [Image.open(io.BytesIO(source.read(i))).getpixel((0, 0)) for i in range(len(source))]


def refusal(path: Path, **choice: str) -> str:
    with pytest.raises(UserError) as error:
        open_source(path, Choice(**choice))
    return f"{error.value.exit_code} {error.value}"


@pytest.mark.parametrize("kind", HOLDERS)
@pytest.mark.parametrize(
    ("files", "choice", "said"),
    [  # said: of a refusal, with its exit code; else the names of the classes
        ({**classes("ant", "cat"), "bee": None}, {}, "2 .*bee holds no images.*from folders"),
        ({**classes("ant", "cat"), "bee/0.xyz": b"x"}, {}, "2 .*bee holds no images"),
        (
            {**classes("ant", "cat"), "bee": None},
            {"classes_from": "folders"},
            ["ant", "bee", "cat"],
        ),
        (
            {
                **classes("ant", "bee"),
                ".x/0.png": png(9),
                "ant/.y/1.png": png(9),
                "__MACOSX/0": b"",
            },
            {},
            ["ant", "bee"],
        ),
        (classes("train/ant", "train/bee"), {}, ["ant", "bee"]),
        (classes("a/train/ant", "a/train/bee"), {}, ["ant", "bee"]),
        (classes("train/ant", "val/ant"), {}, r"2 .*several splits \(train, val\).*--split train"),
        (classes("Train", "test2017"), {}, "2 .*several splits"),
        (classes("train/ant", "train/bee", "val/ant"), {"split": "train"}, ["ant", "bee"]),
        (classes("train/ant", "val/ant"), {"classes_from": "folders"}, ["train", "val"]),
        ({**classes("train"), "bee": None}, {}, "2 .*bee holds no images"),
        (classes("train", "car", "bus"), {}, ["bus", "car", "train"]),
        (classes("ant/train", "ant/test", "bee/train"), {}, "2 .*splits in its classes.*--split"),
        (classes("ant/train", "ant/test", "bee/train"), {"split": "train"}, ["ant", "bee"]),
        (classes("ant", "bee"), {"split": "train"}, "2 --split train: .*no folder of images"),
        (classes("ant", "bee"), {"split": ""}, "2 --split : .*no folder of images"),
        (classes("ant", "bee"), {"label": "cls"}, "2 --label cls: .*has no .cls or .json"),
        ({**classes("ant", "cat"), "bee": None}, {"label": "none"}, []),
        (classes("ant", "bee"), {"classes_from": "dataset.json"}, "2 --classes-from .*has none"),
        (classes("ant", "bee"), {"image": "jpg"}, "2 --image jpg: no image.*there are png"),
        ({"0.png": png(0)}, {"classes_from": "folders"}, "2 --classes-from folders: .*no folders"),
        ({"0.png": png(0), "mean.npy": b""}, {}, "2 .*latents .mean.npy. beside images"),
        (classes("cafe\u0301", "caf\u00e9"), {}, "2 .*form of their accents"),
        ({"ant\\0.png": png(0), "bee\\0.png": png(1)}, {}, "2 .*backslashes|ant bee"),
    ],
)
def test_classes_are_those_of_the_folders_whatever_holds_them(tmp_path, kind, files, choice, said):
    path = put(tmp_path, kind, files)
    if isinstance(said, list):
        source = open_source(path, Choice(**choice))
        assert source.class_names == said and source.classes == len(said)
        first = [name.split("/")[0] for name in source.names]
        assert not said or [said[label] for label in source.labels] == first
        assert said or source.labels is None
    elif kind == "zip" and "backslash" in said:  # the format has slashes alone: so they are meant
        source = open_source(path)
        assert source.class_names == ["ant", "bee"] and "backslashes" in source.notes[0]
    else:
        text = refusal(path, **choice)
        assert re.match(said, text), text


@pytest.mark.parametrize("kind", HOLDERS)
def test_what_is_passed_over_is_counted_and_named(tmp_path, kind):
    files = {
        **classes("train/ant", "train/bee", "val/ant"),
        "train/ant/a.txt": b"x",
        "b.avi": b"x",
        "train/ant/.DS_Store": b"x",
    }
    source = open_source(put(tmp_path, kind, files), Choice(split="train"))
    text = "\n".join(source.notes)
    assert "2 images beside train/ are passed over" in text
    assert "2 files do not look like images and are ignored: 1 .avi (as b.avi), 1 .txt" in text
    assert "1 hidden entries (as train/ant/.DS_Store) are passed over" in text
    assert open_images(tmp_path / source.root, "samples", choice=Choice(split="train")).left_out


@pytest.mark.parametrize("names", [range(12), range(1, 4)])
def test_numbers_of_folders_that_are_not_those_of_their_classes_are_said(tmp_path, names):
    source = open_source(put(tmp_path, "folder", classes(*map(str, names), count=1)))
    said = "folder 10 is class 2" if len(names) == 12 else "folder 1 is class 0"
    assert said in source.notes[0]
    assert not open_source(put(tmp_path, "zip", classes(*map(str, range(10))))).notes


@pytest.fixture(params=["folder", "zip", "tar"])
def linked(request, tmp_path):
    """Links as a folder, a zip and a tar hold them."""

    def make(files: dict[str, bytes], links: dict[str, str]) -> Path:
        path = put(tmp_path, request.param, files)
        if request.param == "folder":
            for name, target in links.items():
                (path / name).parent.mkdir(exist_ok=True)
                (path / name).symlink_to(target)
        elif request.param == "zip":
            with zipfile.ZipFile(path, "a") as archive:
                for name, target in links.items():
                    info = zipfile.ZipInfo(name)
                    info.external_attr = (stat.S_IFLNK | 0o777) << 16
                    archive.writestr(info, target)
        else:
            with tarfile.open(path, "a") as archive:
                for name, target in links.items():
                    archive.addfile(*member(name, link=target))
        return path

    return make


def test_links_lead_to_the_images_they_name(linked):
    files = {**classes("ant", "bee"), "parts/9.png": png(9)}
    links = {
        "ant/link.png": "../bee/1.png",
        "bee/gone.png": "nowhere.png",
        "bee/part": "../parts",
        "cow": "bee",
        "ant/again": "../ant",
        "ant/annex": "/nowhere/annex",
        "bee/round.png": "round.png",
    }
    source = open_source(linked(files, links))
    assert source.class_names == ["ant", "bee", "cow", "parts"]
    bee = ["0.png", "1.png", "gone.png", "part/9.png", "round.png"]
    assert source.names == [
        *("ant/0.png", "ant/1.png", "ant/link.png"),
        *(f"{name}/{file}" for name in ("bee", "cow") for file in bee),
        "parts/9.png",
    ]
    assert source.read(2) == png(11)
    for name in ("bee/gone.png", "cow/gone.png", "bee/round.png"):
        with pytest.raises(DataError):
            source.read(source.names.index(name))
    assert source.passed_over == [
        "1 links that lead nowhere (as ant/annex) are passed over",
        "1 pipes, devices or links back to a folder they lie in (as ant/again) are passed over",
    ]


def test_a_class_that_is_a_link_to_nothing_does_not_vanish(linked):
    path = linked(classes("ant", "cat"), {"bee": "nowhere"})
    assert "bee holds no images" in refusal(path)


def test_hard_links_of_a_tar_have_the_bytes_of_their_targets(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(*member("./ant/0.png", png(1)))
        tar.addfile(*member("./bee/0.png", link="./ant/0.png", hard=True))
        tar.addfile(*member("./cat/0.png", png(2)))
        tar.addfile(*member("./cat/1.png", link="cat/gone.png", hard=True))
    source = open_source(tmp_path / "a.tar")
    assert source.labels == [0, 1, 2, 2] and source.read(1) == png(1)
    with pytest.raises(DataError, match="not there"):
        source.read(3)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(*member("0.png", png(1)))
        tar.addfile(*member("0.cls", b"7"))
        tar.addfile(*member("1.png", link="0.png", hard=True))
        tar.addfile(*member("1.cls", link="0.cls", hard=True))
    assert open_source(tmp_path / "b.tar").labels == [7, 7]


def test_pipes_in_a_folder_are_not_waited_for(tmp_path):
    path = put(tmp_path, "folder", classes("ant"))
    os.mkfifo(path / "ant" / "9.png")
    assert len(open_source(path)) == 2 and "pipes" in open_source(path).notes[0]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_several_archives_in_one_file_are_refused(tmp_path, kind):
    (tmp_path / "b").mkdir()
    one = put(tmp_path, kind, classes("ant")).read_bytes()
    two = put(tmp_path / "b", kind, classes("bee")).read_bytes()
    for name, data in (("both", one + two), ("end", one + two[:99]), ("whole", one)):
        (tmp_path / f"{name}.{kind}").write_bytes(data)
    (tmp_path / f"zeros.{kind}").write_bytes(one + bytes(999))
    assert len(open_source(tmp_path / f"zeros.{kind}")) == 2
    for name in ("both", "end"):
        assert "give them one by one" in refusal(tmp_path / f"{name}.{kind}")
    assert len(open_source(tmp_path / f"whole.{kind}")) == 2


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path, kind):
    for number, second in enumerate(("ant/0.png", "./ant//0.png", "ant/0.png/0.png")):
        path = tmp_path / f"{number}.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("ant/0.png", png(0))
                archive.writestr(second, png(1))
        else:
            with tarfile.open(path, "w") as archive:
                archive.addfile(*member("ant/0.png", png(0)))
                archive.addfile(*member(second, png(1)))
        assert refusal(path).startswith("2 ") and "0.png" in refusal(path)


PARTS = ("ant", "bee", "train", "val", "0", "10", ".h", "a b", "data", "test2017")
LEAVES = ("0.png", "1.png", "0.cls", "0.json", "x.txt", "n.npy", "0.seg.png", "dataset.json", "x")
CONTENT = {
    ".cls": [b"1", b"2", b"x"],
    ".json": [b'{"label": 3}', b"{}", b'{"labels": [["0.png", 1]]}', b'{"labels": null}'],
}
CHOICES = (
    *({}, {}, {}, {"split": "train"}, {"classes_from": "folders"}, {"label": "cls"}),
    *({"label": "none"}, {"image": "png"}, {"label": "json"}, {"classes_from": "dataset.json"}),
)


def test_the_same_files_give_the_same_images_or_the_same_refusal_in_anything(tmp_path):
    rng = random.Random(0)
    refused = 0
    for number in range(40):
        files: dict[str, bytes | None] = {}
        for _ in range(rng.randrange(1, 8)):
            folders = rng.choices(PARTS[: rng.choice([3, 5, 10])], k=rng.choice([0, 1, 1, 1, 2]))
            leaf = rng.choice(LEAVES[: rng.choice([2, 2, 4, 9])])
            data = rng.choice(CONTENT.get(Path(leaf).suffix, [png(1)]))
            files["/".join([*folders, leaf])] = data
        choice = Choice(**rng.choice(CHOICES))
        found = []
        for kind in HOLDERS:
            (tmp_path / f"{number}{kind}").mkdir()
            path = put(tmp_path / f"{number}{kind}", kind, files)
            try:
                source = open_source(path, choice)
                found.append((source.names, source.labels, source.class_names, source.notes))
            except UserError as error:
                text = re.sub(r"give one, as \S+ or", "choose one by", str(error))
                found.append((type(error), text.replace(str(path), "IT")))
        assert found == found[:1] * 4, files
        refused += isinstance(found[0][0], type)
    assert 10 < refused < 35


# -- dataset.json


def table(pairs: object) -> dict[str, bytes]:
    return {"dataset.json": json.dumps(pairs).encode()}


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_dataset_json_that_lists_more_than_is_there(tmp_path, kind):
    files = {f"00000/img{i}.png": png(i) for i in range(3)}
    listed = {"labels": [[f"00000/img{i}.png", i] for i in range(6)]}
    path = put(tmp_path, kind, {**files, **table(listed)})
    text = refusal(path)
    assert text.startswith("2 ") and "lists 6 images, 3 of which are not there" in text
    source = open_source(path, Choice(classes_from="dataset.json"))
    assert source.labels == [0, 1, 2] and source.classes == 6
    assert "3 images of dataset.json are not there" in source.notes[0]


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_dataset_json_names_files_as_other_systems_do(tmp_path, kind):
    nfd, nfc = "cafe\u0301.png", "caf\u00e9.png"
    files = {f"a/{nfd}": png(0), "a/1.png": png(1)}
    path = put(tmp_path, kind, {**files, **table({"labels": [[f"a\\{nfc}", 5], ["./a/1.png", 6]]})})
    source = open_source(path)
    assert dict(zip(source.names, source.labels, strict=True)) == {f"a/{nfd}": 5, "a/1.png": 6}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"labels": [["0.png", 0], ["1.png", 1], ["0.png", 1]]}', "lists 0.png twice"),
        ('{"labels": {"0.png": 0, "1.png": 1, "0.png": 1}}', "a key is there twice"),
        ('{"name": "mine"}', "not a list of .* under 'labels'"),
        ('{"labels": 5}', "not a list of"),
        ('{"labels": [["0.png"]]}', "not a list of"),
        ('{"labels": [["0.png", [0, 1]], ["1.png", 0]]}', "whole numbers"),
        ('{"labels": [["0.png", 0], ["1.png", 1' + "0" * 4000 + "]]}", "as many classes"),
        ('{"labels": [["0.png", 1' + "0" * 5000 + "]]}", "not a list of"),
        ("[" * 100_000, "nested too deep"),
        ('{"labels": [["a0.png", 3], ["b0.png", 4]]}', "has no label"),
    ],
)
def test_a_dataset_json_that_is_none_is_one_line(tmp_path, text, said):
    path = put(
        tmp_path, "folder", {"0.png": png(0), "1.png": png(1), "dataset.json": text.encode()}
    )
    with pytest.raises(SetupError, match=said):
        open_source(path)


def test_a_dataset_json_beside_class_folders(tmp_path):
    files = classes("ant", "bee", count=1)
    none = put(tmp_path, "folder", {**files, **table({"labels": None})})
    assert "--classes-from folders or" in refusal(none)
    assert open_source(none, Choice(classes_from="folders")).labels == [0, 1]
    listed = {"labels": [["ant/0.png", 4], ["bee/0.png", 3]]}
    some = open_source(put(tmp_path, "zip", {**files, **table(listed)}))
    assert some.labels == [4, 3] and "not of the folders" in some.notes[0]


# -- WebDataset


@pytest.mark.parametrize("kind", HOLDERS)
@pytest.mark.parametrize(
    ("files", "choice", "said"),
    [
        ({"0.cls": b"3", "0.json": b'{"class": 7}'}, {}, [3]),
        ({"0.cls": b"3", "0.json": b'{"label": "ant"}'}, {}, [3]),
        ({"0.cls": b"3", "0.json": b'{"class": 7}'}, {"label": "json"}, [7]),
        ({"0.json": b'{"a": 1, "b": 2}'}, {"label": "b"}, [2]),
        ({"0.json": b'{"a": 1, "b": 2}'}, {"label": "c"}, "--label c: no .json file"),
        ({"0.json": b'{"a": 1, "b": 2}'}, {}, None),
        ({"0.json": b'{"label": 0.9}'}, {}, "0.json holds no class number"),
        ({"0.json": b'{"label": true}'}, {}, "holds no class number"),
        ({"0.json": b'{"label": 1, "cls": 2}'}, {}, "holds label and cls: choose one by --label"),
        ({"0.json": b"[" * 100_000}, {}, "holds no class number"),
        ({"0.json": b'{"label": 1' + b"0" * 5000 + b"}"}, {}, "holds no class number"),
        ({"0.cls": b"1" + b"0" * 5000}, {}, "holds no class number"),
        ({"0.cls": b"\xff"}, {}, "holds no class number"),
        ({"0.cls": b"3", "1.cls": b"3", "1.jpg": b""}, {"image": "png"}, [3]),
        ({"0.seg.png": png(1), "0.cls": b"3"}, {}, "share the key '0'.*--image"),
        ({"0.seg.png": png(1), "0.cls": b"3"}, {"image": "png"}, [3]),
        ({"0.seg.png": png(1), "0.txt": b"3"}, {}, "share the key '0'"),
        ({"0.cls": b"3", "0.x.cls": b"4"}, {}, [3]),
        ({"0.y.cls": b"3", "0.x.cls": b"4"}, {}, "share their key"),
        ({"0.cls": b"3", **table({"labels": [["0.png", 1]]})}, {}, "choose by --classes-from"),
        ({"0.cls": b"3", **table({"labels": [["0.png", 1]]})}, {"label": "cls"}, [3]),
    ],
)
def test_labels_beside_the_images(tmp_path, kind, files, choice, said):
    path = put(tmp_path, kind, {"0.png": png(0), **files})
    if isinstance(said, str):
        with pytest.raises(SetupError, match=said):
            open_source(path, Choice(**choice))
    else:
        source = open_source(path, Choice(**choice))
        assert source.labels == said and greys(source) == [0]


def test_dotted_keys_do_not_take_the_last_label(tmp_path):
    files = {
        f"img.{i}.{end}": png(i) if end == "png" else b"%d" % i
        for i in range(3)
        for end in ("png", "cls")
    }
    path = put(tmp_path, "tar", files)
    assert "several images share the key 'img'" in refusal(path)
    apart = {name.replace("img.", "img_"): data for name, data in files.items()}
    assert open_source(put(tmp_path, "tar", apart)).labels == [0, 1, 2]


def test_labels_of_class_folders_and_of_json_are_chosen_between(tmp_path):
    files = {**classes("ant", "bee", count=1), "ant/0.json": b'{"label": 5}'}
    for kind in HOLDERS:
        path = put(tmp_path, kind, {**files, "bee/0.json": b'{"label": 6}'})
        assert "--classes-from folders or --label json" in refusal(path)
        assert open_source(path, Choice(label="json")).labels == [5, 6]
        assert open_source(path, Choice(classes_from="folders")).labels == [0, 1]


# -- several archives


def shards(root: Path, *names: str, files: dict[str, bytes] | None = None) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        put(root, "tar", files or {"0.png": png(k), "0.cls": b"%d" % k}).rename(root / name)
    return root


def test_a_pattern_may_stand_anywhere(tmp_path):
    root = shards(tmp_path / "w", "a/0.tar", "b/0.tar")
    for pattern in ("*/0.tar", "{a,b}/0.tar", "*/{0..0}.tar", "?/[0-9].tar", ""):
        source = open_source(root / pattern)
        assert source.names == ["a/0/0.png", "b/0/0.png"], pattern
        assert source.labels == [0, 1] and greys(source) == [0, 1]
    root = shards(tmp_path / "x", *(f"part-{k:06d}.tar" for k in range(3)))
    source = open_source(root / "part-{000000..000002}.tar")
    assert source.labels == [0, 1, 2] and source.names[2] == "part-000002/0.png"
    assert "no files match" in refusal(root / "part-{000000..000003}.tar")
    assert "more than a million" in refusal(root / "part-{0..99999999999999}.tar")


def test_a_tar_for_each_class_is_said(tmp_path):
    files = {"x_0.png": png(0), "x_1.png": png(1)}
    root = shards(tmp_path / "w", "n01.tar", "n02.tar", "n03.tar", files=files)
    source = open_source(root)
    assert source.labels is None and "--classes-from folders" in source.notes[0]
    source = open_source(root, Choice(classes_from="folders"))
    assert source.class_names == ["n01", "n02", "n03"] and source.labels == [0, 0, 1, 1, 2, 2]


def test_class_folders_in_several_tars_are_classes(tmp_path):
    root = shards(tmp_path / "w", "0.tar", "1.tar", files=classes("ant", "bee", count=1))
    source = open_source(root)
    assert source.class_names == ["ant", "bee"] and source.labels == [0, 0, 1, 1]
    assert source.names == ["0/ant/0.png", "1/ant/0.png", "0/bee/0.png", "1/bee/0.png"]


def test_splits_among_archives_are_chosen(tmp_path):
    root = shards(tmp_path / "w", "x-train-0.tar", "x-train-1.tar", "x-val-0.tar")
    assert "several splits (train, val)" in refusal(root)
    source = open_source(root, Choice(split="val"))
    assert source.labels == [2] and "2 archives of other splits" in source.notes[-1]
    root = shards(tmp_path / "y", "train/0.tar", "test/0.tar")
    assert "several splits (test, train)" in refusal(root)
    assert open_source(root / "train").labels == [0]


def test_files_beside_archives_are_named(tmp_path):
    root = shards(tmp_path / "w", "0.tar")
    (root / "0_stats.json").write_text("{}")
    assert "1 .json (as 0_stats.json)" in open_source(root).notes[-1]
    (root / "1.tar.gz").write_bytes(b"")
    assert "1.tar.gz cannot be read in any order" in refusal(root)


# -- bounds before memory


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_file_that_is_said_to_be_huge_is_not_read(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(limits, "LARGEST", 1 << 12)
    files = {"0.png": png(0), "1.png": bytes(1 << 13)}
    source = open_source(put(tmp_path, kind, files))
    assert source.read(0) == png(0)
    with pytest.raises(DataError, match="too large"):
        source.read(1)
    (tmp_path / "b").mkdir()
    path = put(tmp_path / "b", kind, {"a.png": png(0), "dataset.json": b" " * (1 << 13)})
    assert "dataset.json cannot be read: too large" in refusal(path)


def test_a_fill_value_of_five_gigabytes_is_not_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0.png"] = np.frombuffer(png(0), np.uint8)
        file.create_dataset("1.png", (5_000_000_000,), np.uint8, chunks=(1 << 20,))
    with pytest.raises(DataError, match=r"too large for an image \(5.0 GB\)"):
        open_source(tmp_path / "a.h5").read(1)


def test_sizes_in_a_tar_that_cannot_be(tmp_path):
    path = put(tmp_path, "tar", {"0.png": png(0), "1.png": png(1)})
    whole = path.read_bytes()
    header = tarfile.TarInfo("big")
    header.size, header.type = 10 << 30, tarfile.XHDTYPE
    huge = header.tobuf(tarfile.GNU_FORMAT)
    header.type = tarfile.REGTYPE
    negative = bytearray(whole[:512])
    negative[124:136] = b"\xff" * 12
    for data in (huge + whole, header.tobuf(tarfile.GNU_FORMAT) + whole, negative + whole[512:]):
        path.write_bytes(data)
        assert refusal(path).startswith("1 ") and "damaged" in refusal(path)


def test_holes_in_a_tar_are_refused(tmp_path):
    info, data = member("0.png", png(0))
    info.pax_headers = {"GNU.sparse.map": "0,9", "GNU.sparse.size": "99"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, data)
    assert "--sparse" in refusal(tmp_path / "a.tar")


def test_hdf5_of_odd_things(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0.png"] = np.frombuffer(png(0), np.uint8)
        file["1.png"] = np.arange(5)
        file["2.png"] = "text"
        file["3.png"] = h5py.Empty("f")
        file["4.png"] = h5py.SoftLink("/nowhere")
        file["5.png"] = h5py.SoftLink("/0.png")
        file["6.png"] = file["0.png"]
        file["7.png"] = np.zeros((4, 4), np.uint8)
        file["8.png"] = np.array(png(8), dtype="V")
        vlen = file.create_dataset("9.png", (1,), h5py.vlen_dtype(np.uint8))
        vlen[0] = np.frombuffer(png(9), np.uint8)
        file["again"] = h5py.SoftLink("/")
    source = open_source(tmp_path / "a.h5")
    assert [source.names[i] for i in range(len(source))] == [f"{i}.png" for i in range(10)]
    good = [0, 5, 6, 8, 9]
    assert [source.read(i) == png(i if i > 7 else 0) for i in good] == [True] * 5
    assert source.read(2) == b"text"
    for i in (1, 3, 4, 7):
        with pytest.raises(DataError):
            source.read(i)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["0.png"] = np.frombuffer(png(0), np.uint8)
        file.create_group("dataset.json")
    assert open_source(tmp_path / "b.h5").labels is None
    (tmp_path / "c").mkdir()
    with h5py.File(tmp_path / "c" / "latents.h5", "w") as file:
        file["0.npy"] = np.zeros((8, 2, 2))
    (tmp_path / "c" / "images.h5").write_bytes(b"no")
    assert "beside" in refusal(tmp_path / "c" / "latents.h5")


def test_folders_in_folders_without_end(tmp_path):
    deep = "/".join("a" * 100) + "/0.png"
    for kind in HOLDERS:
        assert "64 folders deep" in refusal(put(tmp_path, kind, {deep: png(0)}))


# -- as a user meets them


def sra2(*arguments: object):
    return finished(["python", "-m", "sra2cli", *map(str, arguments)])


def extract(images: Path, out: Path, *options: str):
    fixed = ("--vae", "digits", "--resolution", 32, "--offline", "--workers", 0, "--json")
    return sra2("extract", images, "--out", out, *fixed, *options)


def test_extract_says_and_records_what_was_chosen(tmp_path):
    path = put(tmp_path, "folder", classes("train/ant", "train/bee", "val/ant"))
    (path / "val" / "ant" / "gone.png").symlink_to("nowhere.png")
    assert "--split train" in one_line(extract(path, tmp_path / "a.h5"), 2)
    done = extract(path, tmp_path / "a.h5", "--split", "val", "--allow-rejects")
    result = json.loads(done.stdout)
    assert (result["images"], result["classes"], result["rejects"]) == (2, 1, 1)
    assert "4 images beside val/ are passed over" in result["notes"]
    assert "4 images beside val/ are passed over" in done.stderr
    again = extract(path, tmp_path / "a.h5", "--split", "val")
    assert "could not be read" in one_line(again, 1)
    from sra2cli.data.store import Store

    store = Store(tmp_path / "a.h5")
    assert store.info.choice == {"split": "val"}
    store.verify()
    assert open_source(path, Choice.of(store.info.choice)).names == store.all_names
    with pytest.raises(SetupError):
        open_source(path)
    for other in ({"splits": "val"}, {"split": 5}):
        with pytest.raises(DataError, match="newer"):
            Choice.of(other)


def test_eval_counts_what_it_leaves_out(tmp_path):
    from sra2cli.data import digits

    images, _ = digits.load_digits()
    path = tmp_path / "samples"
    path.mkdir()
    for i in range(40):
        Image.fromarray(images[i]).save(path / f"{i:02d}.png")
    (path / "40.xyz").write_bytes(b"x")
    judge = ("eval", path, "--metrics", "fd-digits", "--json")
    for _ in range(2):  # what it writes there itself is not counted
        done = sra2(*judge)
        result = json.loads(done.stdout)
        left_out = [w for w in result["warnings"] if "do not look like images" in w]
        assert result["count"] == 40 and len(left_out) == 1 and "1 .xyz (as 40.xyz)" in left_out[0]
        assert "1 .xyz" in done.stderr
    against = json.loads(sra2(*judge, "--ref", path).stdout)
    assert sum("1 .xyz" in warning for warning in against["warnings"]) == 2
    (path / "41.png").symlink_to("nowhere.png")
    assert "41.png: a link to nowhere.png, which is not there" in one_line(sra2(*judge), 1)
    assert "--split val" in one_line(sra2(*judge, "--split", "val"), 2)
