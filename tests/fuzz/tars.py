"""Damaged tars, of folders and of WebDataset samples."""

import io
import tarfile
import zlib
from pathlib import Path

from .archives import Files, Made, files_of, labels_of
from .damage import Damage
from .mutate import Rng, damaged, odd_json, pick


def tarred(
    files: Files, *more: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info, data in more:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def _info(
    name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = ""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def _tar_types(rng: Rng, files: Files) -> Made:
    name, kind = pick(
        rng,
        (
            ("symbolic link", tarfile.SYMTYPE),
            ("hard link", tarfile.LNKTYPE),
            ("fifo", tarfile.FIFOTYPE),
            ("device", tarfile.CHRTYPE),
            ("folder", tarfile.DIRTYPE),
            ("continuous", tarfile.CONTTYPE),
            ("sparse", tarfile.GNUTYPE_SPARSE),
            ("unknown", b"Z"),
        ),
    )
    targets = ("../../../etc/passwd", "nowhere.png", "class0/x.png", *list(files)[:1], "")
    link = pick(rng, targets)
    info = _info("class0/x.png", kind, link=link)
    return tarred(files, (info, b"")), f"a member is a {name} to {link!r}", False


def _tar_pax(rng: Rng, files: Files) -> Made:
    info = _info("class0/x.png")
    key, value = pick(
        rng,
        (
            ("size", "999999999999999"),
            ("size", "-5"),
            ("size", "abc"),
            ("path", "../" * 20 + "evil.png"),
            ("path", "class0/\0.png"),
            ("GNU.sparse.size", "1000000000000"),
            ("GNU.sparse.map", "0,x"),
            ("GNU.sparse.major", "1"),
            ("mtime", "nan"),
            ("linkpath", "x" * 100_000),
        ),
    )
    info.pax_headers = {key: value}
    return tarred(files, (info, b"")), f"pax {key} = {value[:20]!r}", False


def _tar_header(rng: Rng, files: Files) -> Made:
    """A field of the second header, with the right checksum."""
    data = bytearray(tarred(files, format=tarfile.USTAR_FORMAT))
    at = data.find(list(files)[1].encode())
    where, value = pick(
        rng,
        (
            (124, b"77777777777\0"),
            (124, b"\x80" + b"\0" * 3 + b"\xff" * 8),
            (124, b"\xff" * 12),
            (124, b"00000000000\0"),
            (124, b"not a size!\0"),
            (0, b"\xff\xfe\xfd.png\0"),
            (0, b"\0" * 20),
            (156, b"1"),
            (156, b"x"),
            (156, b"L"),
        ),
    )
    data[at + where : at + where + len(value)] = value
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 155] = b"%06o\0" % sum(data[at : at + 512])
    return bytes(data), f"header at {where} = {value[:6]!r}", False


def _tar_twice(rng: Rng, files: Files) -> Made:
    name = pick(rng, files)
    other = files[pick(rng, [n for n in files if n != name])]
    return tarred(files, (_info(name, size=len(other)), other)), f"{name} twice", True


def _tar_around(rng: Rng, files: Files) -> Made:
    data = tarred(files)
    name, made = pick(
        rng,
        (
            ("no members", tarred({})),
            ("no images", tarred({"a.txt": b"-"})),
            ("two tars", data + data),
            ("no end", data.rstrip(b"\0")),
            ("blocks of zeros inside", data[:1024] + bytes(1024) + data[1024:]),
            ("compressed", zlib.compress(data)),
            ("old names", tarred(files, format=tarfile.GNU_FORMAT)),
        ),
    )
    return made, name, name in ("no members", "no images", "blocks of zeros inside", "compressed")


def _tar_dataset(rng: Rng, files: Files) -> Made:
    data, note = odd_json(rng, labels_of(files))
    return tarred({**files, "dataset.json": data}), f"dataset.json: {note}", False


TARS = (_tar_types, _tar_pax, _tar_header, _tar_twice, _tar_around, _tar_dataset)


def tar_file(rng: Rng, base: Path, into: Path) -> Damage:
    files, file, must = files_of(base), into / "images.tar", False
    if rng.random() < 0.3:
        data, note = damaged(rng, tarred(files))
    else:
        data, note, must = pick(rng, TARS)(rng, files)
    file.write_bytes(data)
    return Damage(file, note, must)


# --- WebDataset

SIDES = (
    b"", b"-1", b"1.5", b"cat", b"\xff\xfe", b"9" * 5000, b"1\n2", b" 3 ", b"0x3", b"1e400",
    b"99999999999999999999", "٣".encode(), b"null", b"true",
)  # fmt: skip
SIDE_TREES = (
    "[]", "{}", "3", "[1]", '{"label": null}', '{"label": "cat"}', '{"label": [1]}',
    '{"label": NaN}', '{"label": 1e400}', '{"label": true}', '{"label": 1.5}', '{"label": {}}',
    '{"label": -1}', '{"label": ' + "9" * 5000 + "}", "[" * 100_000, '{"label": 1, "label": 0}',
    '{"label": 1, "cls": 0}', '"label"', '{"label": 99999999999999999999}',
)  # fmt: skip


def webdataset(rng: Rng, base: Path, into: Path) -> Damage:
    """Two shards of samples; one side file is odd, or missing, or the members are."""
    images = list(files_of(base).values())
    json_beside, odd = rng.random() < 0.5, int(rng.integers(len(images)))
    side = pick(rng, SIDE_TREES).encode() if json_beside else pick(rng, SIDES)
    suffix, how = (
        "json" if json_beside else "cls",
        pick(rng, ("side",) * 4 + ("gone", "key", "bytes")),
    )
    note, must = f".{suffix} is {side[:24]!r}", how == "gone"
    for shard in range(2):
        files: Files = {}
        for i in range(shard, len(images), 2):
            good = b'{"label": %d}' % (i % 3) if json_beside else b"%d" % (i % 3)
            key = f"{i:06d}"
            if i == odd and how == "key":
                key = note = pick(rng, ("a.b.c", "", ".", "x/y/z", "ä", " ", "000000"))
            files[f"{key}.png"] = images[i]
            if i != odd or how != "gone":
                files[f"{key}.{suffix}"] = side if i == odd and how == "side" else good
        data = tarred(files)
        if how == "bytes" and shard == odd % 2:
            data, note = damaged(rng, data)
        (into / f"train-{shard:06d}.tar").write_bytes(data)
    return Damage(into, note if how != "gone" else f"no .{suffix} beside an image", must)
