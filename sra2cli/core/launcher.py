"""What a launcher says in the environment: which of several processes this one is.

Nothing else of a scheduler is read, and the rest of it only where WORLD_SIZE is above 1: what is
left over in the environment does not break a single process.
"""

import os

from sra2cli.core.errors import SetupError

MEETING = "SRA2_MEETING"  # the file by which processes that a command of ours started meet
SHARDED = [f"ACCELERATE_USE_{name}" for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM")]
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def _text(name: str) -> str:
    return os.environ.get(name, "").strip()


def launched() -> bool:
    """Whether a launcher (ours, accelerate's, torchrun) started this process as one of several."""
    return _text("WORLD_SIZE") not in ("", "0", "1")


def first_here() -> bool:
    """Of the processes of this machine."""
    return _text("LOCAL_RANK") in ("", "0")


def place() -> tuple[int, int, int]:
    """Rank, number of processes, and rank on this machine.

    Raises:
        SetupError: names the variable that is missing or means nothing.
    """
    count, rank, local = number("WORLD_SIZE"), number("RANK"), number("LOCAL_RANK", 0)
    if rank >= count:
        raise SetupError(f"RANK={rank} is not below WORLD_SIZE={count}: see docs/launching.md")
    if MEETING not in os.environ:
        number("MASTER_PORT")
        if not _text("MASTER_ADDR"):
            raise _missing("MASTER_ADDR")
        for name in SHARDED:
            if _text(name).lower() in ("1", "true", "yes"):
                raise SetupError(
                    f"{name} is set, but sharded weights are not supported: launch with "
                    "accelerate's --multi_gpu, and use train.checkpointing where memory is short"
                )
    return rank, count, local


def number(name: str, default: int | None = None) -> int:
    """A whole number of the environment. Raises SetupError; empty is as not set."""
    text = _text(name)
    if not text and default is not None:
        return default
    if not text:
        raise _missing(name)
    if not text.isdecimal():
        raise SetupError(f"{name}={text} in the environment is no whole number: `unset {name}`")
    return int(text)


def _missing(name: str) -> SetupError:
    return SetupError(
        f"WORLD_SIZE={_text('WORLD_SIZE')} says that this is one of several processes, but {name} "
        "is not set: start it by torchrun or accelerate launch, or `unset WORLD_SIZE` for one"
    )


def unread() -> list[str]:
    """Variables that say there are several processes, but only to programs that use MPI."""
    return [name for name in MPI if _text(name) not in ("", "0", "1")]
