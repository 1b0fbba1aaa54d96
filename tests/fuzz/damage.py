"""What a kind makes: an input, damaged; and how its command is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .mutate import Rng

EXTRACT = (
    "extract {in} --out {out}/store.h5 --vae digits --resolution 32 --workers 0 --offline --json"
)
EVAL = "eval {in} --metrics fd-digits --ref {base}/ref.npz --out {out}/eval.json --json"
SWEEP = (
    "eval {base}/run --num 4 --steps 2 --solver euler --metrics fd-digits --ref {base}/ref.npz "
    "--offline --out {out} --json"
)
DRAW = "--num 2 --steps 2 --solver euler --vae digits --offline --out {out}/samples --json"


@dataclass(frozen=True)
class Damage:
    """A damaged input. read: what the command is given. note: what was done to it.

    must_fail: a command that succeeds has overlooked it; by: if it is this one. same: of the
    result, where a command that succeeds must have read what is undamaged. memory_may_end: a size
    that is the user's choice, so that being out of memory is an answer.
    """

    read: Path
    note: str
    must_fail: bool = False
    by: str = ""
    same: dict[str, object] | None = None
    memory_may_end: bool = False


@dataclass(frozen=True)
class Kind:
    """A row of the table. make(rng, base, into): the input, below the empty folder `into`.

    commands: in turn; {in}, {out} and {base} stand for the input, where it may write (the input
    too, where it is --out or --out lies in it), and the seeds.
    """

    make: Callable[[Rng, Path, Path], Damage]
    commands: tuple[str, ...] = field(default=(EXTRACT,))
