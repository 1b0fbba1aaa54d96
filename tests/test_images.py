import numpy as np
import pytest
from PIL import Image

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.images import CROPS, read_image
from sra2cli.data.sources import open_source


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [("adm-center", "center_crop.npz", 12), ("uvit-center", "uvit_crop.npz", 10)],
)
def test_golden_crops(golden, name, file, count):
    g = golden(file)
    cases = [key for key in g.arrays if "/crop" in key]
    assert len(cases) == count
    for key in cases:
        image, size = key.split("/crop")
        crop = CROPS[name](Image.fromarray(g.arrays[image]), int(size))
        assert np.array_equal(crop, g.arrays[key]), key


def save(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (40, 40), "red")).save(path)


def test_class_folders_are_sorted_and_labelled(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/deep/3.jpg"):
        save(tmp_path / name)
    (tmp_path / "b" / "x.txt").write_text("no image")
    source = open_source(tmp_path)
    assert source.names == ["a/deep/3.jpg", "b/1.png", "b/2.png"]
    assert source.labels == [0, 1, 1] and source.class_names == ["a", "b"]


def test_a_flat_folder_has_no_labels(tmp_path):
    save(tmp_path / "1.png")
    source = open_source(tmp_path)
    assert source.labels is None and source.class_names == []


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(SetupError, match="no image folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(SetupError, match="no images in"):
        open_source(tmp_path)
    save(tmp_path / "1.png")
    save(tmp_path / "a" / "1.png")
    with pytest.raises(SetupError, match="beside class folders"):
        open_source(tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16", "I"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16  # 0..65520
    if mode in ("I;16", "I"):
        image = Image.fromarray(ramp if mode == "I;16" else ramp.astype(np.int32))
    else:
        image = Image.fromarray((ramp // 257).astype(np.uint8)).convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I") else "x.png")
    image.save(path)
    pixels = read_image(path, 32)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    if mode != "1":
        assert pixels[0].mean() < 30 and pixels[-1].mean() > 225  # scaled, not clipped


def test_exif_rotation_is_ignored_as_in_adm(tmp_path):
    image = Image.new("RGB", (64, 32))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (32, 64, 3)


def test_what_cannot_be_read_says_why(tmp_path):
    save(tmp_path / "good.png", Image.effect_noise((64, 64), 50).convert("RGB"))
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, reason in [("cut", "truncated"), ("text", "not an image"), ("empty", "not an image")]:
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / f"{name}.png", 32)
