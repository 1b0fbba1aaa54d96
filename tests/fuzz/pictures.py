"""Damaged images, folders of them, and what lies beside them."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import seeds
from .damage import Damage
from .mutate import Rng, damaged, odd_json, pick

FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm")


def encoded(image: Image.Image, suffix: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, {"jpg": "jpeg"}.get(suffix, suffix), **options)
    return out.getvalue()


def _png(width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + end

    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, bits, colour, 0, 0, 0)
    body = zlib.compress(data or bytes(4096))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def _huge(rng: Rng, image: Image.Image) -> tuple[bytes, str]:
    side = pick(rng, (16_383, 20_000, 60_000, 2**31 - 1, 0))
    other = pick(rng, (1, side))
    name, data = pick(
        rng,
        (
            ("png", _png(side, other)),
            ("ppm", b"P6 %d %d 255\n" % (side, other) + bytes(100)),
            ("bmp", encoded(image, "bmp")[:18] + struct.pack("<ii", side, other) + bytes(60)),
            ("gif", b"GIF89a" + struct.pack("<HH", side & 65535, other & 65535) + bytes(40)),
            ("webp", _webp(min(side, 16_383) or 1)),
        ),
    )
    return data, f"{name} says {side}x{other}"


def _webp(side: int) -> bytes:
    """A lossless WebP of one colour, as its header says of any side."""
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "webp", lossless=True))
    at = data.find(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, bits & ~0xFFFFFFF | (side - 1) | (side - 1) << 14)
    return bytes(data)


def _foreign(rng: Rng, image: Image.Image) -> tuple[bytes, str]:
    """What Pillow would open, and we need not: some of it by other programs."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    dos = b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(eps)) + bytes(20)
    name, data = pick(
        rng,
        (
            ("EPS", eps),
            ("EPS in a DOS file", dos + eps),
            ("PDF", encoded(image, "pdf")),
            ("ICO", encoded(image, "ico")),
            ("TGA", encoded(image, "tga")),
            ("PCX", encoded(image, "pcx")),
            ("IM", encoded(image, "im")),
            ("ICNS", encoded(image.resize((64, 64)), "icns")),
            ("MPO", encoded(image, "mpo")),
            ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
            ("FITS", b"SIMPLE  =                    T" + b" " * 2850),
            ("npy", b"\x93NUMPY" + bytes(100)),
        ),
    )  # fmt: skip
    return data, f"{name} inside"


def _mode(rng: Rng, image: Image.Image) -> tuple[bytes, str]:
    grey = np.asarray(image.convert("L"))
    values = pick(
        rng,
        (grey / 255.0, grey * 257.0, np.full(grey.shape, pick(rng, (np.nan, np.inf))), grey - 1e30),
    )
    name, made, suffix = pick(
        rng,
        (
            ("float", Image.fromarray(values.astype(np.float32)), "tiff"),
            ("32 bits", Image.fromarray(grey.astype(np.int32) * 2**23), "tiff"),
            ("16 bits", Image.fromarray(grey.astype(np.uint16) * 257), "png"),
            ("one bit", image.convert("1"), "png"),
            ("CMYK", image.convert("CMYK"), "jpg"),
            ("LAB", image.convert("LAB"), "tiff"),
            ("palette", image.convert("P"), "gif"),
            ("grey and alpha", image.convert("LA"), "png"),
            ("1x1", image.resize((1, 1)), "png"),
            ("1x4000", image.resize((1, 4000)), "png"),
        ),
    )
    return encoded(made, suffix), f"mode {name}"


