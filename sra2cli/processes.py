"""One command on several processes: starting them through accelerate, and what they share."""

import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sra2cli import console
from sra2cli.errors import SetupError, UserError

PARENT = "SRA2_PARENT"  # the process that started this one, and that it ends with
ERRORS = "SRA2_ERRORS"  # folder in which started processes leave their error lines


@dataclass(frozen=True)
class Group:
    """The processes of a command. device: of this one, as torch names it."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            with leave_quietly():
                PartialState().wait_for_everyone()

    def share(self, value: Any) -> Any:
        """The main process's value, on all of them."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        held = [value]
        with leave_quietly():
            broadcast_object_list(held)
        return held[0]


_active: Group | None = None  # of the command that is running, if it is one of several


@contextlib.contextmanager
def leave_quietly() -> Iterator[None]:
    """Where another process has failed, and said why, this one leaves without a word."""
    try:
        yield
    except RuntimeError:
        folder = os.environ.get(ERRORS)
        deadline = time.monotonic() + 5
        while folder and time.monotonic() < deadline:
            if any(Path(folder).iterdir()):
                sys.exit(1)
            time.sleep(0.05)
        raise


def launched() -> bool:
    """Whether a launcher (ours, accelerate's, torchrun) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(arguments: list[str], *, processes: int | None, device: str | None) -> None:
    """Run `sra2 ARGUMENTS` on several processes and exit with its code, if that is asked for.

    Returns in the processes themselves, and where one is enough.

    Args:
        processes: None for every visible GPU, or one.
        device: as the user chose it; "cuda:1" is a choice of one.

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
    sys.exit(_launch(arguments, processes, gpu=gpus > 0))


def _hold_to_parent() -> None:
    """End with the process that started this one, whatever happens to it."""
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        die_with_parent()
        if os.getppid() != int(parent):  # it was killed before this line
            sys.exit(1)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _launch(arguments: list[str], processes: int, *, gpu: bool) -> int:
    """Start the processes through accelerate's launcher; the exit code of the first that failed."""
    import logging

    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def stop(number: int, frame: Any) -> None:
        raise SignalException("asked to stop", sigval=signal.Signals(number))

    for name in ("torch.distributed.elastic", "torch.distributed.run", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say it better
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # time to save a checkpoint
    parser = launch.launch_command_parser()
    options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    parsed = parser.parse_args([*options, "--module", "sra2cli", *arguments])
    os.environ[PARENT] = str(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ERRORS] = folder
        signal.signal(signal.SIGUSR1, stop)  # the launcher knows the others
        try:
            launch.launch_command(parsed)
            code = 0
        except ChildFailedError as error:
            first = next(iter(error.failures.values())).exitcode
            code = first if first > 0 else 128 - first
        except (SignalException, KeyboardInterrupt) as error:
            code = 128 + int(getattr(error, "sigval", signal.SIGINT))
        left = [json.loads(p.read_text()) for p in sorted(Path(folder).iterdir())]
    for line in dict.fromkeys(error["message"] for error in left):
        print(line, file=sys.stderr)
    return left[0]["code"] if left else code


def leave_error(error: UserError, line: str) -> bool:
    """Hand an error to the process that started this one, which prints it once for all.

    Returns whether there is such a process.
    """
    folder = os.environ.get(ERRORS)
    if not folder or not launched():
        return False
    with contextlib.suppress(OSError):
        text = json.dumps({"code": error.exit_code, "message": line})
        (Path(folder) / os.environ.get("RANK", "0")).write_text(text)
    return True


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

    options: dict[str, Any] = {"timeout": timedelta(days=7)}  # one may wait long for another
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
            InitProcessGroupKwargs(timeout=timedelta(days=7)),
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
