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
    text = _text("LOCAL_RANK")
    return not text.isdecimal() or int(text) == 0


def place() -> tuple[int, int, int]:
    """Rank, number of processes, and rank on this machine.

    Raises:
        SetupError: names the variable that is missing or means nothing.
    """
    count = number("WORLD_SIZE")
    needed = ["RANK"] if MEETING in os.environ else ["RANK", "MASTER_ADDR", "MASTER_PORT"]
    missing = [name for name in needed if not _text(name)]
    if missing:
        raise SetupError(
            f"WORLD_SIZE={count} says that this is one of several processes, but "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: start it by "
            "torchrun or accelerate launch, or `unset WORLD_SIZE` for one process"
        )
    rank, local = number("RANK"), number("LOCAL_RANK", 0)
    if rank >= count:
        raise SetupError(f"RANK={rank} is not below WORLD_SIZE={count}: see docs/launching.md")
    if MEETING not in os.environ:
        number("MASTER_PORT")
        for name in SHARDED:
            if _text(name).lower() in ("1", "true", "yes"):
                raise SetupError(
                    f"{name} is set, but sharded weights are not supported: launch with "
                    "accelerate's --multi_gpu, and use train.checkpointing where memory is short"
                )
    return rank, count, local


def number(name: str, default: int = 0) -> int:
    """A whole number of the environment, `default` where it is empty. Raises SetupError."""
    text = _text(name)
    if text and not text.isdecimal():
        raise SetupError(f"{name}={text} in the environment is no whole number: `unset {name}`")
    return int(text or default)


def unread() -> list[str]:
    """Variables that say there are several processes, but only to programs that use MPI."""
    return [name for name in MPI if _text(name) not in ("", "0", "1")]
