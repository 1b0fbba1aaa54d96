"""Damaged zips."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from .damage import Damage
from .mutate import Rng, damaged, odd_json, pick

DAY = (2024, 1, 1, 0, 0, 0)
Files = dict[str, bytes]


def files_of(base: Path) -> Files:
    """The images of the seeds by their names in the archive."""
    root = base / "images"
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.glob("*/*.png"))}


def labels_of(files: Files) -> bytes:
    return json.dumps({"labels": [[n, int(n[5])] for n in files]}).encode()


def zipped(files: Files, *, deflate: bool = False) -> bytes:
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", kind) as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name, DAY), data, kind)
    return out.getvalue()


# --- zip: (bytes, note, must fail)

Made = tuple[bytes, str, bool]


def _field(data: bytes, offset: int, form: str, value: int, entry: int = 0) -> bytes:
    """Another value in an entry of the central directory."""
    at, out = data.find(b"PK\x05\x06"), bytearray(data)
    (start,) = struct.unpack_from("<I", data, at + 16)
    for _ in range(entry):
        start = data.find(b"PK\x01\x02", start + 4)
    struct.pack_into(form, out, start + offset, value)
    return bytes(out)


def _zip_sizes(rng: Rng, files: Files) -> Made:
    which, value = pick(rng, (20, 24)), pick(rng, (0, 1, 2**31, 2**32 - 2, 2**32 - 1))
    return _field(zipped(files), which, "<I", value, entry=2), f"size {which} = {value}", False


def _zip_fields(rng: Rng, files: Files) -> Made:
    offset, form = pick(
        rng, ((8, "<H"), (10, "<H"), (16, "<I"), (28, "<H"), (30, "<H"), (42, "<I"))
    )
    value = pick(rng, (0, 1, 99, 2**15))
    return _field(zipped(files), offset, form, value, 1), f"field {offset} = {value}", False


def bomb(size: int) -> bytes:
    """A deflate stream that unpacks to zeros: one flushed part, repeated."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    part = engine.compress(bytes(1 << 24)) + engine.flush(zlib.Z_FULL_FLUSH)
    return part * (size >> 24) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def _zip_bomb(rng: Rng, files: Files) -> Made:
    size, name = 6 << 30, pick(rng, ("dataset.json", "class0/0009.png"))
    data, packed = zipped({**files, name: b"!" * 64}, deflate=True), bomb(size)
    start = data.rfind(b"PK\x03\x04")
    head = bytearray(data[start : start + 30 + len(name)])
    directory = bytearray(data[data.find(b"PK\x01\x02") :])
    entry = directory.rfind(b"PK\x01\x02")
    declared = pick(rng, (2**32 - 2, 64))
    struct.pack_into("<II", head, 18, len(packed), declared)
    struct.pack_into("<II", directory, entry + 20, len(packed), declared)
    body = data[:start] + bytes(head) + packed
    end = directory.rfind(b"PK\x05\x06")
    struct.pack_into("<I", directory, end + 16, len(body))
    return body + bytes(directory), f"{name} unpacks to 6 GB, says {declared}", True


def _zip_names(rng: Rng, files: Files) -> Made:
    odd, must = pick(
        rng,
        (
            ("../../../evil.png", False),
            ("/etc/evil.png", False),
            ("class0/../class1/x.png", False),
            ("class0\\x.png", False),
            ("class0//x.png", False),
            ("class0/\u202ex\n.png", False),
            ("class0/" + "x" * 5000 + ".png", False),
            ("class0/\udcff.png".encode("utf-8", "surrogateescape").decode("latin-1"), False),
            ("class0", False),
            ("class0/x.png/y.png", False),
            (" class0/x.png", False),
            (".png", False),
        ),
    )
    return zipped({**files, odd: next(iter(files.values()))}), f"a member {odd[:30]!r}", must


def _zip_twice(rng: Rng, files: Files) -> Made:
    name = pick(rng, files)
    other = pick(rng, [n for n in files if n != name])
    data = zipped({**files, "class0/9999.png": files[other]})
    twin = b"class0/9999.png"
    return data.replace(twin, name.encode()), f"{name} twice", True


def _zip_flags(rng: Rng, files: Files) -> Made:
    at, what = pick(rng, ((8, "encrypted"), (38, "a link")))
    value = 1 if at == 8 else 0o120777 << 16
    return _field(zipped(files), at, "<H" if at == 8 else "<I", value, 1), what, at == 8


def _zip_dataset(rng: Rng, files: Files) -> Made:
    data, note = odd_json(rng, labels_of(files))
    return zipped({**files, "dataset.json": data}, deflate=True), f"dataset.json: {note}", False


def _zip_around(rng: Rng, files: Files) -> Made:
    data = zipped(files)
    name, made = pick(
        rng,
        (
            ("no members", zipped({})),
            ("no images", zipped({"readme.txt": b"-", "class0/": b""})),
            ("a zip in it", zipped({"images.zip": data})),
            ("a program before it", b"#!/bin/sh\n" + data),
            ("two zips", data + data),
            ("a comment", data[:-2] + b"\xff\xff" + b"c" * 65535),
            ("an empty class", zipped({**files, "class00/": b""})),
        ),
    )
    return made, name, name in ("no members", "no images")


ZIPS: tuple[Callable[[Rng, Files], Made], ...] = (
    _zip_sizes, _zip_fields, _zip_bomb, _zip_names, _zip_twice, _zip_flags, _zip_dataset,
    _zip_dataset, _zip_around,
)  # fmt: skip


def zip_file(rng: Rng, base: Path, into: Path) -> Damage:
    files, file, must = files_of(base), into / "images.zip", False
    if rng.random() < 0.4:
        if rng.random() < 0.3:
            files["dataset.json"] = labels_of(files)
        data, note = damaged(rng, zipped(files, deflate=rng.random() < 0.5))
    else:
        data, note, must = pick(rng, ZIPS)(rng, files)
    file.write_bytes(data)
    return Damage(file, note, must)
