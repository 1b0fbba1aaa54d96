"""Every kind of source gives the same images, names in order and labels."""

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.images import decode_image
from sra2cli.data.sources import VanishedError, open_source

CLASSES = {"cat": 3, "dog": 2}


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (value, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


FILES = {
    f"{name}/{i}.png": png(10 * k + i)
    for k, (name, count) in enumerate(CLASSES.items())
    for i in range(count)
}
LABELS = [0, 0, 0, 1, 1]
VALUES = [0, 1, 2, 10, 11]


def values(source) -> list[int]:
    return [int(decode_image(source.read(i))[0, 0, 0]) for i in range(len(source))]


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("prefix", ["", "train/"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_class_folders_in_anything(tmp_path, kind, prefix):
    files = {prefix + name: data for name, data in FILES.items()}
    path = tmp_path / f"data.{kind}"
    if kind == "folder":
        path = write_folder(tmp_path / "data", files) / prefix
    else:
        (write_zip if kind == "zip" else write_tar)(path, files)
    source = open_source(path)
    assert source.names == list(FILES) and source.labels == LABELS
    assert source.class_names == ["cat", "dog"] and source.classes == 2
    assert values(source) == VALUES
    assert values(pickle.loads(pickle.dumps(source))) == VALUES  # as worker processes get it


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_dataset_json_gives_the_labels(tmp_path, kind):
    files = {f"0000{i}/img{i}.png": png(i) for i in range(4)}
    pairs = [[name, 7 - i] for i, name in enumerate(files)]
    files["dataset.json"] = json.dumps({"labels": pairs}).encode()
    path = tmp_path / f"data.{kind}"
    {"folder": write_folder, "zip": write_zip, "tar": write_tar}[kind](path, files)
    source = open_source(path)
    assert source.labels == [7, 6, 5, 4] and source.classes == 8 and values(source) == [0, 1, 2, 3]


def test_dataset_json_that_does_not_fit(tmp_path):
    files = {"a.png": png(0), "b.png": png(1)}
    for text, message in [
        ('{"labels": [["a.png", 0]]}', "has no label for b.png"),
        ('{"labels": [["a.png", 0.5], ["b.png", 1]]}', "whole numbers"),
        ("nothing", "not a list of"),
    ]:
        root = write_folder(tmp_path / str(len(text)), {**files, "dataset.json": text.encode()})
        with pytest.raises(SetupError, match=message):
            open_source(root)
    root = write_folder(tmp_path / "none", {**files, "dataset.json": b'{"labels": null}'})
    assert open_source(root).labels is None


@pytest.mark.parametrize("label", ["cls", "json"])
def test_webdataset_shards(tmp_path, label):
    for shard in range(2):
        files = {}
        for i in range(3):
            number = 3 * shard + i
            files[f"{i:04d}.png"] = png(number)
            text = str(number % 4) if label == "cls" else json.dumps({"label": number % 4})
            files[f"{i:04d}.{label}"] = text.encode()
        write_tar(tmp_path / f"train-{shard:03d}.tar", files)
    for path in (tmp_path, tmp_path / "train-*.tar"):
        source = open_source(path)
        assert values(source) == list(range(6)) and source.labels == [0, 1, 2, 3, 0, 1]
        assert source.names[4] == "train-001/0001.png" and source.classes == 4
    write_tar(tmp_path / "train-002.tar", {"0.png": png(0), "1.cls": b"1"})
    with pytest.raises(SetupError, match=r"gives a label for train-002/0\.png"):
        open_source(tmp_path)


def write_parquet(path: Path, numbers: range, *, described: bool = True) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = arrow.table(
        {
            "image": [{"bytes": png(i), "path": f"{i}.png"} for i in numbers],
            "label": [i % 2 for i in numbers],
        }
    )
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["even", "odd"]},
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(
        table.replace_schema_metadata(about if described else {}), path, row_group_size=2
    )


def test_parquet(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", range(5))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", range(5, 8))
    source = open_source(tmp_path)
    assert values(source) == list(range(8)) and source.labels == [i % 2 for i in range(8)]
    assert source.class_names == ["even", "odd"]
    assert values(pickle.loads(pickle.dumps(source))) == list(range(8))
    write_parquet(tmp_path / "test-00000-of-00001.parquet", range(3), described=False)
    with pytest.raises(SetupError, match=r"several splits \(test, train\)"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "test-*.parquet")) == 3
    (tmp_path / "train-00001-of-00002.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="damaged or not a parquet file"):
        open_source(tmp_path / "train-*.parquet")


def test_latents_of_repa_and_sra(tmp_path):
    moments = np.random.default_rng(0).random((3, 8, 4, 4)).astype(np.float32)
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(3)]
    for name, array in zip(names, moments, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, array)
    with pytest.raises(SetupError, match=r"no dataset.json"):
        open_source(tmp_path)
    pairs = [[name, i] for i, name in enumerate(names)]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": pairs}))
    source = open_source(tmp_path)
    assert source.kind == "latents" and source.labels == [0, 1, 2]
    assert np.array_equal(np.load(io.BytesIO(source.read(1))), moments[1])


@pytest.mark.parametrize("inside", [True, False])
def test_hdf5_with_a_key_per_image(tmp_path, inside):
    """REPA-E: latents under their own names, labels with the images."""
    moments = np.random.default_rng(0).random((3, 8, 4, 4)).astype(np.float32)
    labels = json.dumps({"labels": [[f"00000/img{i:08d}.png", 5 - i] for i in range(3)]})
    with h5py.File(tmp_path / "latents.h5", "w") as f, h5py.File(tmp_path / "images.h5", "w") as g:
        for i in range(3):
            f[f"00000/img-mean-std-{i:08d}.npy"] = moments[i]
            g[f"00000/img{i:08d}.png"] = np.frombuffer(png(i), np.uint8)
        (f if inside else g)["dataset.json"] = np.frombuffer(labels.encode(), np.uint8)
        if inside:
            g["dataset.json"] = np.array(labels.encode(), dtype="S")
    source = open_source(tmp_path / "latents.h5")
    assert source.kind == "latents" and source.labels == [5, 4, 3]
    assert np.array_equal(source.read(2), moments[2])
    images = open_source(tmp_path / "images.h5")
    assert images.kind == "images" and values(images) == [0, 1, 2] and images.labels == [5, 4, 3]


def test_what_is_no_source_says_so(tmp_path, digits_store):
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "x.zip").write_bytes(b"no zip")
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "x.h5").write_bytes(b"no hdf5")
    for name, kind, message in [
        ("x.tar.gz", SetupError, "is not a source of images"),
        ("x.zip", DataError, "damaged or not a zip"),
        ("x.tar", DataError, "damaged, or compressed"),
        ("x.h5", DataError, "damaged or not an HDF5"),
        ("y*.tar", SetupError, "no files match"),
    ]:
        with pytest.raises(kind, match=message):
            open_source(tmp_path / name)
    with pytest.raises(SetupError, match="is a latent store already"):
        open_source(digits_store)


