"""Stores that were edited, damaged or locked: one line that says what they are."""

import fcntl
import shutil

import h5py
import numpy as np
import pytest

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.store import Store
from sra2cli.data.store_info import RowSet, StoreInfo
from sra2cli.data.store_writer import StoreWriter

COUNT = 6
INFO = StoreInfo(
    "vae", "abcd", 0.5, 0.0, channels=2, latent=4, resolution=32, classes=6,
    extra={"mood": RowSet((1,), "float32", "somebody", "v1")},
)  # fmt: skip
NAMES = [f"{i}.png" for i in range(COUNT)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.h5"
    writer = StoreWriter(path, INFO, NAMES, range(COUNT))
    rows = {k: np.ones((COUNT, *r.shape), r.dtype) for k, r in INFO.row_sets().items()}
    writer.write(range(COUNT), rows)
    writer.finish()
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copy(whole, tmp_path / "b.h5")


def exchanged(name, make):
    """A data set taken out, and what `make` puts in its place."""

    def change(f):
        values = f[name][()]
        del f[name]
        make(f, name, values)

    return change


def attribute(name, value):
    def change(f):
        f.attrs[name] = value

    return change


def swapped(f):
    f.move("labels", "x")
    f.move("mood", "labels")
    f.move("x", "mood")


def fill(f, name, values):
    f.create_dataset(name, (5_000_000_000,), values.dtype, fillvalue=1)


def labelled(label):
    def change(f):
        f["labels"][0] = label

    return change


FAULTS = {
    "a group": (
        exchanged("moments", lambda f, name, _: f.create_group(name)),
        "'moments' is not a data set",
    ),
    "names are a group": (
        exchanged("names", lambda f, name, _: f.create_group(name)),
        "'names' is not a data set",
    ),
    "another file": (
        exchanged("moments", lambda f, n, _: f.update({n: h5py.ExternalLink("a.h5", n)})),
        "'moments' is not a data set",
    ),
    "swapped": (swapped, r"'mood' is int64 \(6,\), not float32 \(6, 1\)"),
    "short": (
        exchanged("labels", lambda f, name, values: f.update({name: values[:2]})),
        r"'labels' is int64 \(2,\), not int64 \(6,\)",
    ),
    "another type": (
        exchanged("moments", lambda f, name, values: f.update({name: values.astype(">f4")})),
        "'moments' is >f4",
    ),
    "a number": (exchanged("state", lambda f, name, _: f.update({name: 1})), r"'state' is int64"),
    "5 GB to be filled": (exchanged("labels", fill), "'labels' is not contiguous"),
    "missing": (exchanged("mood", lambda *_: None), "'mood' is missing"),
    "not declared": (lambda f: f.update({"more": [1]}), "'more' is not declared"),
    "no such class": (labelled(6), "labels 1..6 of 6 classes"),
    "a negative class": (labelled(-1), "labels -1..5 of 6 classes"),
    "count": (attribute("count", 5), "it says 5 images, and 6 of 6 are there"),
    "channels": (attribute("channels", -2), "'channels' must be above 0"),
    "infinite scale": (attribute("scale", np.inf), "'scale.*finite"),
    "scales": (attribute("scale", [1.0, 2.0, 3.0]), "scale holds 3 numbers for 2 channels"),
    "class names": (attribute("class_names", '["a"]'), "1 names of 6 classes"),
    "no JSON": (attribute("extra", "{" * 5000), "truncated or not a latent store"),
    "extra": (attribute("extra", '{"mood": {"shape": [1e99]}}'), "extra.mood"),
    "sums": (attribute("checksums", "[1]"), "dictionary"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_store_that_is_not_what_it_declares(copy, kind):
    change, message = FAULTS[kind]
    with h5py.File(copy, "r+") as f:
        change(f)
    with pytest.raises(DataError, match=message) as caught:
        Store(copy)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", ["a group", "short", "5 GB to be filled", "missing"])
def test_a_partial_store_that_was_edited(whole, tmp_path, kind):
    partial = tmp_path / "b.h5.partial"
    shutil.copy(whole, partial)
    with h5py.File(partial, "r+") as f:
        FAULTS[kind][0](f)
    with pytest.raises(SetupError, match=r"begun with other settings \(layout\)"):
        StoreWriter(tmp_path / "b.h5", INFO, NAMES, range(COUNT))


def test_a_locked_store_is_said_to_be_locked(copy, monkeypatch):
    """As with HDF5_USE_FILE_LOCKING=TRUE, which HDF5 reads once, when it is loaded."""
    opened = h5py.File
    monkeypatch.setattr(h5py, "File", lambda path, mode, locking: opened(path, mode, locking=True))
    with copy.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"b\.h5 is locked by another program"):
            Store(copy)
    Store(copy)


def test_values_that_are_not_finite_are_refused_with_what_is_left_to_try(tmp_path):
    rows = {k: np.ones((COUNT, *r.shape), r.dtype) for k, r in INFO.row_sets().items()}
    rows["moments"][2] = np.nan
    writer = StoreWriter(tmp_path / "a.h5", INFO, NAMES, range(COUNT))
    with pytest.raises(DataError, match=r"2.png: its moments are not finite") as e:
        writer.write(range(COUNT), rows)
    assert "--dtype" not in str(e.value)
    half = StoreInfo(**{**vars(INFO), "dtype": "float16"})
    writer = StoreWriter(tmp_path / "b.h5", half, NAMES, range(COUNT))
    with pytest.raises(DataError, match=r"reach 1e\+06.*--dtype float32"):
        writer.write(range(COUNT), {**rows, "moments": np.full_like(rows["moments"], 1e6)})
