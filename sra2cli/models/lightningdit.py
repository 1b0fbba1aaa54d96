"""LightningDiT (arXiv 2501.01423): SiT with RMSNorm, SwiGLU and rotary positions.

Parameter names are those of its published checkpoints; in them time is reversed and the velocity
has the other sign, as in SiT's own (see checkpoints).
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from sra2cli.config.checks import settings
from sra2cli.config.reading import read_record
from sra2cli.models.layers import Attention, Block, Rotary, SwiGlu
from sra2cli.models.sit import SiT, SiTConfig

SIZES = {  # parameters with patch 1 on a 32x16x16 latent, 1000 classes, without the position table
    "B": {"depth": 12, "width": 768, "heads": 12},  # 130.4M
    "L": {"depth": 24, "width": 1024, "heads": 16},  # 457.0M
    "XL": {"depth": 28, "width": 1152, "heads": 16},  # 675.2M
    "1p0B": {"depth": 24, "width": 1536, "heads": 24},  # 1.0B
    "1p6B": {"depth": 28, "width": 1792, "heads": 28},  # 1.6B
}


@settings
class LightningDiTConfig(SiTConfig):
    """As SiT's; mlp_ratio is of a layer without a gate, which has as many weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width // self.heads % 4:
            raise ValueError(
                f"{self.heads} heads of width {self.width // self.heads}: "
                "2-D rotary positions need a multiple of 4"
            )

    @property
    def hidden(self) -> int:
        """Width of the gate."""
        return int(2 / 3 * self.mlp_ratio * self.width)


class LightningDiT(SiT):
    """Velocity network v(x_t, t, y); its config as SiT's."""

    kind = "lightningdit"
    config_class = LightningDiTConfig
    sizes = SIZES
    norm = staticmethod(partial(nn.RMSNorm, eps=1e-6))

    @classmethod
    def outline(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        shapes, c = super().outline(config), read_record(cls.config_class, dict(config))
        assert isinstance(c, LightningDiTConfig)
        del shapes["blocks.0.mlp.fc1.weight"]
        return {**shapes, "blocks.0.mlp.w12.weight": (2 * c.hidden, c.width)}

    def make_blocks(self, config: SiTConfig) -> Iterator[Block]:
        """Its blocks, from the first to the last; one table of angles serves all."""
        assert isinstance(config, LightningDiTConfig)
        width = config.width
        rotary = Rotary(width // config.heads, config.shape.side)
        for _ in range(config.depth):
            attn = Attention(width, config.heads, self.norm if config.qk_norm else None, rotary)
            yield Block(width, self.norm, attn, SwiGlu(width, config.hidden))
