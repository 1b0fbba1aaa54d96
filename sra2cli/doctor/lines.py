"""What is found is said in lines, each of one thing."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Line:
    """One thing that was looked for.

    Args:
        state: ok; note: works, but there is something to know; missing: what needs it does not run.
        said: what is there. remedy: where to put it, or what to do; "": nothing to do.
    """

    name: str
    state: Literal["ok", "note", "missing"]
    said: str
    remedy: str = ""
