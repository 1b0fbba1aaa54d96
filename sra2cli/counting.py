"""Parameters and multiply-accumulates, counted from the modules on the meta device.

Multiply-accumulates (MACs) of one forward pass per image, of matrix products, convolutions and
attention: what the papers print as GFLOPs. Nothing is computed and no weights are made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sra2cli import encoders
from sra2cli.errors import SetupError
from sra2cli.objective import build_heads, sit_config
from sra2cli.recipe import from_dict
from sra2cli.settings import Recipe
from sra2cli.sit import SiT, named_size

METHODS = ("sit", "sra2", "repa", "repa-stored", "sra")
NAMES = {
    "sit": "SiT",
    "sra2": "SRA 2",
    "repa": "REPA",
    "repa-stored": "REPA, stored features",
    "sra": "SRA",
}
BLOCKS = {  # align depth of sra2, repa, sra, and sra's teacher; S, and sra of L: ours
    "S": (2, 4, 4, 8),
    "B": (2, 4, 4, 8),
    "L": (8, 8, 8, 16),
    "XL": (8, 8, 8, 20),
}


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates of a forward pass for one image."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class MethodCost:
    """What a training forward pass costs: the network, its heads, and networks it is guided by.

    `external` are parameters that exist for guidance alone: REPA's encoder, SRA's teacher up to
    its block.
    """

    network: Cost
    heads: dict[str, Cost]
    external: dict[str, Cost]

    @property
    def macs(self) -> int:
        parts = [self.network, *self.heads.values(), *self.external.values()]
        return sum(part.macs for part in parts)

    @property
    def overhead(self) -> float:
        """MACs over the plain network, as a fraction."""
        return self.macs / self.network.macs - 1


def method_recipe(model: str, method: str, *, resolution: int = 256) -> Recipe:
    """A recipe of a size such as "XL/2" under one of METHODS, as its paper has it."""
    if resolution < 16 or resolution % 16:
        raise SetupError(f"--resolution is a multiple of 16, not {resolution}")
    try:
        named_size(model)
    except ValueError as error:
        raise SetupError(f"--model: {error}") from None
    sra2, repa, sra, teacher = BLOCKS[model.partition("/")[0]]
    align: dict[str, Any] = {
        "sit": {},
        "sra2": {"sra2": {"depth": sra2}},
        "repa": {"repa": {"depth": repa}},
        "sra": {"sra": {"depth": sra, "teacher_depth": teacher}},
    }[method.removesuffix("-stored")]
    data = {"classes": 1000, "channels": 4, "latent": resolution // 8}
    return from_dict({"name": method, "model": {"size": model}, "data": data, "align": align})


def method_cost(recipe: Recipe, *, stored_features: bool = False) -> MethodCost:
    """Count a recipe.

    Args:
        stored_features: REPA reads its encoder's features from the store, and runs no encoder.
    """
    config = sit_config(recipe)
    side = config.latent // config.patch
    with torch.device("meta"):
        model = SiT(config)
        methods = build_heads(recipe, feature_width=768)
        x = torch.zeros(1, config.channels, config.latent, config.latent)
        t = torch.zeros(1)
        y = torch.zeros(1, dtype=torch.long) if config.classes else None
        tokens = torch.zeros(1, config.tokens, config.width)
        heads = {
            name: Cost(parameters(m), macs(lambda m=m: m.head(tokens)))  # type: ignore[misc]
            for name, m in methods.items()
        }
        external = {}
        if recipe.align.repa is not None and not stored_features:
            encoder = encoders.dinov2_base(side)
            pixels = torch.zeros(1, 3, 14 * side, 14 * side)
            external["dinov2_b14"] = Cost(parameters(encoder), macs(lambda: encoder(pixels)))
        if recipe.align.sra is not None:
            depth = recipe.align.sra.teacher_depth
            teacher = [model.x_embedder, model.t_embedder, model.y_embedder, *model.blocks[:depth]]
            external["sra_teacher"] = Cost(
                sum(parameters(m) for m in teacher if m is not None),
                macs(lambda: model.tokens(x, t, y, depth=depth)),
            )
        return MethodCost(Cost(parameters(model), macs(lambda: model(x, t, y))), heads, external)


def parameters(module: nn.Module) -> int:
    """Trainable and frozen parameters; fixed tables (buffers) are not counted."""
    return sum(p.numel() for p in module.parameters())


def macs(forward: Callable[[], Any]) -> int:
    """Multiply-accumulates of what `forward` runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() // 2