def _text(rng: Rng, image: Image.Image) -> tuple[bytes, str]:
    """A PNG whose text unpacks to far more than it is."""
    body = b"k\0\0" + zlib.compress(bytes(32 << 20), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = encoded(image, "png")
    return data[:33] + chunk + data[33:], "a text of 32 MB in it"


IMAGES: tuple[Callable[[Rng, Image.Image], tuple[bytes, str]], ...] = (
    _huge, _huge, _foreign, _foreign, _mode, _mode, _text,
)  # fmt: skip


def image(rng: Rng, base: Path, into: Path) -> Damage:
    """A folder of images, one of them damaged."""
    root = seeds.copy(base, "images", into / "images")
    file = pick(rng, sorted(root.glob("*/*.png")))
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    if rng.random() < 0.5:
        suffix = pick(rng, FORMATS)
        data, note = damaged(rng, encoded(picture, suffix))
        note = f"{suffix}: {note}"
    else:
        data, note = pick(rng, IMAGES)(rng, picture)
        suffix = pick(rng, FORMATS)
    file.unlink()
    file.with_suffix(f".{suffix}").write_bytes(data)
    return Damage(root, note)


NAMES = (
    "\n.png", "-rf.png", "x" * 250 + ".png", "\u202e.png", "é.png", "[0-9].png", "a\tb.png",
    "%s.png", "{x}.png", "~.png", "[red]x.png", os.fsdecode(b"\xff\xfe.png"), "\x1b[31mx.png",
)  # fmt: skip


def folder(rng: Rng, base: Path, into: Path) -> Damage:
    """Class folders with something odd among them."""
    root = seeds.copy(base, "images", into / "images")
    some = sorted(root.glob("*/*.png"))[0]
    how = pick(rng, ("name", "class", "link", "loop", "fifo", "nested", "empty", "mixed", "none"))
    must = how in ("empty", "mixed", "none")
    if how == "name":
        (root / "class0" / pick(rng, NAMES)).write_bytes(some.read_bytes())
    elif how == "class":
        other = root / pick(rng, NAMES).removesuffix(".png")
        other.mkdir(exist_ok=True)
        (other / "0.png").write_bytes(some.read_bytes())
    elif how == "link":
        target = pick(rng, ("nowhere.png", "/dev/zero", "/proc/self/mem", "..", str(some)))
        (root / "class0" / "x.png").symlink_to(target)
    elif how == "loop":
        (root / "class2").symlink_to(pick(rng, (root, root / "class0", root / "class2")))
    elif how == "fifo":
        os.mkfifo(root / "class0" / "x.png")
    elif how == "nested":
        (root / "class0" / "x.png").mkdir()
        (root / "class0" / "x.png" / "y.png").write_bytes(some.read_bytes())
    elif how == "empty":
        (root / "class00").mkdir()
    elif how == "mixed":
        (root / "x.png").write_bytes(some.read_bytes())
    else:
        root = into / "nothing"
        root.mkdir()
    return Damage(root, how, must)


def dataset_json(rng: Rng, base: Path, into: Path) -> Damage:
    """Labels of a folder of images."""
    root = seeds.copy(base, "images", into / "images")
    names = [str(p.relative_to(root)) for p in sorted(root.glob("*/*.png"))]
    labels = {"labels": [[name, i % 3] for i, name in enumerate(names)]}
    data, note = odd_json(rng, json.dumps(labels).encode())
    (root / "dataset.json").write_bytes(data)
    return Damage(root, note)


def latents(rng: Rng, base: Path, into: Path) -> Damage:
    """Moments of others, one array of them odd."""
    root = seeds.copy(base, "latents", into / "latents")
    file, must = pick(rng, sorted(root.glob("*.npy"))), False
    array = np.load(file)
    if rng.random() < 0.4:
        data, note = damaged(rng, file.read_bytes())
        file.write_bytes(data)
    else:
        note, made = pick(rng, list(_arrays(array).items()))
        must = note in ("nan", "infinite", "another shape", "objects", "text", "huge")
        if isinstance(made, bytes):
            file.write_bytes(made)
        else:
            np.save(file, made, allow_pickle=True)
    return Damage(root, note, must)


def _arrays(array: np.ndarray) -> dict[str, Any]:
    odd = array.copy()
    odd[0, 0, 0] = np.nan
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (32, 100000, 100000), }"
    header += b" " * (117 - len(header)) + b"\n"
    return {
        "nan": odd,
        "infinite": array + np.float32(np.inf),
        "another shape": array[:, :4],
        "another type": array.astype(np.float64),
        "whole numbers": array.astype(np.int16),
        "complex": array.astype(np.complex64),
        "objects": array.astype(object),
        "text": array.astype("U8"),
        "in Fortran's order": np.asfortranarray(array),
        "big endian": array.astype(">f4"),
        "nothing": array[:0],
        "huge": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100),
        "one number": np.float32(1),
    }
