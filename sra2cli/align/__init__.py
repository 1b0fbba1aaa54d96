"""Alignment methods: what each asks of the network, its head, and its loss.

A method is a module with
    depth          the block whose tokens it aligns, 1-based
    needs_teacher  whether it reads tokens of the EMA
    needs_features whether it reads features of an image encoder
    weight(epoch)  its factor in the total loss
    forward(...)   the loss of each sample, (B,), float32
"""

from collections.abc import Callable

from torch import nn

from sra2cli.align.inputs import AlignInputs, Shape
from sra2cli.align.repa import RepaAlignment
from sra2cli.align.sra import SraAlignment
from sra2cli.align.sra2 import Sra2Alignment
from sra2cli.settings import Align

__all__ = ["METHODS", "AlignInputs", "Alignment", "Shape", "build"]

Alignment = Sra2Alignment | RepaAlignment | SraAlignment

METHODS: dict[str, Callable[..., Alignment]] = {  # by their names in a recipe's `align`
    "repa": RepaAlignment,
    "sra": SraAlignment,
    "sra2": Sra2Alignment,
}


def build(settings: Align, shape: Shape, *, feature_width: int | None = None) -> nn.ModuleDict:
    """The methods present in `settings`, by name.

    Args:
        feature_width: width of the encoder features REPA aligns with; needed for it alone.

    Raises:
        ValueError: for a depth the network does not have.
    """
    present = {name: getattr(settings, name) for name in METHODS}
    return nn.ModuleDict(
        {
            name: method(present[name], shape, **_extra(name, feature_width))
            for name, method in METHODS.items()
            if present[name] is not None
        }
    )


def _extra(name: str, feature_width: int | None) -> dict[str, int]:
    if name != "repa":
        return {}
    if feature_width is None:
        raise ValueError("REPA needs the width of its encoder's features")
    return {"feature_width": feature_width}
