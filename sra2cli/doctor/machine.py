"""The machine: Python, torch, devices, cores, memory, disk."""

import os
import platform
import shutil
from pathlib import Path

from sra2cli import __version__
from sra2cli.core.environment import cpu_name, memory_limit
from sra2cli.doctor.lines import Line

SPARE = 50e9  # bytes: fewer are soon filled by checkpoints
GB = 1e9


def machine() -> list[Line]:
    """What is there without torch."""
    return [
        Line("sra2", "ok", f"{__version__} in {Path(__file__).parents[1]}"),
        Line("python", "ok", f"{platform.python_version()}, {platform.platform()}"),
        cores(),
        memory(),
        disk(Path()),
    ]


def cores() -> Line:
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    few = "" if usable == there else f" of {there}"
    threads = os.environ.get("OMP_NUM_THREADS")
    said = f"{usable}{few}, {cpu_name()}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    return Line("cores", "ok", said)


def memory() -> Line:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    if limit is not None and limit < there:
        return Line("memory", "ok", f"{limit / GB:.1f} GB for this group of {there / GB:.1f} GB")
    return Line("memory", "ok", f"{there / GB:.1f} GB")


def disk(folder: Path) -> Line:
    """Free space where a command that is called here writes."""
    free, here = shutil.disk_usage(folder).free, folder.resolve()
    said = f"{free / GB:,.1f} GB free in {here}"
    if not os.access(here, os.W_OK):
        return Line(
            "disk", "missing", f"{here} cannot be written to", "go elsewhere, or give --out"
        )
    if free < SPARE:
        return Line("disk", "note", said, "a checkpoint of XL/2 takes 10.8 GB")
    return Line("disk", "ok", said)


def torch_lines() -> tuple[list[Line], bool]:
    """What torch says of itself and of its devices; and whether it can be used at all."""
    try:
        import torch

        if not bool(torch.ones(2, 2).mm(torch.ones(2, 2)).eq(2).all()):
            raise RuntimeError("a matrix product is wrong")
    except Exception as error:  # of a broken install anything is raised
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return [Line("torch", "missing", reason, "install it again: https://pytorch.org")], False
    lines = [Line("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    return [*lines, *devices(), *bf16()], True


def devices() -> list[Line]:
    """A line a GPU; one that there is none."""
    import torch

    lines = []
    try:
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            said = f"{about.name}, {free / GB:.1f} of {total / GB:.1f} GB free"
            lines.append(Line(f"cuda:{index}", "ok", f"{said}, CUDA {torch.version.cuda}"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        lines.append(Line("cuda", "missing", reason, "see what nvidia-smi says"))
    if torch.backends.mps.is_available():
        lines.append(Line("mps", "note", "Apple's GPU", "--device mps, see docs/machine.md"))
    if not lines:
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}" if built else "torch is built without CUDA"
        remedy = "commands run on the CPU: enough for the digits and emoji, not for ImageNet"
        lines.append(Line("cuda", "missing", f"no device; {why}", remedy))
    return lines


def bf16() -> list[Line]:
    """Whether `train.precision: auto` means bf16, on each kind of device."""
    import torch

    from sra2cli.training.rates import fast_bf16

    kinds = ["cpu", *["cuda"] * torch.cuda.is_available()]
    slow = "train.precision: auto is fp32 there; bf16 works, and is slower"
    return [
        Line(f"bf16 on {kind}", "ok", "fast: train.precision: auto is bf16 there")
        if fast_bf16(torch.device(kind))
        else Line(f"bf16 on {kind}", "note", "not fast", slow)
        for kind in kinds
    ]
