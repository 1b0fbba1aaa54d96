"""Layers that backbones share."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 256  # width of the sinusoidal time embedding


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


Norm = Callable[[int], nn.Module]  # of a width


class Attention(nn.Module):
    """Self-attention over tokens (B, T, D).

    qk_norm: of queries and keys, before they are turned. rotary: what turns them by position.
    """

    def __init__(
        self, width: int, heads: int, qk_norm: Norm | None, rotary: "Rotary | None" = None
    ):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = qk_norm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(width // heads) if qk_norm else nn.Identity()
        self.rotary = rotary or nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.joined(F.scaled_dot_product_attention(*self.heads_of(x)))

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, T, D/heads)."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.rotary(self.q_norm(q)), self.rotary(self.k_norm(k)), v

    def joined(self, attended: Tensor) -> Tensor:
        """(B, heads, T, D/heads) → (B, T, D)."""
        return self.proj(attended.transpose(1, 2).flatten(2))


class Rotary(nn.Module):
    """2-D rotary positions (arXiv 2104.09864) of the tokens of a square, row by row.

    The first half of a head's dimensions is turned by the row, the second by the column; adjacent
    dimensions (2i, 2i+1) are a plane, turned by the angle position * 10000^(-i / (d/4)).

    Args:
        dim: d, of a head; a multiple of 4. side: tokens along a side.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, side: int):
        super().__init__()
        omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        angles = torch.arange(side, dtype=torch.float64)[:, None] * omega  # (side, d/4)
        rows = angles[:, None].expand(side, side, -1)
        columns = angles[None].expand(side, side, -1)
        planes = torch.cat([rows, columns], dim=2).reshape(side * side, dim // 2)
        self.register_buffer("cos", planes.cos().float(), persistent=False)
        self.register_buffer("sin", planes.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, heads, T, d) → the same, turned."""
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([a * self.cos - b * self.sin, b * self.cos + a * self.sin], dim=-1)
        return turned.flatten(-2).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGlu(nn.Module):
    """Gated feed-forward layer (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning (DiT, arXiv 2212.09748).

    told: width of c; None: as the tokens'.
    """

    def __init__(
        self, width: int, norm: Norm, attn: Attention, mlp: nn.Module, told: int | None = None
    ):
        super().__init__()
        self.norm1 = norm(width)
        self.attn = attn
        self.norm2 = norm(width)
        self.mlp = mlp
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(told or width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens (B, T, D) → (B, T, rows). told: width of c; None: as the tokens'."""

    def __init__(self, width: int, norm: Norm, rows: int, told: int | None = None):
        super().__init__()
        self.norm_final = norm(width)
        self.linear = nn.Linear(width, rows)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(told or width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x: (B, T, D); shift, scale: (B, D)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def patchify(z: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) → (B, T, p*p*C): each token holds one patch, in SiT's order (p, p, C)."""
    B, C, H, W = z.shape
    z = z.view(B, C, H // patch, patch, W // patch, patch)
    return z.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, patch * patch * C)


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """(B, T, p*p*C) → (B, C, H, W): the inverse of `patchify`, for a square latent."""
    B, T, D = tokens.shape
    side, C = math.isqrt(T), D // patch**2
    x = tokens.view(B, side, side, patch, patch, C)
    return torch.einsum("bhwpqc->bchpwq", x).reshape(B, C, side * patch, side * patch)
