"""The axes of Table 1 and one of ours: which runs an ablation is made of, and their names."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sra2cli.config.recipe import from_dict
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import SetupError
from sra2cli.models.build import shape_of
from sra2cli.tables import paper


@dataclass(frozen=True)
class Axis:
    """setting: of the alignment method. read: one value of --values. name: as in tables.

    values: by default, of an axis that the paper does not have.
    """

    setting: str
    name: str
    read: Callable[[str], Any]
    example: str
    values: tuple[Any, ...] = ()


def read_window(text: str) -> tuple[float, float]:
    """ "0:0.5" or "[0, 0.5]" → (0.0, 0.5)."""
    low, high = (float(part) for part in re.split("[:,]", text.strip("[] ")))
    return low, high


AXES = {
    "depth": Axis("depth", "align depth", int, "1,2,4"),
    "timesteps": Axis("window", "timesteps", read_window, "0:0.5,0.5:1"),
    "objective": Axis("objective", "objective", str, "smooth-l1,l2"),
    "lambda": Axis("weight", "λ", float, "0.5,1"),
    "mlp": Axis("layers", "linears of the head", int, "2,5"),
    "final": Axis(
        "final", "last layer of the head", str, "linear,adaln", ("linear", "norm", "adaln")
    ),
}


@dataclass(frozen=True)
class Row:
    """One row of a table. cell: names what is trained, without its seed; own: as the recipe;
    taught_by: the cell whose run of the same seed is its frozen teacher."""

    label: str
    cell: str
    recipe: Recipe
    paper: dict[str, float]
    own: bool = False
    baseline: bool = False
    taught_by: str | None = None


def rows(axis: str, base: Recipe, values: str | None = None) -> list[Row]:
    """The baseline without alignment, then a row for each value of the axis.

    Args:
        values: with commas between them; None: the paper's, as far as the network has them, and
            the recipe's own.

    Raises:
        SetupError: no such value, or a recipe without alignment.
    """
    method = aligned_by(base)
    setting = AXES[axis].setting
    own = getattr(base.align[method], setting, None)
    if own is None:
        raise SetupError(f"the head of {method} has no {setting} to ablate")
    chosen = default_values(axis, base, own) if values is None else read_values(axis, values)
    in_paper = {key_of(axis, k): v for k, v in paper.ablation(axis).items()}
    if base.method != "sra2":  # the paper's numbers are those of SRA 2 alone
        in_paper = {}
    found = [baseline(base)]
    for value in chosen:
        changed = own != value
        recipe = with_setting(base, method, setting, value) if changed else base
        cell = f"{base.method}-{setting}{slug(value)}" if changed else base.method
        known = in_paper.get(value, {})
        found.append(Row(label(value), cell, recipe, known, own=not changed))
    return found


def own(base: Recipe) -> Row:
    """The recipe as it is."""
    return Row(base.name, base.method, base, {}, own=True)


def baseline(base: Recipe) -> Row:
    """The recipe without the method that is ablated: SiT."""
    tree = base.to_dict()
    del tree["align"][aligned_by(base)]
    recipe = from_dict(tree)
    name = "SiT" if recipe.method == "none" else recipe.method
    known = paper.ablation_baseline() if recipe.method == "none" else {}
    return Row(f"{name} (baseline)", name.lower(), recipe, known, baseline=True)


def aligned_by(base: Recipe) -> str:
    """The method that an ablation changes: sra2 if the recipe has it, else its only one."""
    names = ["sra2"] if "sra2" in base.align else list(base.align)
    if len(names) != 1:
        raise SetupError(
            f"recipe '{base.name}' aligns with {'nothing' if not names else 'several methods'}: "
            "an ablation needs one with SRA 2, as b-sra2"
        )
    return names[0]


def with_setting(base: Recipe, method: str, setting: str, value: Any) -> Recipe:
    """A checked recipe with one setting of one method changed."""
    tree = base.to_dict()
    tree["align"][method][setting] = list(value) if isinstance(value, tuple) else value
    return from_dict(tree)


def default_values(axis: str, base: Recipe, own: Any) -> list[Any]:
    """The paper's values, or the axis's own; depths: those the network has, all if they are few."""
    values = [key_of(axis, value) for value in paper.ablation(axis)] or list(AXES[axis].values)
    if axis == "depth":
        blocks = shape_of(base).depth
        values = list(range(1, blocks + 1)) if blocks < max(values) else values
    return values if own in values else [own, *values]


def read_values(axis: str, text: str) -> list[Any]:
    """What --values asks for."""
    kind = AXES[axis]
    parts = re.findall(r"\[[^]]*\]|[^,]+", text)
    try:
        values = [kind.read(part.strip()) for part in parts]
    except ValueError:
        values = []
    if not values:
        raise SetupError(f"--values of {axis} are as {kind.example}; not '{text}'")
    return list(dict.fromkeys(values))


def key_of(axis: str, value: Any) -> Any:
    """A key of the paper's table as a value of the setting."""
    return AXES[axis].read(str(value))


def label(value: Any) -> str:
    """As the paper writes it."""
    if isinstance(value, tuple):
        return f"[{value[0]:g}, {value[1]:g}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def slug(value: Any) -> str:
    """In names of folders."""
    if isinstance(value, tuple):
        return f"{value[0]:g}to{value[1]:g}"
    return f"-{value}" if isinstance(value, str) else label(value)
