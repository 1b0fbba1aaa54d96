"""What a progress line shows, on a terminal and in a log."""

import io
import itertools
import re

import pytest
from rich.console import Console

from sra2cli.core import console

NOTE = "loss 1.0892 (denoise 0.7712, sra2 0.0812), mfu 31%"


def shown(
    monkeypatch, *, width: int, terminal: bool, total: int = 2400, count: int = 100
) -> list[str]:
    """Lines of a training at 2 steps a second, of 32 images each; count: of steps, in 50 s."""
    text = io.StringIO()
    made = Console(file=text, force_terminal=terminal, width=width, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "stderr", made)
    clock = itertools.count(0, 50)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("train digits-sra2", total, unit="steps", start=100, images=32) as bar:
        bar.advance(count, note=NOTE)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n").splitlines()


def test_a_log_has_speed_time_left_and_losses(monkeypatch):
    (line,) = shown(monkeypatch, width=80, terminal=False)
    rates = "2.0 steps/s, 64 images/s, 0:18:20 left"
    assert line == f"train digits-sra2: 200 of 2,400 steps, {rates}, {NOTE}"


def test_a_log_of_what_has_not_moved_yet_says_no_time_left(monkeypatch):
    """As of the trainings of `ablate`, whose first rows come after more than half a minute."""
    (line,) = shown(monkeypatch, width=80, terminal=False, total=3_200_000, count=0)
    rates = "0.0 steps/s, 0 images/s"
    assert line == f"train digits-sra2: 100 of 3,200,000 steps, {rates}, {NOTE}"


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_of_80_columns_shows_all_of_it(monkeypatch, width):
    lines = shown(monkeypatch, width=width, terminal=True)
    at = next(line for line in lines if "steps/s" in line)
    assert at.startswith("train digits-sra2 ━") and "200/2400" in at and "64 images/s" in at
    assert re.search(r" (\d:\d\d:\d\d|-:--:--)$", at.rstrip()) and "…" not in at
    assert NOTE in lines


def test_names_are_shown_as_they_are(capsys):
    """A folder may be called so: brackets are no colours, colons no pictures."""
    name = "exp[lr=1e-4]:cat:[/old]"
    console.print_table(name, ("run", "step"), [(f"runs/{name}", "1")])
    console.print_columns([(name, name)])
    console.say(name)
    with console.progress(f"vae {name}", 1) as bar:
        bar.advance()
    out, err = capsys.readouterr()
    assert out.count(name) == 4 and name in err
