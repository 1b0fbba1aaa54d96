"""Pixels mean what the format says, and nothing but pixels comes of an image."""

import functools
import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import finished, one_line
from PIL import EpsImagePlugin, Image
from test_store import INFO

from sra2cli.core.errors import DataError
from sra2cli.data import images
from sra2cli.data.images import SUFFIXES, decode_image
from sra2cli.data.sources import Source, open_source
from sra2cli.data.store_writer import StoreWriter
from sra2cli.extraction import encode
from sra2cli.extraction.decode import Chunks

GREY = np.linspace(0, 255, 64).astype(np.uint8).reshape(4, 16)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def tiff(
    values: np.ndarray, bits: int, kind: int = UNSIGNED, *, white: int = 1, order: str = "<"
) -> bytes:
    """A grey TIFF of one strip; white: 0 is white (0) or black (1)."""
    height, width = values.shape
    if bits == 12:
        text = "".join(f"{v:012b}" for v in values.ravel().tolist())
        data = int(text, 2).to_bytes(len(text) // 8, "big")
    else:
        letter = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[kind]
        data = values.astype(f"{order}{letter}{bits // 8}").tobytes()
    data = zlib.compress(data) if order == "<" else data
    compression = 8 if order == "<" else 1
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: white, 273: 0, 277: 1}
    tags |= {278: height, 279: len(data), 339: kind}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()]
    return head + b"".join(entries) + struct.pack(f"{order}I", 0) + data


def pfm(values: np.ndarray, scale: float = -1.0) -> bytes:
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n{scale}\n"
    return head.encode() + values[::-1].astype("<f4" if scale < 0 else ">f4").tobytes()


RIGHT = {
    "float of 0 to 1": tiff(GREY / 255, 32, FLOAT),
    "float of 0 to 1, the other way round": tiff(GREY / 255, 32, FLOAT, order=">"),
    "float of 0 to 1 but for rounding": tiff(GREY / 255 * (1 + 1e-6), 32, FLOAT),
    "float of 0 to 255": tiff(GREY, 32, FLOAT),
    "float, white is zero": tiff(1 - GREY / 255, 32, FLOAT, white=0),
    "8 bits, white is zero": tiff(255 - GREY, 8, white=0),
    "12 bits": tiff(np.ceil(GREY * (4095 / 255)).astype(int), 12),
    "16 bits": tiff(GREY.astype(int) * 257, 16),
    "16 bits, the other way round": tiff(GREY.astype(int) * 257, 16, order=">"),
    "16 bits, white is zero": tiff(65535 - GREY.astype(int) * 257, 16, white=0),
    "16 bits in 32": tiff(GREY.astype(int) * 257, 32, SIGNED),
    "pfm": pfm(GREY / 255),
    "pfm, the other way round": pfm(GREY / 255, 1.0),
    "png of 16 bits": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "png"),
    "jpeg 2000 of 16 bits": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "jpeg2000"),
    "pgm of 4095": b"P5 16 4 4095\n" + np.ceil(GREY * (4095 / 255)).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_greys_of_any_depth(kind):
    assert np.array_equal(decode_image(RIGHT[kind])[:, :, 1], GREY), kind


