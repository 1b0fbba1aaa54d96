"""SiT: the scalable interpolant transformer (arXiv 2401.08740), and its table of sizes.

Parameter names are those of the published SiT, REPA and SRA checkpoints. Heads live
elsewhere: SiT only offers its tokens after any block ("taps").
"""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SIZES = {  # parameters with patch 2 on a 4x32x32 latent, 1000 classes, without the position table
    "S": {"depth": 12, "width": 384, "heads": 6},  # 32.9M
    "B": {"depth": 12, "width": 768, "heads": 12},  # 130.3M
    "L": {"depth": 24, "width": 1024, "heads": 16},  # 457.8M
    "XL": {"depth": 28, "width": 1152, "heads": 16},  # 674.8M
}
PATCHES = (1, 2, 4, 8)
FREQUENCIES = 256  # width of the sinusoidal time embedding


@dataclass(frozen=True)
class SiTConfig:
    """Everything that shapes a SiT.

    Args:
        classes: number of classes; the label `classes` itself is the null class.
            0 makes an unconditional model.
        channels, latent: the latent is (channels, latent, latent).
    """

    depth: int
    width: int
    heads: int
    patch: int = 2
    channels: int = 4
    latent: int = 32
    classes: int = 1000
    qk_norm: bool = False
    mlp_ratio: float = 4.0

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
    def tokens(self) -> int:
        """Number of tokens of one latent."""
        return (self.latent // self.patch) ** 2

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


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed 2-D sin-cos position table, (1, side*side, width); the first half encodes columns."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega  # (side, width/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width/2)
    columns = axis[None, :, :].expand(side, side, -1)
    rows = axis[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, side * side, width).float()


class PatchEmbed(nn.Module):
    """Latent (B, C, H, W) → tokens (B, T, D), row by row."""

    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
    """Times (B,) in [0, 1], unscaled → (B, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        omega = torch.exp(
            -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half
        )
        angles = t.float()[:, None] * omega
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class LabelEmbed(nn.Module):
    """Labels (B,) in [0, classes] → (B, D); the last row is the null class."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, D/heads)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x: (B, T, D); shift, scale: (B, D)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


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


class SiT(nn.Module):
    """Velocity network v(x_t, t, y).

    Args:
        config: its shape.
        checkpointing: recompute each block in the backward pass instead of keeping it.
    """

    def __init__(self, config: SiTConfig, *, checkpointing: bool = False):
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        width = config.width
        self.x_embedder = PatchEmbed(config.patch, config.channels, width)
        self.t_embedder = TimeEmbed(width)
        self.y_embedder = LabelEmbed(config.classes, width) if config.classes else None
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(width, config.latent // config.patch))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.initialise()

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

    def forward(
        self, x_t: Tensor, t: Tensor, y: Tensor | None = None, *, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Velocity, and the tokens after the blocks named in `taps` (1-based depths).

        Args:
            x_t: (B, C, H, W) noised latents.
            t: (B,) times in [0, 1].
            y: (B,) labels in [0, classes], `classes` being the null class;
                None for an unconditional model.

        Returns:
            v (B, C, H, W), and {depth: (B, T, D)}.
        """
        self._check_depths(taps)
        tokens, c = self._embed(x_t, t, y)
        tapped = {}
        for depth, block in enumerate(self.blocks, start=1):
            tokens = self._run(block, tokens, c)
            if depth in taps:
                tapped[depth] = tokens
        return self._unpatchify(self.final_layer(tokens, c)), tapped

    def tokens(self, x_t: Tensor, t: Tensor, y: Tensor | None = None, *, depth: int) -> Tensor:
        """Tokens (B, T, D) after block `depth`; the blocks above it are not run."""
        self._check_depths([depth])
        tokens, c = self._embed(x_t, t, y)
        for block in self.blocks[:depth]:
            tokens = self._run(block, tokens, c)
        return tokens

    def _check_depths(self, depths: Collection[int]) -> None:
        for depth in depths:
            if not 1 <= depth <= self.config.depth:
                raise ValueError(f"depth {depth} is not a block of 1..{self.config.depth}")

    def _embed(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            if y is None:
                raise ValueError("this model is class-conditional: labels y are needed")
            c = c + self.y_embedder(y)
        return self.x_embedder(x_t) + self.pos_embed, c

    def _run(self, block: nn.Module, tokens: Tensor, c: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, c, use_reentrant=False)
        return block(tokens, c)

    def _unpatchify(self, x: Tensor) -> Tensor:
        """(B, T, p*p*C) → (B, C, H, W)."""
        p, C, side = (
            self.config.patch,
            self.config.channels,
            self.config.latent // self.config.patch,
        )
        x = x.view(-1, side, side, p, p, C)
        return torch.einsum("bhwpqc->bchpwq", x).reshape(-1, C, side * p, side * p)
