"""MaskDiT (arXiv 2306.09305) without its masks: to draw from published checkpoints.

An encoder of DiT blocks, then a narrower decoder; trained as EDM (arXiv 2206.00364) on noise levels
sigma. It fits the linear path: t = sigma / (1 + sigma), x_t = x * (1 - t).
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sra2cli.config.checks import Count, settings
from sra2cli.config.reading import read_record
from sra2cli.config.settings import Data, Model
from sra2cli.models.contract import Backbone, Condition, Output
from sra2cli.models.layers import (
    Attention,
    Block,
    FinalLayer,
    LabelEmbed,
    Mlp,
    PatchEmbed,
    TimeEmbed,
    sincos_positions,
    unpatchify,
)
from sra2cli.models.sit import SiTConfig, layer_norm, named_size

SIZES = {"XL": {"depth": 28, "width": 1152, "heads": 16}}  # 730.1M with its decoder
DATA_VARIANCE = 0.25  # EDM's sigma_data is 0.5
LOG_SIGMA = 10.0  # at t = 0 and 1 ln(sigma) has no end; EDM's grid stays within 6.3


@settings
class MaskDiTConfig(SiTConfig):
    """As SiT's, and the decoder's."""

    decoder_depth: Count = 8
    decoder_width: Count = 512
    decoder_heads: Count = 16


def block(width: int, heads: int, mlp_ratio: float, told: int) -> Block:
    attn = Attention(width, heads, None)
    return Block(width, layer_norm, attn, Mlp(width, int(width * mlp_ratio)), told)


class MaskDiT(Backbone):
    """Velocity network v(x_t, t, y); taps are of its encoder's blocks."""

    kind = "maskdit"
    trained = False
    of_resolution = ("pos_embed", "decoder_pos_embed")
    of_labels = ("y_embedder",)

    def __init__(self, config: MaskDiTConfig):
        super().__init__()
        self.config: MaskDiTConfig = config
        width, inner, ratio = config.width, config.decoder_width, config.mlp_ratio
        side = config.latent // config.patch
        self.x_embedder = PatchEmbed(config.patch, config.channels, width)
        self.t_embedder = TimeEmbed(width)
        self.y_embedder = LabelEmbed(config.classes, width)
        self.pos_embed: Tensor
        self.decoder_pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(width, side))
        self.register_buffer("decoder_pos_embed", sincos_positions(inner, side))
        self.blocks = nn.ModuleList(
            block(width, config.heads, ratio, width) for _ in range(config.depth)
        )
        self.decoder_layer = FinalLayer(width, layer_norm, inner)
        self.decoder_blocks = nn.ModuleList(
            block(inner, config.decoder_heads, ratio, width) for _ in range(config.decoder_depth)
        )
        rows = config.patch**2 * config.channels
        self.final_layer = FinalLayer(inner, layer_norm, rows, width)

    @classmethod
    def configure(cls, model: Model, data: Data) -> MaskDiTConfig:
        if model.size == "custom":
            raise ValueError("maskdit has the size XL/2 alone")
        return MaskDiTConfig(
            **named_size(model.size, SIZES),  # type: ignore[arg-type]
            channels=data.channels or 0,
            latent=data.latent or 0,
            classes=data.classes or 0,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MaskDiT":
        return cls(read_record(MaskDiTConfig, dict(config)))

    @classmethod
    def outline(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        c = read_record(MaskDiTConfig, dict(config))
        return {
            "x_embedder.proj.weight": (c.width, c.channels, c.patch, c.patch),
            "pos_embed": (1, c.shape.tokens, c.width),
            "decoder_pos_embed": (1, c.shape.tokens, c.decoder_width),
            "blocks.0.mlp.fc1.weight": (int(c.width * c.mlp_ratio), c.width),
            "y_embedder.embedding_table.weight": (c.classes + 1, c.width),
        }

    def embed(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, D), and c (B, D): noise level plus label."""
        if condition.y is None:
            raise ValueError("this model is class-conditional: labels y are needed")
        log_sigma = torch.logit(t.float()).clamp(-LOG_SIGMA, LOG_SIGMA)
        c = self.t_embedder(log_sigma / 4) + self.y_embedder(condition.y)
        return self.x_embedder(x_t / spread(t)) + self.pos_embed, c

    def velocity(self, stream: Tensor, c: Tensor) -> Tensor:
        """EDM's F (B, C, H, W), which `forward` makes a velocity of."""
        tokens = self.decoder_layer(stream, c) + self.decoder_pos_embed
        for layer in self.decoder_blocks:
            tokens = layer(tokens, c)
        return unpatchify(self.final_layer(tokens, c), self.config.patch)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | Tensor | None = None,
        *,
        taps: Collection[int] = (),
    ) -> Output:
        """As `Backbone.forward`.

        With EDM's D = x * var / (sigma^2 + var) + F * sqrt(var) * sigma / sqrt(sigma^2 + var),
        v = (x_t - D) / t; both ends of t are finite.
        """
        out = super().forward(x_t, t, condition, taps=taps)
        total, time = spread(t), t.view(-1, 1, 1, 1)
        v = x_t * (time - DATA_VARIANCE * (1 - time)) / total**2
        return Output(v - DATA_VARIANCE**0.5 * out.v / total, out.taps, out.c)


def spread(t: Tensor) -> Tensor:
    """Standard deviation of x_t, (B, 1, 1, 1): of data of EDM's variance, noised."""
    time = t.view(-1, 1, 1, 1)
    return (time**2 + DATA_VARIANCE * (1 - time) ** 2).sqrt()


def own_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights as ours: no prefix, no mask token, and a row of zeros for the null class,
    which there is no label at all."""
    own = {k.removeprefix("model."): v for k, v in state.items()}
    own.pop("mask_token", None)
    table = own.pop("y_embedder.embedding_table.weight").T  # (classes, D)
    null = torch.zeros_like(table[:1])
    return {**own, "y_embedder.embedding_table.weight": torch.cat([table, null])}


def with_decoder(
    config: SiTConfig, state: Mapping[str, Tensor], heads: int | None
) -> MaskDiTConfig:
    """The config, with the decoder that these weights have.

    heads: of the decoder; None: its published 16.
    """
    depth = len({k.split(".")[1] for k in state if k.startswith("decoder_blocks.")})
    return MaskDiTConfig(
        **asdict(config),
        decoder_depth=depth,
        decoder_width=len(state["decoder_layer.linear.weight"]),
        decoder_heads=heads or 16,
    )
