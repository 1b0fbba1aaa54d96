"""More kinds of what people give, by strangers' eyes: what is easily taken for whole is said."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import finished
from PIL import Image

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.images import decode_image
from sra2cli.data.sources import Source, open_source
from sra2cli.evaluation.image_sets import open_images
from sra2cli.sampling.sample import sample
from sra2cli.sampling.settings import Sampling

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (32, 32), value).save(buffer, "png")
    return buffer.getvalue()


def folder(root: Path, *names: str, **texts: str) -> Path:
    """Images of these names, each with its own grey; and files of texts (a_json: a.json)."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(i))
    for name, text in texts.items():
        (root / name.replace("_", ".")).write_text(text)
    return root


def tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def said(source: Source) -> str:
    return "\n".join(source.notes)


def test_classes_without_images_are_said(tmp_path):
    """Labels from 1, as many lists have them, or a part of a set."""
    listed = json.dumps({"labels": [["0.png", 1], ["1.png", 4]]})
    found = open_source(folder(tmp_path, "0.png", "1.png", dataset_json=listed))
    assert found.labels == [1, 4]
    assert "3 of 5 classes have no images, as class 0" in said(found)
    whole = json.dumps({"labels": [["0.png", 1], ["1.png", 0]]})
    found = open_source(folder(tmp_path, "0.png", "1.png", dataset_json=whole))
    assert "classes" not in said(found)


def test_a_shard_that_is_not_there_is_said(tmp_path):
    for number in (0, 1, 3):
        tar(tmp_path / "wds" / f"train-{number:04d}.tar", {f"{number}.png": png(1)})
    assert "train-0002 is not there" in said(open_source(tmp_path / "wds"))
    assert "train-0002" not in said(open_source(tmp_path / "wds" / "train-{0000..0001}.tar"))
    for year in (2012, 2017):
        tar(tmp_path / "years" / f"{year}.tar", {f"{year}.png": png(1)})
    assert "numbered" not in said(open_source(tmp_path / "years"))


def test_a_shard_that_is_there_twice_is_no_other(tmp_path):
    """As a browser names what it loads again."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = arrow.table({"image": [{"bytes": png(1), "path": ""}], "label": [0]})
    for name in ("train-00000-of-00002", "train-00000-of-00002 (1)"):
        parquet.write_table(rows, tmp_path / f"{name}.parquet")
    with pytest.raises(SetupError, match="not each once"):
        open_source(tmp_path)
    (tmp_path / "train-00000-of-00002 (1).parquet").rename(
        tmp_path / "train-00001-of-00002.parquet"
    )
    assert len(open_source(tmp_path)) == 2


def test_masks_beside_images_are_said(tmp_path):
    names = ("0.jpg", "0.mask.png", "1.jpg", "1.mask.png")
    assert "(jpg, mask.png): one of each by --image jpg" in said(
        open_source(folder(tmp_path / "a", *names))
    )
    names = ("0.png", "1.png", "2.jpg", "3.jpg")  # converted in part: each is one of its own
    assert said(open_source(folder(tmp_path / "b", *names))) == ""


def test_what_classes_are_is_said_where_folders_leave_it_open(tmp_path):
    names = [f"{top}/{inner}/0.png" for top in ("images", "masks") for inner in ("ant", "bee")]
    found = open_source(folder(tmp_path / "a", *names))
    assert found.class_names == ["images", "masks"]
    assert "the classes are the outer folders: images/ant/0.png is of class images" in said(found)
    assert said(open_source(folder(tmp_path / "b", "ant/0.png", "bee/0.png"))) == ""


def test_classes_that_differ_in_case_alone_are_said(tmp_path):
    found = open_source(folder(tmp_path, "Ant/0.png", "ant/0.png", "bee/0.png"))
    assert found.labels == [0, 1, 2]
    assert "Ant and ant are two classes" in said(found)


def test_a_number_in_a_file_is_written_as_everywhere(tmp_path):
    path = tar(tmp_path / "a.tar", {"0.png": png(0), "0.cls": b"1_0"})  # Python reads ten
    with pytest.raises(SetupError, match="holds no class number"):
        open_source(path)
    path = tar(tmp_path / "b.tar", {"0.png": png(0), "0.json": b'{"label": "1_0"}'})
    with pytest.raises(SetupError, match="holds no class number"):
        open_source(path)
    assert open_source(tar(tmp_path / "c.tar", {"0.png": png(0), "0.cls": b" 3\n"})).labels == [3]


def test_a_pointer_of_git_lfs_is_said(tmp_path):
    with pytest.raises(DataError, match="git lfs pull"):
        decode_image(POINTER)
    for name in ("a.tar", "a.parquet", "a.zip", "a.h5"):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(SetupError, match="git lfs pull"):
            open_source(tmp_path / name)


def test_several_zips_are_refused_as_such(tmp_path):
    for name in ("a.zip", "b.zip"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SetupError, match=r"2 \.zip files: give them one by one"):
        open_source(tmp_path / "*.zip")


def test_why_no_image_could_be_read_is_said(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(POINTER)
    options = ("--vae", "digits", "--resolution", "32", "--offline", "--workers", "0")
    command = ("extract", str(tmp_path / "a"), "--out", str(tmp_path / "x.h5"), *options)
    done = finished(["python", "-m", "sra2cli", *command])
    assert done.returncode == 1
    assert "0.png not an image but a pointer of Git LFS" in done.stderr
    assert "no store was written" in done.stderr


def test_samples_that_are_the_reference_are_said(tmp_path):
    images = folder(tmp_path / "a", *(f"{i}.png" for i in range(30)))
    command = ("eval", str(images), "--ref", str(images), "--metrics", "fd-digits", "--json")
    done = finished(["python", "-m", "sra2cli", *command])
    assert "the samples are the very images of the reference" in json.loads(done.stdout)["warnings"]


def test_labels_of_an_npz_that_do_not_fit_are_said(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(3))
    np.savez(tmp_path / "b.npz", arr_0=images, arr_1=np.arange(4))
    assert "arr_1" in open_images(tmp_path / "a.npz", "samples").left_out[0]
    fits = open_images(tmp_path / "b.npz", "samples")
    assert fits.labels == [0, 1, 2, 3]
    assert fits.left_out == []


def test_what_systems_leave_behind_is_no_class(tmp_path):
    names = ("ant/0.png", "ant/@eaDir/0.png/SYNO_THUMB.jpg", "$RECYCLE.BIN/0.png", "bee/0.png")
    data = folder(tmp_path, *names)
    (data / "lost+found").mkdir()
    found = open_source(data)
    assert (found.names, found.labels) == (["ant/0.png", "bee/0.png"], [0, 1])
    assert "3 hidden entries" in said(found)


def test_more_images_than_a_folder_holds_are_refused(tmp_path):
    with pytest.raises(SetupError, match="at most 100,000,000"):
        sample(tmp_path / "none", num=10**15, sampling=Sampling())
