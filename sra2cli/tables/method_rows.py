"""The rows of `sra2 ablate methods`: a recipe beside SiT and the methods of others.

Each method as its paper has it; its blocks are those of the network's size, or XL's scaled to the
network's depth. What a row is made of is its name: methods of the registry, and "contrastive",
"until" (the recipe's method for the first half of the training), joined by "+".
"""

from dataclasses import replace

from sra2cli.config.methods import METHODS
from sra2cli.config.recipe import from_dict
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import SetupError
from sra2cli.tables.axes import Row, aligned_by, baseline, own
from sra2cli.tables.methods import as_published

CONTRASTIVE, UNTIL = "contrastive", "until"
TITLES = {CONTRASTIVE: "contrastive", UNTIL: "until half-way"}
WEIGHT = 0.05  # of contrastive flow matching, arXiv 2506.05350


def default_names(base: Recipe) -> list[str]:
    """All that need neither features of an image encoder nor a class token, and what goes with the
    recipe's own method."""
    mine, free = aligned_by(base), []
    for name, method in METHODS.items():
        if name != mine and not method.settings.needs & {"features", "class token"}:
            free.append(name)
    return [*free, CONTRASTIVE, f"{mine}+{UNTIL}", f"{mine}+layersync", f"{mine}+{CONTRASTIVE}"]


def rows(base: Recipe, values: str | None = None) -> list[Row]:
    """SiT, the recipe, and a row for each name.

    Args:
        values: names with commas between them; None: `default_names`.

    Raises:
        SetupError: no such name, or a recipe without alignment.
    """
    names = default_names(base) if values is None else values.split(",")
    found = [replace(baseline(base), paper={}), own(base)]
    for name in dict.fromkeys(name.strip() for name in names):
        if name not in (base.method, found[0].cell):
            found.append(row(base, name))
    return found


def row(base: Recipe, name: str) -> Row:
    """Of one name, as "layersync" or "sra2+layersync"."""
    mine, parts = aligned_by(base), name.split("+")
    unknown = [part for part in parts if part not in METHODS and part not in TITLES]
    if unknown:
        known = ", ".join([*METHODS, *TITLES])
        raise SetupError(
            f"--values of methods are of {known}, joined by + where they go together; not "
            f"'{unknown[0]}'"
        )
    tree = base.to_dict()
    tree["align"] = {
        part: tree["align"][mine] if part == mine else as_published(part, base)
        for part in parts
        if part in METHODS
    }
    if CONTRASTIVE in parts:
        tree["train"]["contrastive"] = WEIGHT
    if UNTIL in parts and not tree["align"]:
        raise SetupError(f"--values: until is joined to a method, as {mine}+until; not '{name}'")
    if UNTIL in parts:
        for settings in tree["align"].values():
            settings["until"] = str(base.train.steps // 2)
    titles = [METHODS[part].title if part in METHODS else TITLES[part] for part in parts]
    recipe = from_dict(tree)
    taught = "frozen" in {need for s in recipe.align.values() for need in s.needs}
    taught_by = base.method if taught else None
    return Row(" + ".join(titles), "-".join(parts), recipe, {}, taught_by=taught_by)
