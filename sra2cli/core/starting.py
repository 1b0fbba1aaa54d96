"""Starting one command on several processes of this machine."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from sra2cli.core import console, launcher
from sra2cli.core.errors import SetupError, UserError
from sra2cli.core.processes import LOST_MEMORY, PARENT, PeerLostError, hold_to_parent


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
        SetupError: more processes than GPUs, or an environment that names half a launcher.
    """
    if device == "mps" and (processes not in (None, 1) or launcher.launched()):
        raise SetupError("--device mps is one device: one process, without --processes")
    hold_to_parent()
    if launcher.launched():
        launcher.place()
        return
    for name in launcher.unread():
        console.warn(f"{name} is not read: --processes, torchrun and accelerate start several")
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


def _loopback() -> dict[str, str]:
    """What keeps processes of one machine off the network."""
    name = next((n for _, n in socket.if_nameindex() if n in ("lo", "lo0")), None)
    return {} if name is None else {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _launch(arguments: list[str], processes: int, *, share_cores: bool) -> int:
    """Start the processes as torch's launcher does, but let them meet in a file that is this
    user's alone: its TCP store listens to the whole network. The exit code of what failed."""
    import logging

    from torch.distributed.elastic.multiprocessing import (
        DefaultLogsSpecs,
        PContext,
        SignalException,
        start_processes,
    )

    def stop(number: int, frame: Any) -> None:
        raise SignalException("asked to stop", sigval=signal.Signals(number))

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # they say it better
    if share_cores:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    patience = launcher.number("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 600)  # for a checkpoint
    os.environ[PARENT] = str(os.getpid())
    signal.signal(signal.SIGUSR1, stop)  # start_processes knows the others
    with tempfile.TemporaryDirectory() as scratch:
        ranks = range(processes)
        shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        shared |= {launcher.MEETING: str(Path(scratch) / "meeting"), **_loopback()}
        context: PContext | None = None
        try:
            context = start_processes(
                "sra2",
                sys.executable,
                args=dict.fromkeys(ranks, ("-m", "sra2cli", *arguments)),
                envs={r: {"RANK": str(r), "LOCAL_RANK": str(r), **shared} for r in ranks},
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
            )
            ended = context.wait(period=0.1)
        except SignalException as error:
            if context is not None:
                with contextlib.suppress(SignalException):  # a second one ends it
                    context.close(error.sigval, timeout=patience)
            return 128 + int(error.sigval)
        return _said(list(ended.failures.values())) if ended and ended.is_failed() else 0


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
        why = f": {LOST_MEMORY}" if name == "SIGBUS" else ""
        print(f"error: a process of this command was ended by {name}{why}", file=sys.stderr)
    first = (killed or failures)[0].exitcode
    return int(first if first > 0 else 128 - first)
