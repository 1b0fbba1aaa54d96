"""CKNNA: whether what is near in some features is near in others (Huh et al. 2024).

arXiv 2405.07987; as its authors' code has it, with which published numbers (REPA's too) are made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10  # k
ROUNDING = 1e-12  # of cosines: within it, features do not vary
TINY = 1e-6  # theirs, added to the root


def cknna(x: Tensor, y: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """Of features x (N, D) and y (N, E) of the same N things; nearly at most 1, and 1 of x and x.

    With unit rows, K = x xᵀ and L = y yᵀ where j is among the k nearest of i in both, 0 elsewhere:
    their unbiased HSIC, over the root of the same of (K, K) and (L, L), each near in itself alone.
    With k = N - 1 it is unbiased CKA.

    Where features do not vary it is 0.
    """
    if not 1 <= neighbours < len(x) == len(y):
        raise ValueError(f"{neighbours} neighbours of {len(x)} and {len(y)}")
    (k, near_x), (m, near_y) = _kernel(x, neighbours), _kernel(y, neighbours)
    if min(float(kernel.max() - kernel.min()) for kernel in (k, m)) < ROUNDING:
        return 0.0
    both = near_x * near_y
    own = [_hsic(near * kernel, near * kernel) for kernel, near in ((k, near_x), (m, near_y))]
    return _hsic(both * k, both * m) / ((own[0] * own[1]) ** 0.5 + TINY)


def _kernel(x: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Kernel (N, N), and whether j is near i (N, N), float64; nothing is near itself."""
    x = F.normalize(x.double(), dim=1)
    kernel = x @ x.T
    others = kernel.clone().fill_diagonal_(-torch.inf)
    nearest = others.topk(neighbours, dim=1).indices
    return kernel, torch.zeros_like(kernel).scatter_(1, nearest, 1)


def _hsic(a: Tensor, b: Tensor) -> float:
    """Unbiased HSIC of kernels (N, N) with diagonals of 0 (Song et al. 2012, equation 5)."""
    n = len(a)
    found = (a * b.T).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2))
    found = found - 2 * (a.sum(dim=0) * b.sum(dim=1)).sum() / (n - 2)
    return float(found / (n * (n - 3)))
