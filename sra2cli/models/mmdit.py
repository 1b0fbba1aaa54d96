"""MMDiT, as REPA trains it on captions: a SiT beside whose patch tokens the tokens of a caption run
through every block, in a stream with weights of its own; both attend to each other (SD3,
arXiv 2403.03206, without its pooled text). Parameter names are those of REPA's checkpoints.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sra2cli.config.checks import Count, Natural, settings
from sra2cli.config.reading import read_record
from sra2cli.config.settings import Data, Model
from sra2cli.models.contract import Backbone, Condition, Shape
from sra2cli.models.layers import (
    Attention,
    FinalLayer,
    Mlp,
    PatchEmbed,
    TimeEmbed,
    modulate,
    sincos_positions,
    unpatchify,
)
from sra2cli.models.sit import SiTConfig, layer_norm, named_size

SIZES = {  # heads of 32; parameters with patch 2 on a 4x32x32 latent, captions of width 768
    "S": {"depth": 4, "width": 128, "heads": 4},  # 2.3M; ours, for a laptop
    "B": {"depth": 8, "width": 256, "heads": 8},  # 18.5M; ours
    "L": {"depth": 24, "width": 768, "heads": 24},  # 505.1M; REPA's
}
Streams = tuple[Tensor, Tensor]  # caption (B, L, D) and patches (B, T, D)


@settings
class MMDiTConfig(SiTConfig):
    """As SiT's, without classes.

    Args:
        text_width: E, of the features of a caption. text_tokens: L, of them; 0: not known, and the
            network holds no empty caption. text_encoder: what made them.
    """

    classes: Natural = 0
    text_width: Count = 768
    text_tokens: Natural = 77
    text_encoder: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qk_norm or self.classes:
            raise ValueError("an MMDiT has no QK-norm and no classes")

    @property
    def shape(self) -> Shape:
        text = (self.text_tokens, self.text_width)
        return replace(super().shape, condition="text", text=text)


class Stream(nn.Module):
    """What a block holds of one of its two streams.

    ends: its tokens are attended to a last time, and come out of the block no more.
    """

    def __init__(self, config: MMDiTConfig, *, ends: bool = False):
        super().__init__()
        width = config.width
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, config.heads, None)
        self.modulations = 2 if ends else 6
        modulation = nn.Linear(width, self.modulations * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)
        if ends:
            self.attn.proj = nn.Identity()  # type: ignore[assignment]
            return
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def enter(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
        """Queries, keys and values (B, heads, L, d), and the modulations that `leave` needs."""
        shift, scale, *rest = self.adaLN_modulation(c).chunk(self.modulations, dim=1)
        return self.attn.heads_of(modulate(self.norm1(x), shift, scale)), rest

    def leave(self, x: Tensor, attended: Tensor, modulations: list[Tensor]) -> Tensor:
        """x (B, L, D) after the block; attended: (B, heads, L, d)."""
        gate1, shift2, scale2, gate2 = modulations
        x = x + gate1.unsqueeze(1) * self.attn.joined(attended)
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class JointBlock(nn.Module):
    """Both streams through one attention over [caption; patches].

    last: nothing but the patches leaves it.
    """

    def __init__(self, config: MMDiTConfig, *, last: bool):
        super().__init__()
        self.context_block = Stream(config, ends=last)
        self.x_block = Stream(config)
        self.last = last

    def forward(self, streams: Streams, c: Tensor) -> Streams:
        text, patches = streams
        of_text, told_text = self.context_block.enter(text, c)
        of_patches, told_patches = self.x_block.enter(patches, c)
        q, k, v = (torch.cat(both, dim=2) for both in zip(of_text, of_patches, strict=True))
        attended = F.scaled_dot_product_attention(q, k, v)
        to_text, to_patches = attended.split([text.shape[1], patches.shape[1]], dim=2)
        patches = self.x_block.leave(patches, to_patches, told_patches)
        if not self.last:
            text = self.context_block.leave(text, to_text, told_text)
        return text, patches


class MMDiT(Backbone):
    """Velocity network v(x_t, t, caption).

    Attributes:
        null_text: (L, E), features of the empty caption, which stands for no caption; they are
            saved with the weights. None where a file of others does not hold them.
    """

    kind = "mmdit"
    told = "text"
    of_resolution = ("pos_embed",)
    of_captions = ("null_text",)
    config: MMDiTConfig
    null_text: Tensor | None

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = PatchEmbed(config.patch, config.channels, width)
        self.t_embedder = TimeEmbed(width)
        self.context_embedder = nn.Linear(config.text_width, width)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(width, config.shape.side))
        null = torch.zeros(config.text_tokens, config.text_width) if config.text_tokens else None
        self.register_buffer("null_text", null)
        ends = [depth == config.depth for depth in range(1, config.depth + 1)]
        self.joint_blocks = nn.ModuleList(JointBlock(config, last=last) for last in ends)
        # its linears stay as torch makes them, as in REPA's: v is not 0 at first
        self.final_layer = FinalLayer(width, layer_norm, config.patch**2 * config.channels)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """What is compiled and checkpointed."""
        return self.joint_blocks

    @classmethod
    def configure(cls, model: Model, data: Data) -> MMDiTConfig:
        """The config of a recipe's size, for latents and captions of its data."""
        if model.class_width is not None:
            raise ValueError(f"'class_width' is for kind reg, not {cls.kind}")
        shape = {k: getattr(model, k) for k in ("depth", "width", "heads", "patch")}
        return MMDiTConfig(
            **(shape if model.size == "custom" else named_size(model.size, SIZES)),
            qk_norm=model.qk_norm,
            channels=data.channels or 0,
            latent=data.latent or 0,
            text_width=data.text_width or 0,
            text_tokens=data.text_tokens or 0,
            text_encoder=data.text_encoder or "",
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MMDiT":
        """ValueError for what is no record of one."""
        return cls(read_record(MMDiTConfig, dict(config)))

    @classmethod
    def outline(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        c = read_record(MMDiTConfig, dict(config))
        shapes = {
            "x_embedder.proj.weight": (c.width, c.channels, c.patch, c.patch),
            "pos_embed": (1, c.shape.tokens, c.width),
            "context_embedder.weight": (c.width, c.text_width),
            "joint_blocks.0.x_block.mlp.fc1.weight": (int(c.width * c.mlp_ratio), c.width),
        }
        null = {"null_text": (c.text_tokens, c.text_width)}
        return shapes | (null if c.text_tokens else {})

    def null(self, condition: Condition, drop: Tensor | None = None) -> Condition:
        """The empty caption: for all, or where `drop` (B,) is true."""
        if condition.text is None:
            return condition
        if self.null_text is None:
            raise ValueError("this file holds no features of the empty caption")
        null = self.null_text.to(condition.text).expand_as(condition.text)
        return Condition(
            text=null if drop is None else torch.where(drop[:, None, None], null, condition.text)
        )

    def tell_null(self, text: Tensor) -> None:
        if self.null_text is None or self.null_text.shape != text.shape:
            self.null_text = torch.empty_like(text, device=self.pos_embed.device)
        self.null_text.copy_(text)
        self.config = replace(self.config, text_tokens=len(text))

    def knows_null(self, text: Tensor) -> bool:
        own = self.null_text
        if own is None or own.shape != text.shape:
            return False
        bound = 0.02 * max(1.0, float(own.abs().max()))  # float16 of a store, another machine
        return bool((own.cpu() - text).abs().max() <= bound)

    def embed(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Streams, Tensor]:
        """Tokens of caption and patches, and c (B, D): the time alone."""
        if condition.text is None:
            raise ValueError("this model is told captions: features of a text are needed")
        patches = self.x_embedder(x_t) + self.pos_embed
        return (self.context_embedder(condition.text), patches), self.t_embedder(t)

    def patch_tokens(self, stream: Streams) -> Tensor:
        return stream[1]

    def velocity(self, stream: Streams, c: Tensor) -> Tensor:
        """(B, T, D) → (B, C, H, W)."""
        return unpatchify(self.final_layer(stream[1], c), self.config.patch)
