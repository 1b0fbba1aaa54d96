"""Draw the packaged emoji again: one sheet of pictures, and a table of their captions.

Needs Debian's fonts-noto-color-emoji (2.042) and unicode-data (15.0), and a Pillow with raqm:

    python tools/make_emoji.py

Kept is what Unicode lists as fully qualified, but for families, couples, pairs of two skin tones,
and pictures that are equal to others; among equal flags the one of COMMON stays.
"""

import csv
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sra2cli.data.emoji import CLASSES, COLUMNS, SHEET, SIDE, TABLE, TONES, tone_of

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
LICENCES = {
    "OFL-1.1.txt": Path("/usr/share/doc/fonts-noto-color-emoji/copyright"),
    "Apache-2.0.txt": Path("/usr/share/common-licenses/Apache-2.0"),
    "Unicode.txt": Path("/usr/share/doc/unicode-data/copyright"),
}
NATIVE, HEIGHT, POINTS = 136, 128, 109  # the font holds bitmaps of 136x128, at this size alone
QUALITY = 90
COMMON = {  # of equal flags, the one that is meant more often
    *("flag: Australia", "flag: British Indian Ocean Territory", "flag: France"),
    *("flag: Norway", "flag: Spain", "flag: United States"),
}
GROUPS = {
    "Smileys & Emotion": "faces",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
SUBGROUPS = {  # where a group says too little
    "heart": "symbols",
    "emotion": "symbols",
    "hands": "hands",
    "body-parts": "hands",
    "person-sport": "activities",
}
LINE = re.compile(r"([0-9A-F ]+?) *; fully-qualified *# \S+ E[0-9.]+ (.+)")


def listed() -> list[tuple[str, str, str]]:
    """(characters, name, class) of what Unicode lists and we keep, in its order."""
    found, group, subgroup = [], "", ""
    for line in NAMES.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif (match := LINE.match(line)) and group in GROUPS:
            name = match[2].strip()
            several = subgroup == "family" or name.startswith("family")
            if several or name.count("skin tone") > 1:
                continue
            kind = "hands" if subgroup.startswith("hand-") else SUBGROUPS.get(subgroup)
            text = "".join(chr(int(code, 16)) for code in match[1].split())
            found.append((text, name, kind or GROUPS[group]))
    return found


def draw(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """A glyph on white, NATIVE pixels wide and high; ValueError if it is not one glyph."""
    if font.getbbox(text) != (0, 0, NATIVE, HEIGHT):
        raise ValueError(f"{text!r} is not one glyph of {FONT}")
    picture = Image.new("RGB", (NATIVE, NATIVE), "white")
    at = (0, (NATIVE - HEIGHT) // 2)
    ImageDraw.Draw(picture).text(at, text, font=font, embedded_color=True)
    return picture


def drawn() -> list[tuple[str, str, Image.Image]]:
    """(name, class, picture), without what looks like another."""
    font = ImageFont.truetype(FONT, POINTS, layout_engine=ImageFont.Layout.RAQM)
    rows = [(name, kind, draw(text, font)) for text, name, kind in listed()]
    first: dict[bytes, str] = {}
    for name, _, picture in sorted(rows, key=lambda row: row[0] not in COMMON):
        first.setdefault(picture.tobytes(), name)
    return [row for row in rows if first[row[2].tobytes()] == row[0]]


def split(names: list[str]) -> list[str]:
    """ "test" for one skin tone of each person or hand that has all five, in turn."""
    tones: dict[str, set[str]] = {}
    for name in names:
        base, tone = tone_of(name)
        tones.setdefault(base, set()).add(tone)
    full = [base for base, found in tones.items() if set(TONES) <= found]
    held_out = {(base, TONES[i % len(TONES)]) for i, base in enumerate(full)}
    return ["test" if tone_of(name) in held_out else "train" for name in names]


def sheet(tiles: list[Image.Image]) -> Image.Image:
    """The pictures, each brought to SIDE, in rows of COLUMNS."""
    size = (COLUMNS * SIDE, -(-len(tiles) // COLUMNS) * SIDE)
    made = Image.new("RGB", size, "white")
    for i, tile in enumerate(tiles):
        row, column = divmod(i, COLUMNS)
        small = tile.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        made.paste(small, (column * SIDE, row * SIDE))
    return made


def main() -> None:
    """Draw all, write sheet, table and licences, and print what there is."""
    rows = drawn()
    names = [name for name, _, _ in rows]
    parts = split(names)
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    made = sheet([picture for _, _, picture in rows])
    made.save(SHEET, quality=QUALITY, method=6)
    lines = [(name, kind, part) for (name, kind, _), part in zip(rows, parts, strict=True)]
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("caption", "class", "split"), *lines])
    for name, source in LICENCES.items():
        (SHEET.parent / name).write_bytes(source.read_bytes())
    with Image.open(SHEET) as file:
        error = np.asarray(file.convert("RGB"), np.float64) - np.asarray(made)
    decibels = 10 * np.log10(255**2 / (error**2).mean())
    print(f"{len(rows):,} pictures, {parts.count('test')} of them held out; ", end="")
    print(f"{SHEET.stat().st_size / 1e6:.2f} MB, {decibels:.1f} dB")
    for kind in CLASSES:
        print(f"{kind}: {sum(name == kind for _, name, _ in rows)}")


if __name__ == "__main__":
    main()
