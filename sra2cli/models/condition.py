"""What a network is told beside x_t and t."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What a network is told beside x_t and t. Every field may be missing; batch first.

    y: (B,) labels. text: (B, L, E) features of a caption, or (B, L) token ids that a text encoder
    has yet to read; text_mask: (B, L), True where it has words. pooled: (B, P), one vector for the
    whole caption.
    """

    y: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    pooled: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """The same with every tensor changed, as by `lambda x: x.to(device)`."""
        return Condition(**{k: change(v) for k, v in self.present().items()})

    def present(self) -> dict[str, Tensor]:
        """The fields that are there."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def __add__(self, other: "Condition") -> "Condition":
        """Two batches after each other."""
        theirs = other.present()
        return Condition(**{k: torch.cat([v, theirs[k]]) for k, v in self.present().items()})


def as_condition(given: "Condition | Tensor | None") -> Condition:
    """A plain tensor of labels (B,) is taken as `Condition(y=...)`."""
    return given if isinstance(given, Condition) else Condition(y=given)
