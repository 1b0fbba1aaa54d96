"""SiT: the scalable interpolant transformer (arXiv 2401.08740), and its table of sizes.

Parameter names are those of the published SiT, REPA and SRA checkpoints. Heads live
elsewhere: SiT only offers its tokens after any block ("taps").
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from sra2cli.config.checks import Count, Flag, Natural, Positive, settings
from sra2cli.config.reading import read_record
from sra2cli.config.settings import Data, Model
from sra2cli.models.contract import Backbone, Condition, Shape
from sra2cli.models.layers import (
    Attention,
    Block,
    FinalLayer,
    LabelEmbed,
    Mlp,
    Norm,
    PatchEmbed,
    TimeEmbed,
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


def named_size(name: str, table: Mapping[str, Mapping[str, int]] = SIZES) -> dict[str, int]:
    """Depth, width, heads and patch of a size such as "XL/2".

    Raises:
        ValueError: for a name that is not SIZE/PATCH of the table.
    """
    size, _, patch = name.partition("/")
    if size not in table or not patch.isdigit() or int(patch) not in PATCHES:
        sizes, patches = ", ".join(table), ", ".join(map(str, PATCHES))
        raise ValueError(f"unknown size {name!r}: one of {sizes} with a patch of {patches}, as B/2")
    return {**table[size], "patch": int(patch)}


def layer_norm(width: int) -> nn.Module:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class SiT(Backbone):
    """Velocity network v(x_t, t, y).

    Args:
        config: its shape.
    """

    kind = "sit"
    config_class: type[SiTConfig] = SiTConfig
    sizes: Mapping[str, Mapping[str, int]] = SIZES
    norm: Norm = staticmethod(layer_norm)
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
        self.blocks = nn.ModuleList(self.make_blocks(config))
        self.final_layer = FinalLayer(width, self.norm, config.patch**2 * config.channels)
        self.initialise()

    def make_blocks(self, config: SiTConfig) -> Iterator[Block]:
        """Its blocks, from the first to the last."""
        width, qk_norm = config.width, nn.LayerNorm if config.qk_norm else None
        for _ in range(config.depth):
            attn = Attention(width, config.heads, qk_norm)
            yield Block(width, self.norm, attn, Mlp(width, int(width * config.mlp_ratio)))

    @classmethod
    def configure(cls, model: Model, data: Data) -> SiTConfig:
        """The config of a recipe's size, for latents and classes of its data."""
        if model.class_width is not None:
            raise ValueError(f"'class_width' is for kind reg, not {cls.kind}")
        shape = {k: getattr(model, k) for k in ("depth", "width", "heads", "patch")}
        return cls.config_class(
            **(shape if model.size == "custom" else named_size(model.size, cls.sizes)),
            qk_norm=model.qk_norm,
            channels=data.channels or 0,
            latent=data.latent or 0,
            classes=data.classes or 0,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SiT":
        """ValueError for what is no record of one."""
        return cls(read_record(cls.config_class, dict(config)))

    @classmethod
    def outline(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        c = read_record(cls.config_class, dict(config))
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
        return self.x_embedder(x_t) + self.pos_embed, self.conditioning(t, condition)

    def conditioning(self, t: Tensor, condition: Condition) -> Tensor:
        """c (B, D): time plus label."""
        c: Tensor = self.t_embedder(t)
        if self.y_embedder is None:
            return c
        if condition.y is None:
            raise ValueError("this model is class-conditional: labels y are needed")
        return c + self.y_embedder(condition.y)

    def velocity(self, stream: Tensor, c: Tensor) -> Tensor:
        """(B, T, D) → (B, C, H, W)."""
        return unpatchify(self.final_layer(stream, c), self.config.patch)
