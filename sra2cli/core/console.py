"""What the user sees: messages and progress on stderr, results on stdout."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# As it is: names may have [brackets] and :colons: in them.
stderr = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
stdout = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def silence() -> None:
    """No more output from this process: of several, one speaks."""
    stderr.quiet = stdout.quiet = True


@contextmanager
def no_results() -> Iterator[None]:
    """Nothing on stdout in here: a command that is part of another."""
    before, stdout.quiet = stdout.quiet, True
    try:
        yield
    finally:
        stdout.quiet = before


def say(message: str) -> None:
    """One message line on stderr."""
    stderr.print(message)


def warn(message: str) -> None:
    """One warning line on stderr."""
    stderr.print(f"warning: {message}", style="yellow")


def error(message: str) -> None:
    """The line that a command fails with, from a silent process too."""
    stderr.quiet = False
    stderr.print(f"error: {message}", style="red")


@contextmanager
def progress(
    title: str,
    total: int,
    *,
    unit: str = "images",
    start: int = 0,
    images: int = 0,
    note: str = "",
) -> Iterator["Bar"]:
    """A progress bar with speed and time left, on stderr, gone when done.

    Where stderr is not a terminal (a log file), a plain line every half minute instead.

    Args:
        images: of a unit; their speed is shown too. note: what is shown before `advance` has one.
    """
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),  # what the others leave it
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    live = stderr.is_terminal
    with _Lines(*columns, console=stderr, transient=True, disable=not live) as bars:
        bars.add_task(title, total=total, completed=start, rate="", note=note)
        yield Bar(bars, unit, images=images, every=math.inf if live else 30)


class _Lines(Progress):
    """A bar with its note below it, as one line is too short for both."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


class Bar:
    """One running bar: `advance` as work gets done; `note` shows what is worth seeing."""

    def __init__(self, bars: Progress, unit: str, *, images: int, every: float):
        self._bars, self._task, self._unit, self._every = bars, bars.tasks[0], unit, every
        self._images = images
        self._begun = self._said = time.monotonic()
        self._start = self._task.completed

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """`count` more units are done."""
        task, now = self._task, time.monotonic()
        speed = (task.completed + count - self._start) / max(now - self._begun, 1e-9)
        note = task.fields["note"] if note is None else note
        rate = f"{speed:,.1f} {self._unit}/s"
        if self._images:
            rate += f", {speed * self._images:,.0f} images/s"
        self._bars.update(task.id, advance=count, rate=rate, note=note)
        if now - self._said > self._every:
            self._said = now
            done = f"{task.completed:,.0f} of {task.total:,.0f} {self._unit}"
            if speed > 0:  # else there is no telling
                left = timedelta(seconds=round(((task.total or 0) - task.completed) / speed))
                rate += f", {left} left"
            say(f"{task.description}: {done}, {rate}, {note}".rstrip(" ,"))


def print_json(result: Any) -> None:
    """A machine-readable result on stdout; a number that is not finite is null."""
    if not stdout.quiet:
        print(json.dumps(_finite(result), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: readers other than Python's refuse them."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; the first column is text, the others numbers."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    stdout.print(table)


def print_columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Rows on stdout with nothing around them and nothing cut off, to be searched and copied.

    Args:
        right: columns of numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        stdout.print("  ".join(cells).rstrip(), soft_wrap=True)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same table for a Markdown file."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
