"""One command on several processes: what they share, and where the environment says they are.

What a started process fails with it records as torch's launcher expects; of several that fail, the
one that started them says it once (`core.starting`).
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra2cli.core import console, launcher
from sra2cli.core.errors import SetupError, UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

PARENT = "SRA2_PARENT"  # the process that started this one, and that it ends with
LOST_MEMORY = (
    "a store or checkpoint in use was truncated, or its disk failed: bring it back and run the "
    "same command again"
)
TIMEOUT = "SRA2_TIMEOUT"  # seconds that one process waits for another
WAIT = 7 * 86400  # seconds: the main process may judge for long, while the others wait
START = 600  # seconds until all processes are there
SEEN = 15.0  # seconds until a file that one machine wrote is seen on the others


class PeerLostError(UserError):
    """Another process of the command is gone; it says why, or was killed."""


@dataclass(frozen=True)
class Group:
    """The processes of a command. device: of this one, as torch names it."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Of the processes of this machine."""
        return self.count == 1 or launcher.first_here()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    def share(self, value: Any) -> Any:
        """The main process's value, on all of them."""
        if self.count == 1:
            return value
        from torch import distributed

        held = [value]
        distributed.broadcast_object_list(held)
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process has, by rank, on the main one; [] on the others."""
        held: list[Any] = [value] * self.count if self.main else []
        if self.count > 1:
            from torch import distributed

            distributed.gather_object(value, held or None)
        return held

    def mean(self, values: "Tensor") -> "Tensor":
        """Of each number, over all processes."""
        if self.count == 1:
            return values
        from torch import distributed

        total = values.clone()
        distributed.all_reduce(total)
        return total / self.count

    def meet(self, folder: Path, name: str = "", *, about: object = None) -> None:
        """Refuse processes that write to different places, or are to do different things.

        All of them must ask, before anything is written.

        Args:
            folder: where they write; made where it is not there. name: of their file in it.
            about: what they are to do.

        Raises:
            SetupError: on all of them.
        """
        if self.count == 1:
            return
        from torch import distributed

        token = folder / f".{name}.{self.share(uuid.uuid4().hex)}"
        same = self.share(about) == about
        made = self.main and not folder.exists()
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()
        self.wait()
        wrong = None
        if not _appears(token):
            wrong = (
                f"process {self.rank} writes to {folder / name} and does not see what the first "
                "one wrote there: --out must be one place for all, that all machines see"
            )
        elif not same:
            wrong = (
                f"process {self.rank} has other settings or data than the first one: give all of "
                "them the same command, recipe and store"
            )
        found: list[str | None] = [None] * self.count
        distributed.all_gather_object(found, wrong)
        if self.main:
            token.unlink()
            if made and any(found):
                folder.rmdir()
        for line in found:
            if line:
                raise SetupError(line)


def _appears(file: Path) -> bool:
    """Whether a file is there, or comes to be: a network's folder may show it late."""
    deadline = time.monotonic() + SEEN
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # has NFS look again
        time.sleep(0.1)
    return True


_active: Group | None = None  # of the command that is running, if it is one of several
_started = False  # whether a command of ours started this process


def active() -> Group:
    """The processes of the command that is running; one where there are no others."""
    return _active or Group()


def peer_lost(error: RuntimeError) -> PeerLostError | None:
    """The line for what torch raises where another process has gone; None: it is something else."""
    from torch import distributed

    first = (str(error).splitlines() or [""])[0]
    words = ("gloo", "Gloo", "pair closure", "NCCL", "recvValue")
    known = any(word in first for word in words)
    if not known and not isinstance(error, distributed.DistError):
        return None
    why = re.sub(r"^\[\S+\] ", "", first).partition(". ")[0]  # without torch's file and advice
    return PeerLostError(
        f"another process of this command ended or does not answer ({why}): "
        "run the same command again to go on"
    )


def hold_to_parent() -> None:
    """End with the process that started this one, whatever happens to it.

    Torch's launcher (torchrun, accelerate) cannot be held to by its number, as it says none.
    """
    global _started
    parent = os.environ.pop(PARENT, None)
    _started = parent is not None and launcher.launched()
    elastic = launcher.launched() and "TORCHELASTIC_RUN_ID" in os.environ
    if parent is not None or elastic:
        die_with_parent()
    if parent is not None and os.getppid() != int(parent):  # it was killed before this line
        sys.exit(1)


def leave_error(error: UserError) -> bool:
    """Record an error as torch's launchers expect it.

    Returns whether another process prints it: the one that started this one prints it once for
    all; under a launcher of the user's, the first process of each machine does.
    """
    if not launcher.launched():
        return False
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        line = f"{type(error).__name__}: {error}"
        more = {"py_callstack": line, "timestamp": str(int(time.time()))}
        Path(file).write_text(
            json.dumps({"message": {"message": line, "extraInfo": more}}), encoding="utf-8"
        )
    return _started or not launcher.first_here()


@contextlib.contextmanager
def group(device: str) -> Iterator[Group]:
    """This process's place among the processes of the command; may be asked for inside itself."""
    global _active
    if _active is not None:
        yield _active
        _active.wait()
        return
    if not launcher.launched():
        yield Group(device=device)
        return
    _active = _join(device)
    if not _active.main:
        console.silence()
    yield _active
    _active.wait()
    from torch import distributed

    distributed.destroy_process_group()
    _active = None


def _join(device: str) -> Group:
    """Find the other processes.

    Raises:
        SetupError: the environment says nothing of use.
        UserError: they did not come.
    """
    import torch
    from torch import distributed

    rank, count, local = launcher.place()
    backend = "gloo"
    if device != "cpu":
        device = f"cuda:{local % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    wait = launcher.number(TIMEOUT, WAIT)
    try:
        store = _meeting(rank, count, timedelta(seconds=min(wait, START)))
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=wait)
        )
    except RuntimeError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the {count} processes (WORLD_SIZE) did not meet at {where} (MASTER_ADDR, "
            f"MASTER_PORT): {str(error).splitlines()[0]}"
        ) from None
    return Group(rank, count, device)


def _meeting(rank: int, count: int, wait: timedelta) -> "Store":
    """By what the processes find each other: a private file, or what a launcher says."""
    from torch import distributed

    file = os.environ.get(launcher.MEETING)
    if file is not None:
        return distributed.FileStore(file, count)  # type: ignore[attr-defined]
    if "TORCHELASTIC_RUN_ID" not in os.environ and not rank:
        console.say(f"waiting for {count} processes, as WORLD_SIZE={count} says")
    found = distributed.rendezvous("env://", timeout=wait)  # type: ignore[attr-defined]
    store: Store = next(iter(found))[0]
    return store


@ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
def _lost_memory(number: int) -> None:
    try:
        os.write(2, f"error: {LOST_MEMORY}\n".encode())
    finally:  # to return would be to read the same memory again, for ever
        os._exit(UserError.exit_code)


def say_lost_memory() -> None:
    """Have one line said where a mapped file is truncated, which ends a process without a word.

    Python's own handlers never come to run: the processor goes back to what it could not read.
    """
    if PARENT not in os.environ:  # else the process that started this one says it
        ctypes.CDLL(None).signal(int(signal.SIGBUS), _lost_memory)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, as after kill -9 (Linux)."""
    prctl: Any = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
