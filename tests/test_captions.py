"""Captions: how a store holds them, where they come from, and how they are extracted."""

import h5py
import numpy as np
import pytest
import torch
from conftest import Letters, write_captioned

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.store import Store

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
