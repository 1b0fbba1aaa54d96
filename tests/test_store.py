import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data import store_writer
from sra2cli.data.store import Store
from sra2cli.data.store_info import StoreInfo
from sra2cli.data.store_writer import StoreWriter

INFO = StoreInfo("vae", "abcd", 0.5, 0.0, channels=2, latent=4, resolution=32, classes=10)


def write(path, count=10, rejected=(3, 7)) -> np.ndarray:
    moments = np.random.default_rng(0).normal(size=(count, 4, 4, 4)).astype(np.float32)
    writer = StoreWriter(path, INFO, [f"{i}.png" for i in range(count)], list(range(count)))
    good = [i for i in range(count) if i not in rejected]
    writer.write(good, {"moments": np.delete(moments, rejected, 0)}, list(rejected))
    writer.finish()
    return moments


def test_readers_see_the_good_rows_in_the_order_asked_for(tmp_path):
    moments = write(tmp_path / "a.h5")
    store = Store(tmp_path / "a.h5")
    store.verify()
    assert len(store) == 8 and store.names[3] == "4.png"
    assert store.labels.tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    assert np.array_equal(store.moments(np.array([7, 0, 3, 3])), moments[[9, 0, 4, 4]])
    assert store.info == INFO
    assert not list(tmp_path.glob("*.partial*"))


def test_plain_h5py_reads_it_as_the_docs_say(tmp_path, monkeypatch):
    """The code of docs/store.md, run as it stands there."""
    moments = np.delete(write(tmp_path / "digits.h5"), [3, 7], 0)
    page = (Path(__file__).parent.parent / "docs" / "store.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code, found)
    assert np.array_equal(found["mean"], moments[:, :2])
    assert np.array_equal(found["std"], moments[:, 2:])
    xi = np.random.default_rng(0).normal(size=(8, 2, 4, 4))
    assert np.allclose(found["z"], (moments[:, :2] + moments[:, 2:] * xi) * 0.5)
    assert found["labels"].tolist() == [0, 1, 2, 4, 5, 6, 8, 9]


def test_an_unfinished_store_is_taken_up_again(tmp_path):
    names, labels = ["0", "1"], [0, 1]
    rows = np.ones((1, 4, 4, 4), np.float32)
    StoreWriter(tmp_path / "a.h5", INFO, names, labels).write([1], {"moments": rows})
    with pytest.raises(SetupError, match=r"a.h5.partial is unfinished"):
        Store(tmp_path / "a.h5")
    again = StoreWriter(tmp_path / "a.h5", INFO, names, labels)
    assert again.state.tolist() == [0, 1]
    again.write([0], {"moments": rows})
    again.finish()
    store = Store(tmp_path / "a.h5")
    store.verify()
    assert len(store) == 2


def test_a_partial_store_of_something_else_is_refused(tmp_path):
    StoreWriter(tmp_path / "a.h5", INFO, ["0"], [0])
    other = StoreInfo("vae", "beef", 0.5, 0.0, channels=2, latent=4, resolution=64, classes=10)
    with pytest.raises(SetupError, match=r"other settings \(vae_fingerprint, resolution\)"):
        StoreWriter(tmp_path / "a.h5", other, ["0"], [0])
    with pytest.raises(SetupError, match=r"other settings \(images\)"):
        StoreWriter(tmp_path / "a.h5", INFO, ["1"], [0])


def test_a_finished_store_is_not_overwritten(tmp_path):
    write(tmp_path / "a.h5")
    with pytest.raises(SetupError, match="exists"):
        StoreWriter(tmp_path / "a.h5", INFO, ["0"], [0])


def test_damage_is_found(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    whole = path.read_bytes()
    with h5py.File(path) as f:
        offset = f["moments"].id.get_offset()
    path.write_bytes(whole[: offset + 50] + bytes([whole[offset + 50] ^ 1]) + whole[offset + 51 :])
    Store(path)  # reading alone does not look at every byte
    with pytest.raises(DataError, match="checksum of 'moments' is wrong"):
        Store(path).verify()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        Store(path)
    path.write_text("hello")
    with pytest.raises(DataError, match="not a latent store"):
        Store(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as f:
        f.attrs["complete"] = False
    with pytest.raises(DataError, match="incomplete"):
        Store(path)
    with h5py.File(tmp_path / "b.h5", "w") as f:
        f["x"] = [1]
    with pytest.raises(SetupError, match="not a latent store of sra2"):
        Store(tmp_path / "b.h5")


def test_nothing_good_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="no image could be read"):
        write(tmp_path / "a.h5", count=2, rejected=(0, 1))
    assert not list(tmp_path.iterdir())


def test_two_writers_give_the_same_bytes(tmp_path):
    write(tmp_path / "a.h5")
    time.sleep(1.1)  # HDF5 can keep times, in seconds
    write(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_second_command_leaves_alone_what_the_first_lays_out(tmp_path, monkeypatch):
    """With captions that takes minutes: all are tokenized."""
    lay_out, said = store_writer.lay_out, []

    def meanwhile(*arguments):
        lay_out(*arguments)
        if not said:
            said.append("begun")
            with pytest.raises(SetupError, match="another extraction is writing"):
                StoreWriter(tmp_path / "a.h5", INFO, ["0"], [0])

    monkeypatch.setattr(store_writer, "lay_out", meanwhile)
    writer = StoreWriter(tmp_path / "a.h5", INFO, ["0"], [0])
    writer.write([0], {"moments": np.ones((1, 4, 4, 4), np.float32)})
    writer.finish()
    assert len(Store(tmp_path / "a.h5")) == 1 and said
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]
