"""What a caption is, and where captions stand in the files of others."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from sra2cli.core.errors import SetupError
from sra2cli.data.sources.labels import parse

AUTO = "auto"  # as the choice of captions: look for them
COLUMNS = ("text", "caption", "captions")  # of a metadata file, the first of these that is there
KEYS = ("caption", "text")  # of a .json beside an image, the same
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # as datasets' imagefolder has them
UNLIKE = (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")  # of files that list captions

Captions = tuple[str, ...]  # of one image, in order
Listed = dict[str, Captions]  # by the names of images


def captions_of(value: Any, where: str) -> Captions:
    """A text or a list of texts as captions. White space is none, but "" in a list is one.

    Raises:
        SetupError: it is neither. where: it stands.
    """
    if isinstance(value, str):
        return (_whole(value),) if value.strip() else ()
    several = [] if value is None else value
    if not isinstance(several, list) or not all(isinstance(v, str | None) for v in several):
        raise SetupError(
            f"{where}: a caption is a text, or a list of texts, not {str(value)[:40]!r}: mend it, "
            "or choose another --captions"
        )
    return tuple(_whole(v) for v in several if v == "" or (v is not None and v.strip()))


def _whole(text: str) -> str:
    """Without halves of pairs, which JSON may hold and UTF-8 may not."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def decoded(data: bytes, where: str) -> str:
    """The text of a file; SetupError where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SetupError(f"{where} is not UTF-8 (byte {error.start:,}): convert it") from None


def lines_of(data: bytes, where: str) -> Captions:
    """The captions in a text file: every line that is not white space."""
    lines = decoded(data, where).split("\n")
    return tuple(line.removesuffix("\r") for line in lines if line.strip())


def key_of(data: bytes, where: str, key: str | None) -> Captions:
    """The captions in a .json beside an image. key: under which; None: the first of KEYS."""
    try:
        tree = parse(data)
    except ValueError as error:
        raise SetupError(f"{where} is no JSON ({' '.join(str(error).split())[:80]})") from None
    keys = [k for k in (KEYS if key is None else (key,)) if isinstance(tree, dict) and k in tree]
    return captions_of(tree[keys[0]], where) if keys else ()


def table_of(data: bytes, where: str, column: str | None) -> Listed:
    """Captions by `file_name` in a .jsonl, .csv or .parquet; rows of one name are put together.

    Args:
        column: of the captions; None: the first of COLUMNS that there is.

    Raises:
        SetupError: it is no such table, or has no such columns.
    """
    rows = list(_rows(data, where))
    names = dict.fromkeys(name for row in rows for name in row)
    wanted = COLUMNS if column is None else (column,)
    found = next((name for name in wanted if name in names), None)
    if "file_name" not in names or found is None:
        missing = "file_name" if "file_name" not in names else " or ".join(wanted)
        has = ", ".join(names) or "none"
        raise SetupError(f"{where} has no column {missing} (it has {has[:100]}): --captions COLUMN")
    listed: Listed = {}
    for number, row in enumerate(rows, 1):
        name, place = row.get("file_name"), f"{where}, row {number}"
        if not isinstance(name, str) or not name:
            raise SetupError(f"{place} has no file_name")
        listed[name] = listed.get(name, ()) + captions_of(row.get(found), place)
    return listed


def _rows(data: bytes, where: str) -> Iterator[dict[str, Any]]:
    """The rows of a table, by its suffix."""
    if where.lower().endswith(".parquet"):
        from sra2cli.data.sources.parquet import rows_of

        yield from rows_of(data, where)
    elif where.lower().endswith(".csv"):
        text = decoded(data, where)
        try:
            for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
                if None in row:  # what DictReader has no column for
                    raise SetupError(
                        f"{where}, row {number} has more fields than columns: put captions with "
                        "commas in quotes"
                    )
                yield row
        except csv.Error as error:
            raise SetupError(f"{where} is no CSV: {error}") from None
    else:
        for number, line in enumerate(decoded(data, where).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise SetupError(f"{where}, line {number}: not an object of JSON")
            yield row


def coco_of(data: bytes, where: str) -> Listed:
    """Captions by `file_name` in COCO's captions_*.json: images by id, captions by theirs.

    Raises:
        SetupError: it is no such file.
    """
    try:
        tree = json.loads(data)
        images = sorted(tree["images"], key=lambda image: int(image["id"]))
        notes: Sequence[Any] = tree["annotations"]
        if all(isinstance(note.get("id"), int) for note in notes):
            notes = sorted(notes, key=lambda note: int(note["id"]))
        names = {image["id"]: str(image["file_name"]) for image in images}
        texts: dict[Any, list[Any]] = {number: [] for number in names}
        for note in notes:
            texts[note["image_id"]].append(note["caption"])
    except UNLIKE as error:
        what = " ".join(f"{type(error).__name__} {error}".split())[:80]
        raise SetupError(
            f"{where} is not as COCO's captions_*.json, with images (id, file_name) and "
            f"annotations (image_id, caption): {what}"
        ) from None
    listed: Listed = {}
    for number, name in names.items():
        listed[name] = listed.get(name, ()) + captions_of(texts[number], f"{where}: {name}")
    return listed


def listed_in(data: bytes, where: str, column: str | None = None) -> Listed:
    """Those of any file that lists captions, by its suffix. column: of a table."""
    return (
        coco_of(data, where) if where.lower().endswith(".json") else table_of(data, where, column)
    )
