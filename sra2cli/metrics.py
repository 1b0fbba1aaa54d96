"""Feature statistics and the numbers made from them, by ADM's definitions.

Features are (N, D) arrays. Source: openai/guided-diffusion's evaluator; Heusel et al. 2017 (FID),
Salimans et al. 2016 (IS), Kynkäänniemi et al. 2019 (precision, recall).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

IS_SPLIT = 5000
NEIGHBOURS = 3


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D; divided by N - 1) of features, float64, and their count."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def statistics(features: np.ndarray) -> Statistics:
    """Statistics of features (N, D), N at least 2; computed in float64."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"statistics need (N >= 2, D) features, not {x.shape}")
    mean = x.mean(axis=0)
    x = x - mean
    return Statistics(mean, x.T @ x / (len(x) - 1), len(x))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|² + tr(A + B - 2 (A B)^½).

    tr (A B)^½ is the sum of the square roots of the eigenvalues of A^½ B A^½, which is symmetric:
    two symmetric eigenproblems, real and non-negative, also for singular A and B.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of width {a.mean.shape} against {b.mean.shape}")
    A, B = torch.from_numpy(a.covariance), torch.from_numpy(b.covariance)
    values, vectors = torch.linalg.eigh(A)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # A^½
    cross = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    distance = float(((a.mean - b.mean) ** 2).sum())
    return distance + float(A.trace() + B.trace() - 2 * cross)


def inception_score(logits: np.ndarray, *, split: int = IS_SPLIT) -> float:
    """Mean over consecutive, unshuffled splits of exp(E KL(p(y|x) | p(y))); logits (N, K).

    The last split may be short, as in ADM.
    """
    scores = []
    for start in range(0, len(logits), split):
        log_p = torch.log_softmax(torch.from_numpy(logits[start : start + split]).double(), dim=1)
        p = log_p.exp()
        divergence = p * (log_p - p.mean(dim=0, keepdim=True).log())
        scores.append(divergence.sum(dim=1).mean().exp().item())
    return float(np.mean(scores))


def precision_recall(
    generated: np.ndarray,
    reference: np.ndarray,
    *,
    neighbours: int = NEIGHBOURS,
    dtype: Literal["float16", "float32"] = "float32",
    block: int = 2000,
) -> tuple[float, float]:
    """Improved precision and recall from features (N, D) and (M, D).

    Precision: the share of generated images that lie within the distance of some reference image
    to its k-th nearest reference; recall: the same with the roles exchanged.
    """
    fake, real = torch.from_numpy(generated), torch.from_numpy(reference)
    fake_radii = _kth_distances(fake, neighbours, dtype, block)
    real_radii = _kth_distances(real, neighbours, dtype, block)
    precision = _share_within(fake, real, real_radii, dtype, block)
    recall = _share_within(real, fake, fake_radii, dtype, block)
    return precision, recall


def _kth_distances(x: Tensor, k: int, dtype: str, block: int) -> Tensor:
    """Squared distance (N,) of each row to its k-th nearest other row."""
    radii = []
    for rows in x.split(block):
        nearest = torch.full((len(rows), k + 1), torch.inf)
        for columns in x.split(block):
            here = torch.cat([nearest, _squared_distances(rows, columns, dtype)], dim=1)
            nearest = here.topk(k + 1, dim=1, largest=False).values
        radii.append(nearest.max(dim=1).values)  # the nearest of all is the row itself
    return torch.cat(radii)


def _share_within(x: Tensor, centres: Tensor, radii: Tensor, dtype: str, block: int) -> float:
    """Share of rows of x within the radius of at least one centre."""
    inside = 0
    for rows in x.split(block):
        hit = torch.zeros(len(rows), dtype=torch.bool)
        for columns, radius in zip(centres.split(block), radii.split(block), strict=True):
            hit |= (_squared_distances(rows, columns, dtype) <= radius).any(dim=1)
        inside += int(hit.sum())
    return inside / len(x)


def _squared_distances(a: Tensor, b: Tensor, dtype: str) -> Tensor:
    """|a|² + |b|² - 2 a·b, (len(a), len(b)) as float32; in float16 unless that overflows."""
    for kind in (torch.float16, torch.float32) if dtype == "float16" else (torch.float32,):
        x, y = a.to(kind), b.to(kind)
        squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
        distances = (squares - 2 * (x @ y.T)).clamp(min=0).float()
        if bool(distances.isfinite().all()):
            return distances
    return distances
