"""Parameters and multiply-accumulates, counted from the modules on the meta device.

Multiply-accumulates (MACs) of one forward pass per image, of matrix products, convolutions and
attention: what the papers print as GFLOPs. Nothing is computed and no weights are made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sra2cli import align
from sra2cli.align.contract import AlignInputs, Alignment
from sra2cli.config.settings import Recipe
from sra2cli.data.conditions import blank
from sra2cli.encoders import image, text_networks
from sra2cli.evaluation import pickscore
from sra2cli.models.build import build, shape_of
from sra2cli.models.contract import Condition, Shape


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
        """MACs over the network without heads and guidance, as a fraction."""
        return self.macs / self.network.macs - 1


def method_cost(
    recipe: Recipe, *, stored_features: bool = False, text_encoder: str | None = None
) -> MethodCost:
    """Count a recipe.

    Args:
        stored_features: encoder features are read from the store, and no encoder runs.
        text_encoder: runs on captions in the step; None: none does.
    """
    shape = shape_of(recipe)
    heads: dict[str, Cost] = {}
    external: dict[str, Cost] = {}
    with torch.device("meta"):
        model = build(recipe)
        methods: dict[str, Any] = dict(
            align.build(recipe.align, shape, feature_width=WIDTH).items()
        )
        x, t = torch.zeros(1, *shape.state), torch.zeros(1)
        told = blank(shape)
        told = told.map(lambda tensor: tensor.to("meta"))
        network = Cost(parameters(model), macs(lambda: model(x, t, told)))
        for name, method in methods.items():
            taught: list[int] = []
            heads[name] = Cost(parameters(method), macs(partial(one_sample, method, shape, taught)))
            for depth in set(taught):
                tokens = partial(model.tokens, x, t, told, depth=depth)
                passes = taught.count(depth) * macs(tokens)
                external[f"{name}_teacher"] = Cost(parameters_of(model, tokens), passes)
        if recipe.encoder is not None and not stored_features:
            encoder = image.dinov2_base(shape.side)
            pixels = torch.zeros(1, 3, 14 * shape.side, 14 * shape.side)
            external["dinov2_b14"] = Cost(parameters(encoder), macs(lambda: encoder(pixels)))
    text = None if text_encoder is None else text_cost(text_encoder)
    if text is not None:
        external["text_encoder"] = text
    return MethodCost(network, heads, external)


def text_cost(name: str) -> Cost | None:
    """What reading a caption costs, at 77 tokens; None for a text encoder that is not known here.

    Causal attention counts in full.
    """
    if name == "words":
        return Cost(0, 0)
    if name != text_networks.CLIP_LARGE:
        return None
    with torch.device("meta"):
        model = text_networks.clip_text_large()
        ids = torch.zeros(1, text_networks.LENGTH, dtype=torch.int64)
        return Cost(parameters(model), macs(lambda: model(input_ids=ids)))


def pickscore_cost() -> dict[str, Cost]:
    """PickScore's network: "vision" for an image at 224 pixels, "text" for a prompt of 77 tokens,
    each with its projection, and "whole", which has a scale beside both."""
    with torch.device("meta"):
        model: Any = pickscore.clip_huge()
        pixels = torch.zeros(1, 3, 224, 224)
        ids = torch.zeros(1, text_networks.LENGTH, dtype=torch.int64)

        def see() -> None:
            model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

        def read() -> None:
            model.text_projection(model.text_model(input_ids=ids).pooler_output)

        halves = {
            "vision": ((model.vision_model, model.visual_projection), see),
            "text": ((model.text_model, model.text_projection), read),
        }
        found = {
            name: Cost(sum(map(parameters, parts)), macs(run))
            for name, (parts, run) in halves.items()
        }
    both = sum(half.macs for half in found.values())
    return {**found, "whole": Cost(parameters(model), both)}


def one_sample(method: Alignment, shape: Shape, taught: list[int]) -> Tensor:
    """A method's loss of nothing; the depths it asks its teacher for go to `taught`."""
    z, t = torch.zeros(1, *shape.latents), torch.zeros(1)

    def teacher(_x: Tensor, _t: Tensor, _condition: Condition, depth: int) -> Tensor:
        taught.append(depth)
        return torch.zeros(1, shape.tokens, shape.width)

    inputs = AlignInputs(
        z=z,
        mean=z,
        t=t,
        condition=Condition(),
        teacher_uniform=t,
        noised=lambda t: z,
        c=torch.zeros(1, shape.width),
        features=torch.zeros(1, shape.tokens, WIDTH),
        class_feature=torch.zeros(1, WIDTH),
        class_taps={depth: torch.zeros(1, shape.width) for depth in method.depths},
        teacher=teacher,
        frozen=teacher,
        told=Condition(),
        null=Condition(),
        v=z,
    )
    taps = {depth: torch.zeros(1, shape.tokens, shape.width) for depth in method.depths}
    loss: Tensor = method(taps, inputs)
    return loss


def parameters_of(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Parameters of the layers that `forward` runs."""
    ran: set[nn.Module] = set()
    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda m, _, __: ran.add(m)) for m in leaves]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()
    return sum(parameters(m) for m in ran)


def parameters(module: nn.Module) -> int:
    """Trainable and frozen parameters; fixed tables (buffers) are not counted."""
    return sum(p.numel() for p in module.parameters())


def macs(forward: Callable[[], Any]) -> int:
    """Multiply-accumulates of what `forward` runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() // 2


WIDTH = 768  # of DINOv2-B's features


def flops_per_image(recipe: Recipe, *, encoder: bool, text_encoder: str | None = None) -> float:
    """Of a training step: trained parts run forward and twice as much backward, others forward.

    Args:
        encoder: REPA's encoder runs while training. text_encoder: as `method_cost`.
    """
    cost = method_cost(recipe, stored_features=not encoder, text_encoder=text_encoder)
    trained = cost.network.macs + sum(c.macs for c in cost.heads.values())
    return 2.0 * (3 * trained + sum(c.macs for c in cost.external.values()))
