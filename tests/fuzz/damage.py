"""What a kind makes: an input, damaged; and how its command is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .mutate import Rng

EXTRACT = (
    "extract {in} --out {out}/store.h5 --vae digits --resolution 32 --workers 0 --offline --json"
)
EVAL = "eval {in} --metrics fd-digits --ref {base}/ref.npz --out {out}/eval.json --json"
DRAW = "--num 2 --steps 2 --solver euler --vae digits --offline --out {out}/samples --json"


@dataclass(frozen=True)
class Damage:
    """A damaged input. read: what the command is given. note: what was done to it.

    must_fail: a command that succeeds has overlooked it. writes: folders of the input that are the
    command's OUT, as a run that is trained on. same: of the result, where nothing may differ.
    """

    read: Path
    note: str
    must_fail: bool = False
    writes: tuple[Path, ...] = ()
    same: dict[str, object] | None = None
    memory_may_end: bool = False


@dataclass(frozen=True)
class Kind:
    """A row of the table. make(rng, base, into): the input, below the empty folder `into`.

    commands: in turn; {in}, {out}, {base} and {folder} stand for the input, where it may write, the
    seeds and the folder of the input.
    """

    make: Callable[[Rng, Path, Path], Damage]
    commands: tuple[str, ...] = field(default=(EXTRACT,))
