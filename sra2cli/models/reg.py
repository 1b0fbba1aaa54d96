"""REG (arXiv 2507.01467): a SiT beside whose latent an image encoder's class token is noised and
predicted. Parameter names are those of its published checkpoints.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sra2cli.config.checks import Count, settings
from sra2cli.config.settings import Data, Model
from sra2cli.models.contract import Condition, Shape
from sra2cli.models.layers import FinalLayer, Norm, modulate, unpatchify
from sra2cli.models.sit import SiT, SiTConfig


@settings
class RegConfig(SiTConfig):
    """As SiT's. class_width: F, of the class token; 768 is DINOv2-B's."""

    class_width: Count = 768

    @property
    def shape(self) -> Shape:
        return replace(super().shape, class_width=self.class_width)


class RegFinalLayer(FinalLayer):
    """Tokens (B, 1 + T, D) → (B, T, rows) and, of the first, (B, F)."""

    def __init__(self, width: int, norm: Norm, rows: int, class_width: int):
        super().__init__(width, norm, rows)
        self.linear_cls = nn.Linear(width, class_width)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        x = modulate(self.norm_final(x), shift, scale)
        return self.linear(x[:, 1:]), self.linear_cls(x[:, 0])


class Reg(SiT):
    """Velocity network of packed states (see `pack`): the class token goes through it as token 0,
    before the patches, and has an output of its own."""

    kind = "reg"
    config_class = RegConfig

    def __init__(self, config: SiTConfig):
        assert isinstance(config, RegConfig)
        super().__init__(config)
        width, rows = config.width, config.patch**2 * config.channels
        self.pos_embed = torch.cat([torch.zeros(1, 1, width), self.pos_embed], dim=1)
        self.cls_projectors2 = nn.Linear(config.class_width, width)
        self.wg_norm = nn.LayerNorm(width, eps=1e-6)
        self.final_layer = RegFinalLayer(width, self.norm, rows, config.class_width)
        nn.init.xavier_uniform_(self.cls_projectors2.weight)
        for zero in (self.cls_projectors2.bias, *self.final_layer.parameters()):
            nn.init.zeros_(zero)

    @classmethod
    def configure(cls, model: Model, data: Data) -> SiTConfig:
        config = super().configure(replace(model, class_width=None), data)
        wide = model.class_width
        return config if wide is None else replace(config, class_width=wide)  # type: ignore[call-arg]

    @classmethod
    def outline(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        shapes, wide = super().outline(config), dict(config).get("class_width", 768)
        _, patches, width = shapes["pos_embed"]
        return {
            **shapes,
            "pos_embed": (1, 1 + patches, width),
            "final_layer.linear_cls.weight": (wide, width),
        }

    def embed(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + T, D), the class token first, and c (B, D)."""
        latent, token = self.unpack(x_t)
        entered = self.wg_norm(self.cls_projectors2(token))
        stream = torch.cat([entered[:, None], self.x_embedder(latent)], dim=1) + self.pos_embed
        return stream, self.conditioning(t, condition)

    def velocity(self, stream: Tensor, c: Tensor) -> Tensor:
        """Both velocities, packed."""
        v, v_token = self.final_layer(stream, c)
        return self.pack(unpatchify(v, self.config.patch), v_token)

    def patch_tokens(self, stream: Tensor) -> Tensor:
        return stream[:, 1:]

    def class_token(self, stream: Tensor) -> Tensor:
        return stream[:, 0]
