"""Rows of metrics.jsonl, read from the end: of a long run its last rows are wanted, not all.

Imports no torch, as `runs.listing` must not.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sra2cli.config.checks import Natural
from sra2cli.config.reading import NotRequired, TypedDict, json_of

BLOCK = 1 << 16  # bytes read at a time
LONGEST = 1 << 20  # bytes of a row


class RowRecord(TypedDict):
    """A row of metrics.jsonl; one without an event holds numbers alone."""

    step: Natural
    event: NotRequired[str]


Entry = dict[str, Any]


def last_rows(file: Path, *, evaluated: bool) -> tuple[Entry | None, Entry | None]:
    """The last row of losses and, if wanted, the last evaluation; None: there is none.

    Raises:
        ValueError: one of them is not a row. OSError: it cannot be read.
    """
    losses: Entry | None = None
    evaluation: Entry | None = None
    for line in lines_from_end(file):
        event = b'"event"' in line
        if event and evaluated and evaluation is None:
            row = json_of(line, RowRecord)
            evaluation = row if row.get("event") == "eval" else None
        elif not event and losses is None:
            losses = json_of(line, RowRecord)
        if losses is not None and (evaluation is not None or not evaluated):
            break
    return losses, evaluation


def lines_from_end(file: Path) -> Iterator[bytes]:
    """Whole lines of a file, the last one first; what stands behind the last newline was cut off
    by a kill, and is left out.

    Raises:
        ValueError: a line that is too long for a row.
    """
    with file.open("rb") as opened:
        left, rest, cut_off = opened.seek(0, 2), b"", True
        while left:
            size = min(BLOCK, left)
            left -= size
            opened.seek(left)
            rest, *lines = (opened.read(size) + rest).split(b"\n")
            if cut_off and lines:
                lines.pop()
                cut_off = False
            yield from reversed(lines)
            if len(rest) > LONGEST:
                raise ValueError(f"a line of more than {LONGEST:,} bytes")
        if not cut_off:
            yield rest
