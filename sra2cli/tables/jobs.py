"""Running the cells of an ablation: so many at a time, each printing into its log.

Whatever ends this process ends the cells' processes too; each cell is one command's at a time.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sra2cli.core import console, processes
from sra2cli.core.errors import DataError, SetupError, UserError
from sra2cli.core.files import hold
from sra2cli.tables.cells import Cell, Judged

LOOK = 0.5  # seconds between looks at how far the runs are


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
    commands = Commands(slots)
    with ThreadPoolExecutor(len(slots)) as pool, interruptible():
        running = {
            cell.name: pool.submit(commands.carry_out, cell, cell.commands(judged, common))
            for cell in cells
        }
        try:
            watch(cells, running)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            commands.stop()
            raise
    failed = {}
    for name, future in running.items():
        error = future.exception()
        if isinstance(error, UserError):
            failed[name] = error
        elif error is not None:
            raise error
    return failed


def watch(cells: Sequence[Cell], running: Mapping[str, Future[None]]) -> None:
    """Show how far they are until all have ended."""
    done = sum(cell.steps_done() for cell in cells)
    total = sum(cell.recipe.train.steps for cell in cells)
    with console.progress("ablate", total, unit="steps", start=done) as bar:
        left = set(running.values())
        while left:
            left = wait(left, LOOK).not_done
            now = sum(cell.steps_done() for cell in cells)
            bar.advance(max(0, now - done), note=f"{len(left)} of {len(cells)} cells left")
            done = max(now, done)


class Commands:
    """The commands that are running now, each in a slot."""

    def __init__(self, slots: Sequence[Mapping[str, str]]):
        self.slots: SimpleQueue[Mapping[str, str]] = SimpleQueue()
        for slot in slots:
            self.slots.put(slot)
        self.stopping = threading.Event()
        self.running: set[subprocess.Popen[bytes]] = set()

    def carry_out(self, cell: Cell, commands: Sequence[list[str]]) -> None:
        """One cell, from its first command to its last; SetupError, DataError where one fails."""
        try:
            busy = f"{cell.name}: another command is running it"
            lock = hold(cell.out / "locks" / cell.name, busy)
        except SetupError as error:
            console.say(str(error))
            return
        slot = self.slots.get()
        with lock:
            try:
                if cell.data is not None:
                    cell.write_recipe()
                for command in commands:
                    self._run(cell, command, slot)
            except UserError:
                console.say(f"{cell.name}: failed")
                raise
            finally:
                self.slots.put(slot)
        if not self.stopping.is_set():
            console.say(f"{cell.name}: done")

    def stop(self) -> None:
        """Ask the processes to save and stop, and wait for them."""
        self.stopping.set()
        if self.running:
            console.say("stopping: waiting until what is trained is saved")
        for process in list(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # a shell's background jobs ignore SIGINT
        for process in list(self.running):
            process.wait()

    def _run(self, cell: Cell, command: list[str], slot: Mapping[str, str]) -> None:
        log = cell.out / "logs" / f"{cell.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            begun = out.tell()
            out.write(f"$ sra2 {shlex.join(command)}\n".encode())
            out.flush()
            if self.stopping.is_set():
                return
            process = subprocess.Popen(
                [sys.executable, "-m", "sra2cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **slot, processes.PARENT: str(os.getpid())},
                start_new_session=True,  # Ctrl-C is handed on, once
            )
        self.running.add(process)
        code = process.wait()
        self.running.discard(process)
        if code and not self.stopping.is_set():
            raise failure(cell, log, begun, code)


def failure(cell: Cell, log: Path, begun: int, code: int) -> UserError:
    """What a command ended with, by its log from `begun` on."""
    with log.open("rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    said = errors[-1].removeprefix("error: ") if errors else f"it ended with code {code}"
    if code == -signal.SIGKILL:
        said = "it was killed, perhaps for its memory: try fewer --jobs"
    kind = SetupError if code == 2 else DataError
    return kind(f"{cell.name}: {said} (log: {log})")


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
