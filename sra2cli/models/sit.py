"""SiT: the scalable interpolant transformer (arXiv 2401.08740), and its table of sizes.

Parameter names are those of the published SiT, REPA and SRA checkpoints. Heads live
elsewhere: SiT only offers its tokens after any block ("taps").
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from sra2cli.config.checks import Count, Flag, Natural, Positive, settings
from sra2cli.config.reading import read_record
from sra2cli.config.settings import Data, Model
from sra2cli.models.contract import Backbone, Condition, Shape
from sra2cli.models.layers import (
    Attention,
    LabelEmbed,
    Mlp,
    PatchEmbed,
    TimeEmbed,
    modulate,
    sincos_positions,
    unpatchify,
)

SIZES = {  # parameters with patch 2 on a 4x32x32 latent, 1000 classes, without the position table
    "S": {"depth": 12, "width": 384, "heads": 6},  # 32.9M
    "B": {"depth": 12, "width": 768, "heads": 12},  # 130.3M
    "L": {"depth": 24, "width": 1024, "heads": 16},  # 457.8M
    "XL": {"depth": 28, "width": 1152, "heads": 16},  # 674.8M
}
PATCHES = (1, 2, 4, 8)


@settings
class SiTConfig:
    """Everything that shapes a SiT.

    Args:
        classes: number of classes; the label `classes` itself is the null class.
            0 makes an unconditional model.
        channels, latent: the latent is (channels, latent, latent).
    """

    depth: Count
    width: Count
    heads: Count
    patch: Count = 2
    channels: Count = 4
    latent: Count = 32
    classes: Natural = 1000
    qk_norm: Flag = False
    mlp_ratio: Positive = 4.0

    def __post_init__(self) -> None:
        if self.latent % self.patch:
            raise ValueError(f"patch {self.patch} does not divide a latent of side {self.latent}")
        if self.heads < 1 or self.depth < 1:
            raise ValueError("depth and heads must be above 0")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.width}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4 (sin-cos positions)")

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.depth, self.patch, self.channels, self.latent, self.classes)

    def to_dict(self) -> dict[str, int | float | bool]:
        return asdict(self)


def named_size(name: str) -> dict[str, int]:
    """Depth, width, heads and patch of a size such as "XL/2".

    Raises:
        ValueError: for a name that is not SIZE/PATCH of the tables above.
    """
    size, _, patch = name.partition("/")
    if size not in SIZES or not patch.isdigit() or int(patch) not in PATCHES:
        sizes, patches = ", ".join(SIZES), ", ".join(map(str, PATCHES))
        raise ValueError(f"unknown size {name!r}: one of {sizes} with a patch of {patches}, as B/2")
    return {**SIZES[size], "patch": int(patch)}


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, config.heads, config.qk_norm)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, config: SiTConfig):
        super().__init__()
        self.norm_final = nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(config.width, config.patch**2 * config.channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class SiT(Backbone):
    """Velocity network v(x_t, t, y).

    Args:
        config: its shape.
    """

    kind = "sit"
    of_resolution = ("pos_embed",)
    of_labels = ("y_embedder",)

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.config: SiTConfig = config
        width = config.width
        self.x_embedder = PatchEmbed(config.patch, config.channels, width)
        self.t_embedder = TimeEmbed(width)
        self.y_embedder = LabelEmbed(config.classes, width) if config.classes else None
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(width, config.latent // config.patch))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.initialise()

    @classmethod
    def configure(cls, model: Model, data: Data) -> SiTConfig:
        """The config of a recipe's size, for latents and classes of its data."""
        shape = {k: getattr(model, k) for k in ("depth", "width", "heads", "patch")}
        return SiTConfig(
            **(shape if model.size == "custom" else named_size(model.size)),
            qk_norm=model.qk_norm,
            channels=data.channels or 0,
            latent=data.latent or 0,
            classes=data.classes or 0,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SiT":
        """ValueError for what is no record of one."""
        return cls(read_record(SiTConfig, dict(config)))

    @classmethod
    def outline(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        c = read_record(SiTConfig, dict(config))
        shapes = {
            "x_embedder.proj.weight": (c.width, c.channels, c.patch, c.patch),
            "pos_embed": (1, c.shape.tokens, c.width),
            "blocks.0.mlp.fc1.weight": (int(c.width * c.mlp_ratio), c.width),
        }
        labels = {"y_embedder.embedding_table.weight": (c.classes + 1, c.width)}
        return shapes | (labels if c.classes else {})

    def initialise(self) -> None:
        """As DiT and SiT: Xavier linears, zero modulations and output, so v starts at 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        patches = self.x_embedder.proj.weight
        nn.init.xavier_uniform_(patches.view(patches.shape[0], -1))
        nn.init.constant_(self.x_embedder.proj.bias, 0)  # type: ignore[arg-type]
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in self.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        modulations = [m.adaLN_modulation[1] for m in [*self.blocks, self.final_layer]]
        for linear in [*modulations, self.final_layer.linear]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def null_class(self) -> int:
        """The label that stands for no label."""
        return self.config.classes

    def embed(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, D), and c (B, D): time plus label."""
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            if condition.y is None:
                raise ValueError("this model is class-conditional: labels y are needed")
            c = c + self.y_embedder(condition.y)
        return self.x_embedder(x_t) + self.pos_embed, c

    def velocity(self, stream: Tensor, c: Tensor) -> Tensor:
        """(B, T, D) → (B, C, H, W)."""
        return unpatchify(self.final_layer(stream, c), self.config.patch)
