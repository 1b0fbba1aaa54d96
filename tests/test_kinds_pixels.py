"""Pixels mean what the format says, and nothing but pixels comes of an image."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from sra2cli.core.errors import DataError
from sra2cli.data import images
from sra2cli.data.images import SUFFIXES, decode_image
from sra2cli.data.sources import open_source

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
