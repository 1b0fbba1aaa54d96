"""The cells of an ablation: ordinary runs, trained and judged by ordinary commands.

A cell is `sra2 train`, then `sra2 eval` of its run. Both resume by themselves, so a cell that was
killed goes on where it was. What eval prints is the cell's result file.
"""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sra2cli import console, processes
from sra2cli.errors import DataError, SetupError, UserError
from sra2cli.files import write_atomically
from sra2cli.run import Run, folder_name
from sra2cli.settings import Recipe

POLL = 0.3  # seconds between looks at the processes


@dataclass(frozen=True)
class Judged:
    """How the runs are judged. options: of `sra2 eval`; about: the same for people."""

    steps: tuple[int, ...]  # checkpoints
    options: tuple[str, ...]
    metrics: tuple[str, ...]
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        text = json.dumps([self.steps, self.options, self.metrics, self.about], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Cell:
    """One run of an ablation, in OUT/runs/NAME.

    folder: a run that is there already, and is judged alone; data is None then.
    """

    name: str
    recipe: Recipe
    data: Path | None
    out: Path
    folder: Path | None = None

    @property
    def run(self) -> Path:
        return self.folder or self.out / "runs" / self.name

    def result_file(self, judged: Judged) -> Path:
        return self.out / "results" / f"{self.name}.{judged.digest}.json"

    def result(self, judged: Judged) -> dict[int, dict[str, Any]] | None:
        """Step → what eval said of it; None if it is not there, or of another checkpoint."""
        try:
            rows = json.loads(self.result_file(judged).read_text())["rows"]
            found = {int(row["how"]["step"]): row for row in rows}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if all(self._still(step, row) for step, row in found.items()) else None

    def _still(self, step: int, row: dict[str, Any]) -> bool:
        """Whether a result is of the checkpoint that lies there now, if one does."""
        meta = self.run / "checkpoints" / folder_name(step) / "checkpoint.json"
        try:
            now: str = json.loads(meta.read_text())["files"]["ema.safetensors"]
        except (OSError, ValueError, KeyError):
            return True  # removed to save space: the number stays
        return now == row["how"]["checkpoint"]

    def commands(self, judged: Judged, common: Sequence[str]) -> list[list[str]]:
        """The command lines, after `sra2`."""
        recipe = self.out / "recipes" / f"{self.name}.yaml"
        train = ["train", "--recipe", str(recipe), "--data", str(self.data)]
        train += ["--out", str(self.run)]
        steps = ",".join(map(str, judged.steps))
        judge = ["eval", str(self.run), "--step", steps, "--seed", str(self.recipe.seed)]
        judge = [*judge, *judged.options, *common, "--json"]
        return [judge] if self.data is None else [[*train, *common], judge]

    def write_recipe(self) -> None:
        file = self.out / "recipes" / f"{self.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        tree = {**self.recipe.to_dict(), "name": self.name}
        write_atomically(file, yaml.safe_dump(tree, sort_keys=False))

    def steps_done(self) -> int:
        """Of its training, as far as its metrics tell."""
        with suppress(UserError, OSError, ValueError):
            rows = Run(self.run).metrics()
            return int(rows[-1]["step"]) if rows else 0
        return 0


@dataclass
class Working:
    """A cell whose commands are being run, one after the other."""

    cell: Cell
    commands: list[list[str]]
    result: Path
    process: subprocess.Popen[bytes] | None = None
    steps: int = 0
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.cell.out / "logs" / f"{self.cell.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.result.parent.mkdir(parents=True, exist_ok=True)

    def start_next(self, threads: int | None) -> None:
        command = self.commands.pop(0)
        environment = {**os.environ, processes.PARENT: str(os.getpid())}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        with self.log.open("ab") as log, self._stdout().open("wb") as out:
            log.write(f"$ sra2 {shlex.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sra2cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is handed on, once
            )

    def finished(self) -> bool:
        """Whether the last command is done; raises what a command failed with."""
        assert self.process is not None
        if self.process.poll() is None:
            return False
        if self.process.returncode:
            raise self._failure(self.process.returncode)
        if self.commands:
            return False
        self._stdout().replace(self.result)
        return True

    def waits(self) -> bool:
        """Whether its next command can be started."""
        return self.process is None or self.process.poll() is not None

    def _stdout(self) -> Path:
        return self.result.with_suffix(".partial")

    def _failure(self, code: int) -> UserError:
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        said = errors[-1].removeprefix("error: ") if errors else f"ended with {code}"
        kind = SetupError if code == 2 else DataError
        return kind(f"{self.cell.name}: {said} (log: {self.log})")


def run_cells(
    cells: Sequence[Cell],
    judged: Judged,
    *,
    common: Sequence[str],
    jobs: int,
    threads: int | None,
) -> None:
    """Train and judge cells, `jobs` at a time; each prints into its log.

    Args:
        common: options that both commands take. threads: of each process; None: as they choose.

    Raises:
        SetupError, DataError: a cell failed; the others were stopped, and go on when run again.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR1; everything is saved.
    """
    waiting = []
    for cell in cells:
        if cell.data is not None:
            cell.write_recipe()
        work = Working(cell, cell.commands(judged, common), cell.result_file(judged))
        work.steps = cell.steps_done()
        waiting.append(work)
    total, done = sum(c.recipe.train.steps for c in cells), sum(w.steps for w in waiting)
    running: list[Working] = []
    with (
        console.progress("ablate", total, unit="steps", start=done) as bar,
        interruptible(),
    ):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(waiting.pop(0))
                for work in list(running):
                    if work.process is not None and work.finished():
                        running.remove(work)
                        console.say(f"{work.cell.name}: done")
                    elif work.waits():
                        work.start_next(threads)
                    now = work.cell.steps_done()
                    left = len(waiting) + len(running)
                    bar.advance(now - work.steps, note=f"{left} of {len(cells)} cells left")
                    work.steps = now
                time.sleep(POLL)
        except BaseException:
            stop(running)
            raise


def stop(running: Sequence[Working]) -> None:
    """Ask the processes to save and stop, and wait for them."""
    started = [work.process for work in running if work.process is not None]
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in started:
        process.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGUSR1 do what Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    names = (signal.SIGTERM, signal.SIGUSR1)
    before = {name: signal.signal(name, interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
