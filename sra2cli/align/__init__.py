"""Alignment methods: what each asks of the network, its head, and its loss.

Their settings and names are rows of config.methods.METHODS.
"""

import importlib
from collections.abc import Mapping

from torch import nn

from sra2cli.align.contract import AlignInputs, Alignment, Teacher
from sra2cli.config.methods import METHODS, MethodSettings
from sra2cli.models.contract import Shape, check_depth

__all__ = ["AlignInputs", "Alignment", "Shape", "Teacher", "build"]


def build(
    settings: Mapping[str, MethodSettings], shape: Shape, *, feature_width: int | None = None
) -> nn.ModuleDict:
    """The methods of a recipe's `align`, by name; one whose weight is 0 is left out.

    Args:
        feature_width: width of the encoder features; needed by methods that align with them.

    Raises:
        ValueError: for a depth the network does not have.
    """
    built = nn.ModuleDict()
    for name in (name for name in METHODS if name in settings and settings[name].weight):
        chosen = settings[name]
        for key, value in vars(chosen).items():  # depth, teacher_depth, ...
            for depth in value if isinstance(value, tuple) else (value,):
                if key.endswith(("depth", "depths")):
                    check_depth(f"align.{name}.{key}", depth, shape)
        if "class token" in chosen.needs and not shape.class_width:
            raise ValueError(f"align.{name} needs a network with a class token: model.kind=reg")
        if "features" in chosen.needs and feature_width is None:
            raise ValueError(f"align.{name} needs the width of its encoder's features")
        built[name] = method_class(name)(chosen, shape, feature_width=feature_width)
    return built


def method_class(name: str) -> type[Alignment]:
    """What trains the method of a row."""
    found = METHODS[name].module
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = getattr(importlib.import_module(module), attribute)
    cls: type[Alignment] = found
    return cls
