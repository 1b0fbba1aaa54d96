"""CKNNA: whether what is near in some features is near in others (Huh et al. 2024).

arXiv 2405.07987, appendix A: centred kernel alignment over pairs that are neighbours in both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10  # k
ROUNDING = 1e-24  # of a sum of squared kernels: below it, features do not vary


def cknna(x: Tensor, y: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """Of features x (N, D) and y (N, E) of the same N things; at most 1, and 1 of x and x.

    With unit rows, K = x xᵀ and L = y yᵀ centred, and α_ij = 1 where j is among the k nearest
    of i in both, else 0: Σ α_ij K_ij L_ij, over the root of the same of (K, K) and (L, L). Pairs
    are i ≠ j throughout, so kernels are centred over these: with k = N - 1 it is unbiased CKA.

    Where features do not vary it is 0.
    """
    if not 1 <= neighbours < len(x) == len(y):
        raise ValueError(f"{neighbours} neighbours of {len(x)} and {len(y)}")
    (k, near_x), (m, near_y) = _kernel(x, neighbours), _kernel(y, neighbours)
    shared = (near_x * near_y * k * m).sum()
    norm = ((near_x * k * k).sum() * (near_y * m * m).sum()).sqrt()
    return float(shared / norm) if norm > ROUNDING else 0.0


def _kernel(x: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Centred kernel (N, N), its diagonal 0, and whether j is near i (N, N), float64."""
    x = F.normalize(x.double(), dim=1)
    kernel = (x @ x.T).fill_diagonal_(-torch.inf)
    nearest = kernel.topk(neighbours, dim=1).indices
    near = torch.zeros_like(kernel).scatter_(1, nearest, 1)
    kernel.fill_diagonal_(0)
    n = len(x)
    rows = kernel.sum(dim=1) / (n - 2)
    kernel = kernel - rows[:, None] - rows + kernel.sum() / ((n - 1) * (n - 2))
    return kernel.fill_diagonal_(0), near
