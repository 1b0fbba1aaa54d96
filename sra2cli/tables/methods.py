"""The rows of Table 5: SiT, and every method of the registry as its paper has it."""

from sra2cli.config.methods import METHODS
from sra2cli.config.recipe import from_dict
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import SetupError
from sra2cli.models.build import shape_of

PLAIN, STORED = "sit", "-stored"  # no method; with the encoder's features in the store


def methods() -> list[str]:
    """Names of the rows: SiT, SRA 2, then what it is compared with."""
    names = [PLAIN, "sra2"]
    for name in METHODS:
        stored = [f"{name}{STORED}"] if "features" in METHODS[name].settings.needs else []
        names += [] if name in names else [name, *stored]
    return names


def title(method: str) -> str:
    """Of a row, in tables."""
    if method == PLAIN:
        return "SiT"
    known = METHODS[method.removesuffix(STORED)].title
    return f"{known}, stored features" if method.endswith(STORED) else known


def method_recipe(model: str, method: str, *, resolution: int = 256) -> Recipe:
    """A recipe of a size such as "XL/2" under one of `methods()`, as its paper has it."""
    if resolution < 16 or resolution % 16:
        raise SetupError(f"--resolution is a multiple of 16, not {resolution}")
    name = method.removesuffix(STORED)
    blocks = {} if method == PLAIN else METHODS[name].blocks.get(model.partition("/")[0], {})
    align = {} if method == PLAIN else {name: dict(blocks)}
    data = {"classes": 1000, "channels": 4, "latent": resolution // 8}
    tree = {"name": method, "model": {"size": model}, "data": data, "align": align}
    recipe = from_dict(tree)
    try:
        shape_of(recipe)
    except SetupError as error:
        raise SetupError(f"--{error}") from None
    return recipe
