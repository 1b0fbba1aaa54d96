"""Where and with what a result was made."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from sra2cli import __version__


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, hardware and git state, for every result file; `device` is the one used."""
    import torch  # late: `sra2 doctor` says where it is broken

    cuda = device.startswith("cuda")
    return {
        "sra2": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "cpus": os.cpu_count(),
        "git": _git_state(),
        "command": command_line(),
    }


def command_line() -> str:
    """What was typed, as far as it can be told; a script by its name alone."""
    program = Path(sys.argv[0]).name
    return shlex.join(["sra2" if program == "__main__.py" else program, *sys.argv[1:]])


def cpu_name() -> str:
    """Model name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or "cpu"


def memory_limit() -> int | None:
    """Bytes that this process's control group may use (Linux, version 2); None: no limit."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _git_state() -> str | None:
    """Commit of the source this runs from, with "+changes" if it differs; None outside git."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        run = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "."], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
