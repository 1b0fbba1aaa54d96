"""Parquet files that can be read in several ways, lie about themselves, or are odd inside."""

import io
import json
from pathlib import Path

import pytest
from conftest import finished, one_line
from PIL import Image

from sra2cli.core.errors import DataError, SetupError, UserError
from sra2cli.data.sources import Choice, open_source

arrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (32, 32), value).save(buffer, "png")
    return buffer.getvalue()


CELLS = [{"bytes": png(i), "path": f"{i}.png"} for i in range(4)]
IMAGE = {"_type": "Image"}


def classes(*names: str) -> dict:
    return {"_type": "ClassLabel", "names": list(names)}


def write(path: Path, columns: dict, features: object = None, about: object = None) -> Path:
    """features: as the datasets library describes columns; about: the metadata as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"info": {"features": features}} if about is None and features else about
    text = about if isinstance(about, str | bytes) else json.dumps(about)
    metadata = {} if about is None else {"huggingface": text}
    pq.write_table(arrow.table(columns).replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def plain(path: Path, label: int = 0) -> Path:
    features = {"image": IMAGE, "label": classes("a", "b")}
    return write(path, {"image": CELLS, "label": [label] * 4}, features)


# Several columns that might be meant.


def test_the_column_named_label_is_taken_before_another_classlabel(tmp_path):
    features = {"image": IMAGE, "gender": classes("f", "m"), "label": classes(*"abcd")}
    columns = {"image": CELLS, "gender": [0, 1, 0, 1], "label": [0, 1, 2, 3]}
    file = write(tmp_path / "a.parquet", columns, features)
    source = open_source(file)
    assert (source.labels, source.class_names) == ([0, 1, 2, 3], list("abcd"))
    assert source.said == ["images are read from column image, labels from label, not gender"]
    chosen = open_source(file, Choice(label="gender"))
    assert (chosen.labels, chosen.class_names) == ([0, 1, 0, 1], ["f", "m"])
    assert open_source(file, Choice(label="none")).labels is None


@pytest.mark.parametrize("described", [True, False])
def test_coarse_and_fine_labels_are_for_the_user_to_choose(tmp_path, described):
    features = {"img": IMAGE, "coarse_label": classes("x", "y"), "fine_label": classes(*"abcd")}
    columns = {"img": CELLS, "coarse_label": [0, 0, 1, 1], "fine_label": [0, 1, 2, 3]}
    file = write(tmp_path / "a.parquet", columns, features if described else None)
    with pytest.raises(SetupError, match=r"coarse_label, fine_label.*--label COLUMN"):
        open_source(file)
    assert open_source(file, Choice(label="fine_label")).labels == [0, 1, 2, 3]
    with pytest.raises(SetupError, match="no column 'fine'"):
        open_source(file, Choice(label="fine"))


def test_two_columns_of_images_are_for_the_user_to_choose(tmp_path):
    other = CELLS[::-1]
    file = write(tmp_path / "a.parquet", {"left": CELLS, "right": other})
    with pytest.raises(SetupError, match=r"left, right.*--image COLUMN"):
        open_source(file)
    assert open_source(file, Choice(image="right")).read(0) == png(3)
    file = write(tmp_path / "b.parquet", {"mask": other, "image": CELLS}, {"image": IMAGE})
    assert open_source(file).read(0) == png(0)
    with pytest.raises(SetupError, match="no column of images"):
        open_source(write(tmp_path / "c.parquet", {"image": ["a.png"], "label": [0]}))


def test_what_was_taken_is_said_and_kept(tmp_path):
    columns = {"image": CELLS, "label": [0, 1, 0, 1], "caption": list("abcd")}
    file = write(tmp_path / "a.parquet", columns)
    command = ["python", "-m", "sra2cli", "extract", file, "--out", tmp_path / "x.h5", "--vae"]
    done = finished([*command, "digits", "--resolution", "32", "--offline", "--json"])
    said = "images are read from column image, labels from label, not caption"
    assert json.loads(done.stdout)["notes"] == [said]
    assert said in done.stderr.replace("\n", " ")


# Several files.


def test_files_that_number_their_classes_differently(tmp_path):
    for i, names in enumerate([("cat", "dog"), ("dog", "cat")]):
        features = {"image": IMAGE, "label": classes(*names)}
        columns = {"image": CELLS, "label": [0, 1, 0, 1]}
        write(tmp_path / f"train-0000{i}-of-00002.parquet", columns, features)
    with pytest.raises(SetupError, match="numbers its classes differently: 0 is 'dog'"):
        open_source(tmp_path)


@pytest.mark.parametrize("second", [{"img": CELLS}, {"image": CELLS}, {"image": CELLS, "cls": [0]}])
def test_files_with_other_columns(tmp_path, second):
    write(tmp_path / "0.parquet", {"image": CELLS, "label": [0, 1, 0, 1]})
    write(tmp_path / "1.parquet", {k: v[:1] for k, v in second.items()})
    with pytest.raises(SetupError, match=r"1\.parquet has no column"):
        open_source(tmp_path)


def test_labels_in_the_second_file_alone(tmp_path):
    write(tmp_path / "0.parquet", {"image": CELLS})
    write(tmp_path / "1.parquet", {"image": CELLS, "label": [0, 1, 0, 1]})
    with pytest.raises(SetupError, match=r"has columns that 0.parquet has not"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["train/0000", "train/0001"],
        ["part-00000-1f2e.snappy", "part-00001-1f2e.snappy"],
        ["part.0", "part.1"],
        ["data/train-00000-of-00002", "data/train-00001-of-00002"],
        ["train_00000", "train_00001"],
        ["train-0000", "train-0001"],
        ["train-00000-of-00002-b5ad6b5b2bda4fd6", "train-00001-of-00002-1f2e"],
    ],
)
def test_numbers_are_shards_not_splits(tmp_path, names):
    files = [plain(tmp_path / f"{name}.parquet") for name in names]
    assert len(open_source(tmp_path)) == 8
    assert len(open_source(files[0].parent / "*.parquet")) == 8


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["default/train/0000", "default/test/0000"]),
        ("train", ["train/part", "validation/part"]),
        ("large", ["large/train-00000-of-00001", "small/train-00000-of-00001"]),
        ("train", ["train-00000-of-00001", "test-00000-of-00001"]),
        ("train", ["train", "test"]),
        ("cifar-10", ["cifar-10", "cifar-100"]),
        ("train-2014", ["train-2014", "train-2017"]),
    ],
)
def test_splits_and_configurations_are_not_merged(tmp_path, split, names):
    for i, name in enumerate(names):
        plain(tmp_path / f"{name}.parquet", label=i)
    with pytest.raises(SetupError, match=r"several splits \(.*--split NAME"):
        open_source(tmp_path)
    if "large" in names[0]:
        with pytest.raises(SetupError, match="--split train is none, or several"):
            open_source(tmp_path, Choice(split="train"))
    source = open_source(tmp_path, Choice(split=split))
    assert source.labels == [0] * 4 and f"split {split}" in source.said[0]
    with pytest.raises(SetupError, match="--split nowhere is none"):
        open_source(tmp_path, Choice(split="nowhere"))


def test_a_pattern_is_the_choice_of_the_user(tmp_path):
    plain(tmp_path / "train.parquet")
    plain(tmp_path / "test.parquet")
    source = open_source(tmp_path / "t*.parquet")
    assert len(source) == 8 and source.said == ["several splits are read: test, train"]


def test_a_missing_shard_is_not_passed_over(tmp_path):
    file = plain(tmp_path / "train-00001-of-00003.parquet")
    plain(tmp_path / "train-00002-of-00003.parquet")
    with pytest.raises(SetupError, match="not each once, as their names say"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "train-*.parquet")) == 8
    assert len(open_source(file)) == 4
    plain(tmp_path / "train-00000-of-00003.parquet")
    assert len(open_source(tmp_path)) == 12
    plain(tmp_path / "train-00000-of-00001.parquet")  # of another time
    with pytest.raises(SetupError, match="not each once, as their names say"):
        open_source(tmp_path)


# What files say of themselves.

DEEP = '{"info":' * 100_000
ABOUT = [[], 3, "x", {"info": []}, {"info": {"features": 3}}, {"info": {"features": [IMAGE]}}]
ABOUT += [b"\xff\xfe", "{", DEEP, '{"info": ' + "9" * 5000 + "}", {"info": None}]


@pytest.mark.parametrize("about", ABOUT, ids=range(len(ABOUT)))
def test_odd_metadata_is_one_line(tmp_path, about):
    file = write(tmp_path / "a.parquet", {"image": CELLS, "label": [0, 1, 0, 1]}, about=about)
    with pytest.raises(DataError, match="'huggingface' metadata is not as"):
        open_source(file)


@pytest.mark.parametrize("names", ["ab", 3, {"0": "a"}, ["a", 1], ["a", None]])
def test_odd_class_names_are_one_line(tmp_path, names):
    features = {"image": IMAGE, "label": {"_type": "ClassLabel", "names": names}}
    file = write(tmp_path / "a.parquet", {"image": CELLS, "label": [0] * 4}, features)
    with pytest.raises(DataError, match="names of the classes"):
        open_source(file)


@pytest.mark.parametrize("feature", [[IMAGE], None, {"_type": ["Image"]}, {"_type": 3}, {}])
def test_odd_features_are_passed_over(tmp_path, feature):
    features = {"image": feature, "label": classes("a")}
    file = write(tmp_path / "a.parquet", {"image": CELLS, "label": [0] * 4}, features)
    assert open_source(file).read(1) == png(1)


LABELS = [[0.0, 1.0], [0, None], [0, -1], [0, 1 << 40], ["a", "b"], [[0], [1]], [True, False]]


@pytest.mark.parametrize("labels", [*LABELS, [0, 2]], ids=str)
def test_labels_that_are_no_classes(tmp_path, labels):
    features = {"image": IMAGE, "label": classes("a", "b")}
    file = write(tmp_path / "a.parquet", {"image": CELLS[:2], "label": labels}, features)
    with pytest.raises(SetupError, match="label"):
        open_source(file)
    one = finished(
        ["python", "-m", "sra2cli", "extract", file, "--out", tmp_path / "x.h5", "--vae", "digits"]
    )
    assert "a.parquet" in one_line(one, 2)


@pytest.mark.parametrize("kind", ["list", "struct", "text", "numbers"])
def test_columns_of_images_of_odd_types(tmp_path, kind):
    columns = {"list": [CELLS[:1]], "struct": [{"path": "a"}], "text": ["a"], "numbers": [1]}
    file = write(tmp_path / "a.parquet", {"image": columns[kind]}, {"image": IMAGE})
    with pytest.raises(SetupError, match="has no column of images"):
        open_source(file)
    with pytest.raises(SetupError, match="has no column of images"):
        open_source(file, Choice(image="image"))


def test_two_columns_of_one_name(tmp_path):
    table = arrow.Table.from_arrays([arrow.array([b"a"]), arrow.array([b"b"])], ["image"] * 2)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SetupError, match=r"several columns 'image'|several columns of images"):
        open_source(tmp_path / "a.parquet")


def test_damaged_footers_are_errors_of_the_user(tmp_path):
    """Every byte of what describes the rows, changed: a line, or the rows as they are."""
    whole = plain(tmp_path / "a.parquet").read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    file = tmp_path / "b.parquet"
    refused = 0
    for at in range(len(whole) - 8 - length, len(whole) - 8, 19):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            source = open_source(file)
            for index in range(min(len(source), 8)):
                try:
                    source.read(index)
                except DataError:
                    refused += 1
        except UserError:
            refused += 1
    assert refused > 20
