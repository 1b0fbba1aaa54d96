"""Running the cells of an ablation: so many at a time, each printing into its log.

Whatever ends this process ends the cells' processes too; each cell is one command's at a time.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sra2cli import console, processes
from sra2cli.cells import Cell, Judged
from sra2cli.errors import DataError, SetupError, UserError
from sra2cli.files import try_lock

POLL = 0.3  # seconds between looks at the processes


@dataclass
class Working:
    """A cell whose commands are being run, one after the other, by one of the slots."""

    cell: Cell
    commands: list[list[str]]
    slot: Mapping[str, str]  # its environment
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)
    begun: int = 0  # where in the log the command began

    def __post_init__(self) -> None:
        self.log = self.cell.out / "logs" / f"{self.cell.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def start_next(self) -> None:
        command = self.commands.pop(0)
        with self.log.open("ab") as log:
            self.begun = log.tell()
            log.write(f"$ sra2 {shlex.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sra2cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.slot, processes.PARENT: str(os.getpid())},
                start_new_session=True,  # Ctrl-C is handed on, once
            )

    def advance(self) -> bool:
        """Start the next command where one has ended; whether the last one has.

        Raises:
            SetupError, DataError: a command failed.
        """
        if self.process is not None and self.process.poll() is None:
            return False
        if self.process is not None and self.process.returncode:
            raise self._failure(self.process.returncode)
        if not self.commands:
            return True
        self.start_next()
        return False

    def _failure(self, code: int) -> UserError:
        with self.log.open("rb") as log:
            log.seek(self.begun)
            lines = log.read().decode(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        said = errors[-1].removeprefix("error: ") if errors else f"it ended with code {code}"
        if code == -signal.SIGKILL:
            said = "it was killed, perhaps for its memory: try fewer --jobs"
        kind = SetupError if code == 2 else DataError
        return kind(f"{self.cell.name}: {said} (log: {self.log})")


def run_cells(
    cells: Sequence[Cell],
    judged: Judged,
    *,
    common: Sequence[str],
    slots: Sequence[Mapping[str, str]],
) -> dict[str, UserError]:
    """Train and judge cells, one in each slot at a time; each prints into its log.

    A cell that another command is running is passed over.

    Args:
        common: options that both commands take. slots: environments, one for each process that
            may run at a time.

    Returns:
        Cell → what it failed with. The others went on.

    Raises:
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR1; everything is saved.
    """
    waiting, free, failed = list(cells), list(slots), dict[str, UserError]()
    seen = {cell.name: cell.steps_done() for cell in cells}
    total = sum(cell.recipe.train.steps for cell in cells)
    running: list[Working] = []
    with (
        ExitStack() as locks,
        console.progress("ablate", total, unit="steps", start=sum(seen.values())) as bar,
        interruptible(),
    ):
        try:
            while waiting or running:
                while waiting and free:
                    cell = waiting.pop(0)
                    if taken(cell, locks):
                        running.append(Working(cell, cell.commands(judged, common), free.pop()))
                        if cell.data is not None:
                            cell.write_recipe()
                    else:
                        console.say(f"{cell.name}: another command is running it")
                for work in list(running):
                    try:
                        ended = work.advance()
                    except UserError as error:
                        failed[work.cell.name], ended = error, True
                    if ended:
                        running.remove(work)
                        free.append(work.slot)
                        what = "failed" if work.cell.name in failed else "done"
                        console.say(f"{work.cell.name}: {what}")
                    now = work.cell.steps_done()
                    left = len(waiting) + len(running)
                    note = f"{left} of {len(cells)} cells left"
                    bar.advance(max(0, now - seen[work.cell.name]), note=note)
                    seen[work.cell.name] = max(now, seen[work.cell.name])
                time.sleep(POLL)
        except BaseException:
            stop(running)
            raise
    return failed


def taken(cell: Cell, locks: ExitStack) -> bool:
    """Whether this command has the cell now, until it ends."""
    file = cell.out / "locks" / cell.name
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = locks.enter_context(file.open("w"))
    return try_lock(handle)


def stop(running: Sequence[Working]) -> None:
    """Ask the processes to save and stop, and wait for them."""
    started = [work.process for work in running if work.process is not None]
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # a shell's background jobs ignore SIGINT
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
