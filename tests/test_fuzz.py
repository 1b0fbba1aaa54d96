"""Damaged inputs of all kinds: no traceback, the right exit code, nothing written elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def fuzz(*options: object) -> str:
    """The report of a run of the fuzzer; it begins warm children, so it is a process of its own."""
    command = [sys.executable, "tests/fuzz", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_few_damaged_inputs_of_each_kind():
    fuzz("--seed", 0, "--each", 2)


@pytest.mark.slow
def test_a_thousand_damaged_inputs():
    report = fuzz("--seed", 1, "--each", 44)
    rows = re.findall(r"^(\S.*?) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +[\d.]+ +[\d.]+$", report, re.M)
    counts = {name: [int(n) for n in numbers] for name, *numbers in rows}
    total, *_, faults = counts.pop("all")
    assert total >= 1000 and faults == 0
    for kind, (_, good, *_) in counts.items():  # else what is damaged was never good
        assert good, kind
    (seconds,) = re.findall(r"inputs in (\d+) s", report)
    assert int(seconds) < 15 * 60
