"""What the user sees: messages and progress on stderr, results on stdout."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One message line on stderr."""
    stderr.print(message, markup=False)


def warn(message: str) -> None:
    """One warning line on stderr."""
    stderr.print(f"warning: {message}", style="yellow", markup=False)


@contextmanager
def progress(title: str, total: int, *, unit: str = "images", start: int = 0) -> Iterator["Bar"]:
    """A progress bar with speed and time left, on stderr, gone when done."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=stderr, transient=True) as bars:
        task = bars.add_task(title, total=total, completed=start, rate="", note="")
        yield Bar(bars, task, unit)


class Bar:
    """One running bar: `advance` as work gets done; `note` shows what is worth seeing."""

    def __init__(self, bars: Progress, task: Any, unit: str):
        self._bars, self._task, self._unit = bars, task, unit

    def advance(self, count: int = 1, note: str | None = None) -> None:
        speed = self._bars.tasks[0].speed
        rate = f"{speed:,.1f} {self._unit}/s" if speed else ""
        extra = {} if note is None else {"note": note}
        self._bars.update(self._task, advance=count, rate=rate, **extra)


def print_json(result: Any) -> None:
    """A machine-readable result on stdout."""
    print(json.dumps(result, indent=2))


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; the first column is text, the others numbers."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    stdout.print(table)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same table for a Markdown file."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