UNKNOWN = {
    "float of 0 to 65535": tiff(GREY * 257.0, 32, FLOAT),
    "float above 1": tiff(GREY / 200, 32, FLOAT),
    "float below 0": tiff(GREY / 255 - 0.5, 32, FLOAT),
    "float with NaN": tiff(np.where(GREY > 250, np.nan, GREY / 255), 32, FLOAT),
    "float with infinity": tiff(np.where(GREY > 250, -np.inf, GREY / 255), 32, FLOAT),
    "pfm of another scale": pfm(GREY / 255, -2.0),
    "32 bits": tiff(GREY.astype(np.int64) << 24, 32),
    "32 bits, dark": tiff(GREY, 32),
    "32 bits, signed": tiff(GREY, 32, SIGNED),
    "32 bits of 4095": tiff(GREY.astype(int) * 16, 32, SIGNED),
    "32 bits below 0": tiff(GREY.astype(int) * 257 - 1, 32, SIGNED),
    "16 bits, signed": tiff(GREY.astype(int) * 128, 16, SIGNED),
    "8 bits, signed": tiff(GREY // 2, 8, SIGNED),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_numbers_of_unknown_range_are_rejected(kind):
    with pytest.raises(DataError, match=r"unknown range|not finite"):
        decode_image(UNKNOWN[kind], 4)


def test_float_tiffs_in_a_source_are_not_black(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.tif").write_bytes(RIGHT["float of 0 to 1"])
    (tmp_path / "3.pfm").write_bytes(RIGHT["pfm"])
    source = open_source(tmp_path)
    assert [decode_image(source.read(i)).max() for i in range(len(source))] == [255] * 4


# What is opened at all.

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_no_image_starts_a_program(tmp_path, monkeypatch, suffix):
    called = tmp_path / "called"
    decoy = tmp_path / "bin" / "gs"
    decoy.parent.mkdir()
    decoy.write_text(f"#!/bin/sh\necho x >> {called}\n")
    decoy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{decoy.parent}:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for again
    file = tmp_path / f"image{suffix}"
    file.write_bytes(EPS)
    with pytest.raises(DataError, match="not an image"):
        images.read_image(file)
    assert not called.exists()


def test_images_are_opened_in_one_place():
    package = Path(images.__file__).parent.parent
    opening = {p.name for p in package.rglob("*.py") if re.search(r"Image\.open\(", p.read_text())}
    assert opening == {"images.py"}


@pytest.mark.parametrize("kind", sorted(images.FORMATS))
def test_every_suffix_is_one_of_a_format_that_is_read(tmp_path, kind):
    if kind not in images.formats():
        pytest.skip(f"this Pillow was built without {kind}")
    picture = Image.new("RGB", (8, 8), (255, 0, 0))
    for i, suffix in enumerate(sorted(images.FORMATS[kind])):
        (tmp_path / f"{i}{suffix.upper()}").write_bytes(encoded(picture, kind))
    source = open_source(tmp_path)
    assert len(source) == len(images.FORMATS[kind]) and not source.ignored
    for i in range(len(source)):
        assert np.abs(decode_image(source.read(i)).mean((0, 1)) - [255, 0, 0]).max() < 20


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_images_are_refused_by_what_they_declare():
    """Before they are decoded: what decoders hold beside the pixels counts too."""
    whole = encoded(Image.new("RGB", (8, 8)), "webp", lossless=True)
    for side in (16_383, 10_000):
        bits = (side - 1) | (side - 1) << 14
        with pytest.raises(DataError, match="too large to open safely"):
            decode_image(whole[:21] + struct.pack("<I", bits) + whole[25:])
    bmp = bytearray(encoded(Image.new("RGB", (8, 8)), "bmp"))
    bmp[18:26] = struct.pack("<ii", 13_500, 13_500)
    with pytest.raises(DataError, match="too large to open safely"):
        decode_image(bytes(bmp))


# Images that change while they are encoded, or after.

RED, BLUE = (encoded(Image.new("RGB", (32, 32), c), "png") for c in ("red", "blue"))


def as_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def as_zip(root: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(f"{root}.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return Path(f"{root}.zip")


def as_tar(root: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(f"{root}.tar", "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return Path(f"{root}.tar")


def as_hdf5(root: Path, files: dict[str, bytes]) -> Path:
    with h5py.File(f"{root}.hdf5", "w") as archive:
        for name, data in files.items():
            archive[name] = np.frombuffer(data, np.uint8)
    return Path(f"{root}.hdf5")


def as_parquet(root: Path, files: dict[str, bytes]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    labels = [int(name > "b") for name in files]
    pq.write_table(arrow.table({"image": list(files.values()), "label": labels}), f"{root}.parquet")
    return Path(f"{root}.parquet")


OPEN_VAE = functools.cache(encode.open_first_stage)


@pytest.fixture
def quick(monkeypatch):
    """The VAE is opened once for all of them."""
    monkeypatch.setattr(encode, "open_first_stage", OPEN_VAE)


FILES = {"ant/0.png": RED, "ant/1.png": RED, "cat/0.png": RED, "cat/1.png": RED}
KINDS = [as_folder, as_zip, as_tar, as_hdf5, as_parquet]


def extraction(images: Path, out: Path, *more: str) -> list:
    command = ["python", "-m", "sra2cli", "extract", images, "--out", out, "--vae", "digits"]
    return [*command, "--resolution", "8", "--offline", "--workers", "0", *more]


@pytest.mark.parametrize("write", KINDS)
def test_an_image_that_was_exchanged_is_noticed(quick, tmp_path, write):
    images, out = write(tmp_path / "x", FILES), tmp_path / "a.h5"
    assert finished(extraction(images, out)).returncode == 0
    assert finished(extraction(images, out)).returncode == 0
    write(tmp_path / "x", FILES)  # written anew, but the same
    assert finished(extraction(images, out)).returncode == 0
    write(tmp_path / "x", {**FILES, "cat/1.png": BLUE})
    line = one_line(finished(extraction(images, out)), 2)
    assert "1 images have changed since" in line and "remove it" in line


@pytest.mark.parametrize("write", KINDS)
def test_a_repaired_image_is_noticed(quick, tmp_path, write):
    images, out = write(tmp_path / "x", {**FILES, "ant/0.png": RED[:60]}), tmp_path / "a.h5"
    assert "1 images could not be read" in one_line(finished(extraction(images, out)), 1)
    assert "1 images could not be read" in one_line(finished(extraction(images, out)), 1)
    write(tmp_path / "x", FILES)
    assert "1 images have changed since" in one_line(finished(extraction(images, out)), 2)
    assert finished(extraction(images, tmp_path / "b.h5")).returncode == 0


def test_an_older_image_in_its_place_is_noticed(quick, tmp_path):
    """Moved there, with the date and the size it had."""
    images, out = as_folder(tmp_path / "x", FILES), tmp_path / "a.h5"
    bitmaps = [encoded(Image.new("RGB", (32, 32), c), "bmp") for c in ("red", "blue")]
    other = tmp_path / "other.png"
    for file, data in ((images / "cat/1.png", bitmaps[0]), (other, bitmaps[1])):
        file.write_bytes(data)
        os.utime(file, (1, 1))
    assert finished(extraction(images, out)).returncode == 0
    other.replace(images / "cat/1.png")
    assert "as cat/1.png" in one_line(finished(extraction(images, out)), 2)


@pytest.mark.parametrize("write", [as_folder, as_parquet])
def test_images_exchanged_before_it_goes_on_are_encoded_again(quick, tmp_path, write, monkeypatch):
    from sra2cli.extraction import extract as room

    first = {**FILES, "ant/0.png": RED[:60], "ant/1.png": BLUE}
    images, out = write(tmp_path / "x", first), tmp_path / "a.h5"

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "list_rejects", killed)  # all rows are written, none is finished
        assert finished(extraction(images, out)).returncode == 130
    write(tmp_path / "x", {**FILES, "cat/0.png": RED[:60]})
    done = finished(extraction(images, out, "--allow-rejects"))
    assert done.returncode == 0 and "2 images have changed and are encoded again" in done.stderr
    assert finished(extraction(images, tmp_path / "b.h5", "--allow-rejects")).returncode == 0
    assert out.read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert "cat/0.png" in (tmp_path / "a.h5.rejects.txt").read_text() or write is as_parquet


def test_a_store_without_contents_is_complete_as_ever(quick, tmp_path):
    images, out = as_folder(tmp_path / "x", FILES), tmp_path / "a.h5"
    assert finished(extraction(images, out)).returncode == 0
    with h5py.File(out, "r+") as f:
        del f["contents"]
    assert finished(extraction(images, out)).returncode == 0


# Numbers that are not finite.


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_latent_that_is_not_finite_names_the_image(quick, tmp_path, monkeypatch, precision):
    images = as_folder(tmp_path / "x", {**FILES, "cat/1.png": BLUE})
    whole = OPEN_VAE.__wrapped__("digits", device="cpu", offline=True, precision=precision)
    encoded_by = type(whole).encode

    def damaged(self: object, batch: torch.Tensor) -> torch.Tensor:
        blue = (batch[:, 0, 0, 2] == 255)[:, None, None, None]
        return encoded_by(self, batch).float().masked_fill(blue, float("nan"))

    monkeypatch.setattr(type(whole), "encode", damaged)
    done = finished(extraction(images, tmp_path / "a.h5", "--precision", precision))
    line = one_line(done, 1)
    assert "cat/1.png: its moments are not finite" in line and "weights" in line
    assert ("--precision fp32" in line) is (precision == "fp16")


def test_features_that_are_not_finite_name_the_image(tmp_path):
    info = replace(INFO, encoder="toy", encoder_fingerprint="0", feature_tokens=1, feature_width=1)
    writer = StoreWriter(tmp_path / "a.h5", info, ["0.png", "1.png"], [0, 0])
    features = np.array([[[1.0]], [[np.inf]]], np.float16)
    moments = np.zeros((2, *info.sets["moments"].shape), np.float32)
    with pytest.raises(DataError, match=r"1\.png: its features are not finite .*float16 holds"):
        writer.write([0, 1], {"moments": moments, "features": features})
    assert not writer.state.any()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_imported_latents_that_the_stored_type_cannot_hold(quick, tmp_path):
    (tmp_path / "x").mkdir()
    vae = OPEN_VAE("digits", device="cpu", offline=True, precision="fp32")
    for i, value in enumerate((1.0, 1e6, np.nan)):
        moments = np.full((2 * vae.channels, 1, 1), value, np.float32)
        np.save(tmp_path / "x" / f"{i}.npy", moments)
    side = str(vae.factor)
    more = ["--dtype", "float16", "--resolution", side]
    line = one_line(finished(extraction(tmp_path / "x", tmp_path / "a.h5", *more)), 1)
    assert "1.npy: its moments reach 1e+06, more than float16 holds" in line
    finished(extraction(tmp_path / "x", tmp_path / "b.h5", "--resolution", side))
    assert "2.npy\tholds numbers that are not finite" in (tmp_path / "b.h5.rejects.txt").read_text()


def test_a_jpeg_that_its_decoder_warns_of_is_rejected():
    """libjpeg fills a hole with grey, and PIL says nothing of it."""
    pytest.importorskip("simplejpeg")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(noise).convert("CMYK")):
        for options in ({}, {"progressive": True}, {"optimize": True}):
            whole = encoded(image, "jpeg", **options)
            images.refuse_damaged_jpeg(whole)
    whole = encoded(Image.fromarray(noise), "jpeg")
    middle = len(whole) // 2
    hole = whole[:middle] + bytes(400) + whole[middle + 400 :]
    rows = [whole, hole, encoded(Image.fromarray(noise), "png")]
    source = Source(Path("x"), list("abc"), None, [], rows.__getitem__)
    chunk = Chunks(source, [range(3)], 32)[0]
    assert chunk.rows == [0, 2] and "Corrupt JPEG data" in chunk.rejected[1]