def test_files_that_are_no_images_are_named_not_hidden(tmp_path):
    root = write_folder(tmp_path / "a", {**FILES, "cat/notes.txt": b"x", "cat/.hidden.png": b""})
    source = open_source(root)
    assert source.ignored == ["cat/notes.txt"] and source.names == list(FILES)


def test_an_empty_class_does_not_shift_the_others(tmp_path):
    root = write_folder(tmp_path / "a", {**FILES, "cow/notes.txt": b"x"})
    with pytest.raises(SetupError, match="cow holds no images"):
        open_source(root)
    (root / "cow").rename(root / ".cow")
    assert open_source(root).class_names == ["cat", "dog"]


def test_a_vanished_source_is_not_a_bad_image(tmp_path):
    source = open_source(write_folder(tmp_path / "a", FILES))
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(VanishedError, match="is gone"):
        source.read(0)


def test_damage_inside_archives_is_found(tmp_path):
    write_tar(tmp_path / "a.tar", FILES)
    whole = bytearray((tmp_path / "a.tar").read_bytes())
    third = bytes(whole).index(b"cat/2.png")
    (tmp_path / "cut.tar").write_bytes(whole[:third])
    whole[third + 130] ^= 255  # in a header: tarfile takes it for the end
    (tmp_path / "bad.tar").write_bytes(whole)
    for name in ("cut.tar", "bad.tar"):
        with pytest.raises(DataError, match="is damaged"):
            open_source(tmp_path / name)
    write_zip(tmp_path / "a.zip", {"cat/noise.png": bytes(range(256)) * 40, **FILES})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    rng, refused = np.random.default_rng(0), 0
    for at in rng.integers(60, 300, 40):
        flipped = bytearray(data)
        flipped[at] ^= 255
        (tmp_path / "b.zip").write_bytes(flipped)
        source = open_source(tmp_path / "b.zip")
        try:
            source.read(source.names.index("cat/noise.png"))
        except DataError as error:
            refused += "damaged in the zip" in str(error)
    assert refused > 20


def test_other_files_do_not_take_the_labels_away(tmp_path):
    extra = {"meta.json": b"{}", "README.md": b"x"}
    write_tar(tmp_path / "a.tar", {**FILES, **extra})
    write_tar(tmp_path / "b.tar", {**{f"train/{k}": v for k, v in FILES.items()}, **extra})
    write_zip(tmp_path / "b.zip", {**{f"train/{k}": v for k, v in FILES.items()}, **extra})
    for name in ("a.tar", "b.tar", "b.zip"):
        source = open_source(tmp_path / name)
        assert source.labels == LABELS and source.class_names == ["cat", "dog"], name
    root = write_folder(tmp_path / "folder", FILES)
    write_tar(root / "stray.tar", FILES)
    with pytest.raises(SetupError, match=r"holds \.tar files .* beside images"):
        open_source(root)


def test_a_failing_disk_is_not_a_bad_image(tmp_path):
    import errno

    from sra2cli.data.sources import Source

    def failing(index):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(VanishedError, match="cannot be read"):
        Source(tmp_path, ["a.png"], None, [], failing).read(0)
