"""One command on several processes: starting them as torchrun does, and what they share.

What a started process fails with it records as torch's launcher expects; of several that fail, the
one that started them says it once.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sra2cli.core import console
from sra2cli.core.errors import SetupError, UserError

PARENT = "SRA2_PARENT"  # the process that started this one, and that it ends with
WAIT = timedelta(days=7)  # one process may wait long for another


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
        return int(os.environ.get("LOCAL_RANK") or 0) == 0 if self.count > 1 else True

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def share(self, value: Any) -> Any:
        """The main process's value, on all of them."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        held = [value]
        broadcast_object_list(held)
        return held[0]


_active: Group | None = None  # of the command that is running, if it is one of several
_started = False  # whether a command of ours started this process


def lost(error: RuntimeError) -> bool:
    """Whether this is what torch raises where another process has gone."""
    text = str(error)
    return any(word in text for word in ("gloo", "Gloo", "NCCL", "Connection", "recvValue"))


def launched() -> bool:
    """Whether a launcher (ours, accelerate's, torchrun) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(
    arguments: list[str],
    *,
    processes: int | None,
    device: str | None,
    share_cores: bool = True,
) -> None:
    """Run `sra2 ARGUMENTS` on several processes and exit with its code, if that is asked for.

    Returns in the processes themselves, and where one is enough.

    Args:
        processes: None for every visible GPU, or one.
        device: as the user chose it; "cuda:1" is a choice of one.
        share_cores: whether each gets its part of the cores: where numbers depend on how many
            threads make them, all of them are for each.

    Raises:
        SetupError: more processes than GPUs.
    """
    _hold_to_parent()
    if launched():
        return
    on_gpu = device is None or device.startswith("cuda")
    gpus = _gpus() if on_gpu and processes != 1 else 0
    if processes is None:
        processes = gpus if device in (None, "cuda") and gpus else 1
    if processes < 1:
        raise SetupError(f"--processes must be above 0, not {processes}")
    if processes == 1:
        return
    if gpus and processes > gpus:
        raise SetupError(f"--processes {processes}, but there are {gpus} GPUs here")
    sys.exit(_launch(arguments, processes, share_cores=share_cores))


def _hold_to_parent() -> None:
    """End with the process that started this one, whatever happens to it."""
    global _started
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        _started = launched()
        die_with_parent()
        if os.getppid() != int(parent):  # it was killed before this line
            sys.exit(1)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _launch(arguments: list[str], processes: int, *, share_cores: bool) -> int:
    """Start the processes with torch's launcher; the exit code of what failed."""
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def stop(number: int, frame: Any) -> None:
        raise SignalException("asked to stop", sigval=signal.Signals(number))

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say it better
    if share_cores:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # time to save a checkpoint
    os.environ[PARENT] = str(os.getpid())
    signal.signal(signal.SIGUSR1, stop)  # the launcher knows the others
    with tempfile.TemporaryDirectory() as errors:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            run_id=uuid.uuid4().hex,
            logs_specs=DefaultLogsSpecs(log_dir=errors),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "sra2cli", *arguments)
            return 0
        except ChildFailedError as error:
            return _said(list(error.failures.values()))
        except (SignalException, KeyboardInterrupt) as error:
            return 128 + int(getattr(error, "sigval", signal.SIGINT))


def _said(failures: list[Any]) -> int:
    """Print what the processes failed with, once; the exit code.

    The one that lost another only says so where that other was killed without a word.
    """
    recorded = [f for f in failures if isinstance(f.message, dict)]
    own = [f for f in recorded if not f.message["message"].startswith(PeerLostError.__name__)]
    killed = [f for f in failures if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
    said = own or ([] if killed else recorded)
    for line in dict.fromkeys(f.message["message"].partition(": ")[2] for f in said):
        print(f"error: {line}", file=sys.stderr)
    if said:  # by its kind: the process itself may have been ended while it was leaving
        kind = said[0].message["message"].partition(": ")[0]
        return SetupError.exit_code if kind == SetupError.__name__ else UserError.exit_code
    if killed:
        name = signal.Signals(-killed[0].exitcode).name
        print(f"error: a process of this command was ended by {name}", file=sys.stderr)
    first = (killed or failures)[0].exitcode
    return int(first if first > 0 else 128 - first)


def leave_error(error: UserError) -> bool:
    """Record an error for the process that started this one, which prints it once for all.

    Returns whether it will.
    """
    if not launched():
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return _started


@contextlib.contextmanager
def group(device: str) -> Iterator[Group]:
    """This process's place among the processes of the command; may be asked for inside itself."""
    global _active
    if _active is not None:
        yield _active
        _active.wait()
        return
    if not launched():
        yield Group(device=device)
        return
    from accelerate import PartialState

    options: dict[str, Any] = {"timeout": WAIT}
    state = PartialState(cpu=device == "cpu", **options)
    if state.process_index:
        console.silence()
    _active = Group(state.process_index, state.num_processes, str(state.device))
    yield _active
    _active.wait()
    state.destroy_process_group()
    _active = None


def make_accelerator(group: Group) -> Any:
    """Accelerate's state, from how the processes were launched; refuses what is not supported."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        DistributedType,
        InitProcessGroupKwargs,
    )

    if group.device.startswith("cuda:"):
        torch.cuda.set_device(group.device)
    accelerator = Accelerator(
        cpu=group.device == "cpu",
        mixed_precision="no",  # the engine's own autocast: the recipe decides
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=WAIT),
        ],
    )
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_GPU,
        DistributedType.MULTI_CPU,
    ):
        raise SetupError(
            f"{accelerator.distributed_type} is not supported: launch with accelerate's "
            "--multi_gpu, and use train.checkpointing where memory is short"
        )
    return accelerator


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, as after kill -9 (Linux)."""
    prctl: Any = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
