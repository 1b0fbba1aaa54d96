"""The rows of Table 5: SiT, and every method of the registry as its paper has it."""

from typing import Any

from sra2cli.config.methods import METHODS
from sra2cli.config.recipe import from_dict
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import SetupError
from sra2cli.encoders.text_networks import CLIP_LARGE
from sra2cli.models.build import shape_of
from sra2cli.models.sit import SIZES
from sra2cli.training.counting import method_cost

PLAIN, STORED = "sit", "-stored"  # no method; with the encoder's features in the store

FAMILIES = {  # model.kind
    "SiT": "sit",
    "LightningDiT": "lightningdit",
    "MaskDiT": "maskdit",
    "MMDiT": "mmdit",
}
CAPTIONS = {"text_tokens": 77, "text_width": 768}  # of CLIP-L, as MMDiT is told


def methods() -> list[str]:
    """Names of the rows: SiT, SRA 2, then what it is compared with."""
    names = [PLAIN, "sra2"]
    for name in METHODS:
        stored = [f"{name}{STORED}"] if "features" in METHODS[name].settings.needs else []
        names += [] if name in names else [name, *stored]
    return names


def family(model: str) -> tuple[str, str]:
    """Of a model such as "LightningDiT-XL/1": its name in tables, and its size. "XL/2" is SiT's."""
    name, _, size = model.rpartition("-")
    if name and name not in FAMILIES:
        raise SetupError(f"--model: no '{name}' among {', '.join(FAMILIES)}, as LightningDiT-XL/1")
    return name or "SiT", size


def title(method: str, model: str = "XL/2") -> str:
    """Of a row, in tables."""
    if method == PLAIN:
        return family(model)[0]
    known = METHODS[method.removesuffix(STORED)].title
    return f"{known}, stored features" if method.endswith(STORED) else known


def fits(method: str, model: str) -> bool:
    """Whether a row is for a model: what needs a class token is a network of SiT's family."""
    known = METHODS.get(method.removesuffix(STORED))
    return known is None or "class token" not in known.settings.needs or family(model)[0] == "SiT"


def methods_with(baseline: str, model: str) -> list[str]:
    """SiT, SRA 2 and what they are compared with, in the order of the table."""
    if family(model)[0] == "MaskDiT":  # it is not trained here
        return [PLAIN]
    wanted = {"sit", "sra2", *(methods() if baseline == "all" else (baseline,))}
    wanted |= {f"{name}{STORED}" for name in wanted}
    return [method for method in methods() if method in wanted and fits(method, model)]


def text_share(model: str, *, resolution: int = 256) -> dict[str, Any] | None:
    """What reading captions adds to a model that is told them, where it is done in the step: in
    parameters, GMACs, and percent of the model's; None for a model with classes."""
    wanted = method_recipe(model, PLAIN, resolution=resolution)
    if shape_of(wanted).condition != "text":
        return None
    cost = method_cost(wanted, text_encoder=CLIP_LARGE)
    text = cost.external["text_encoder"]
    percent = 100 * text.macs / cost.network.macs
    found = {"parameters": text.parameters, "gmacs": text.macs / 1e9, "gmacs_percent": percent}
    return {"name": CLIP_LARGE, **found}


def method_recipe(model: str, method: str, *, resolution: int = 256) -> Recipe:
    """A recipe of a size such as "XL/2" under one of `methods()`, as its paper has it.

    With patch 1 the latents are VA-VAE's (32 channels, 1/16 of the side), else SD-VAE's.
    """
    if resolution < 16 or resolution % 16:
        raise SetupError(f"--resolution is a multiple of 16, not {resolution}")
    name, (known, size) = method.removesuffix(STORED), family(model)
    kind = FAMILIES[known]
    if method != PLAIN and "class token" in METHODS[name].settings.needs:
        kind = "reg"
    channels, side = (32, resolution // 16) if size.endswith("/1") else (4, resolution // 8)
    data = {"classes": 1000, "channels": channels, "latent": side}
    data |= CAPTIONS if kind == "mmdit" else {}
    tree = {"name": method, "model": {"kind": kind, "size": size}, "data": data}
    plain = from_dict(tree)
    try:
        shape_of(plain)
    except SetupError as error:
        raise SetupError(f"--{error}") from None
    if method == PLAIN:
        return plain
    return from_dict({**tree, "align": {name: as_published(name, plain)}})


def as_published(name: str, base: Recipe) -> dict[str, Any]:
    """Blocks of a method: those of its paper for SiT of this size, else XL's by the depth."""
    known, depth, found = METHODS[name].blocks, shape_of(base).depth, dict[str, Any]()
    size = base.model.size.partition("/")[0]
    if size in known and depth == SIZES[size]["depth"]:
        return dict(known[size])
    for key, block in known["XL"].items():
        found[key] = min(depth, max(1, round(block * depth / SIZES["XL"]["depth"])))
    if found.get("target_depth") == found["depth"]:
        found["target_depth"] = min(depth, found["depth"] + 1)
    return found
