"""Feature statistics and the numbers made from them, by ADM's definitions.

Features are (N, D). Source: openai/guided-diffusion's evaluator; Heusel et al. 2017 (FID),
Salimans et al. 2016 (IS), Kynkäänniemi et al. 2019 (precision, recall), Bińkowski et al. 2018
(KID).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from threadpoolctl import threadpool_limits
from torch import Tensor

from sra2cli.core.errors import DataError

IS_SPLIT = 5000
NEIGHBOURS = 3
BLOCK = 10_000  # rows and columns of the blocks in which ADM decides between float16 and float32
STRIP = 1000  # rows whose distances are in memory at once
CHUNK = 1024  # rows that are summed at once: sums do not depend on the batches rows came in
ROUNDED = 1e-5  # of the variances: what a Fréchet distance may lie below 0
HALF_SAFE = 60_000.0  # below float16's largest number, 65,504, by more than its rounding

Distances = Literal["float16", "float32"]


@contextmanager
def one_thread() -> Iterator[None]:
    """What is computed on the CPU in here is computed by one thread, so always in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D; divided by N - 1) of features, float64, and their count.

    count: None where it is not known, as of published files.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None


class Moments:
    """Mean and covariance of features that arrive in batches (B, D), in float64.

    Squares are summed about the mean of each chunk and joined by Chan's formula: nothing cancels.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[Tensor] = []
        self._mean = self._scatter = torch.zeros(())

    def add(self, features: Tensor) -> None:
        """Features (B, D) of further images, on any device."""
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= CHUNK:
            *whole, rest = torch.cat(self._waiting).split(CHUNK)
            if len(rest) == CHUNK:
                whole, rest = [*whole, rest], rest[:0]
            self._waiting = [rest]
            for chunk in whole:
                self._sum(chunk)

    def statistics(self) -> Statistics:
        """Of everything added, at least 2 rows; nothing can be added after it."""
        rest = torch.cat(self._waiting)
        self._waiting = []
        if len(rest):
            self._sum(rest)
        covariance = self._scatter / (self.count - 1)
        return Statistics(self._mean.cpu().numpy(), covariance.cpu().numpy(), self.count)

    def _sum(self, chunk: Tensor) -> None:
        with one_thread():  # sums do not depend on the number of threads either
            self._add(chunk)

    def _add(self, chunk: Tensor) -> None:
        x, before = chunk.double(), self.count
        mean = x.mean(dim=0)
        x = x - mean
        self.count += len(x)
        if before == 0:
            self._mean, self._scatter = mean, x.T @ x
            return
        step = mean - self._mean
        self._scatter += x.T @ x + torch.outer(step, step * (before * len(x) / self.count))
        self._mean += step * (len(x) / self.count)


def statistics(features: np.ndarray) -> Statistics:
    """Statistics of features (N, D), N at least 2; computed in float64."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"statistics need (N >= 2, D) features, not {features.shape}")
    moments = Moments()
    moments.add(torch.from_numpy(features))
    return moments.statistics()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|² + tr(A + B - 2 (A B)^½).

    With F Fᵀ = A and G Gᵀ = B, A B has the eigenvalues of (Fᵀ G)(Fᵀ G)ᵀ, so the trace of the root
    is the sum of the singular values of Fᵀ G: nothing is squared, and singular A and B, of fewer
    images than features, only make it smaller. It is never negative; what rounding leaves below 0,
    down to -`ROUNDED` times tr(A + B), is 0.

    Raises:
        DataError: it is further below 0, or not a number: A or B is not a covariance.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of width {a.mean.shape} against {b.mean.shape}")
    # 2 s for 2048 features; several threads wait where others work too, and sum in other orders
    with one_thread(), threadpool_limits(1):
        product = _factor(a.covariance).T @ _factor(b.covariance)
        cross = float(torch.linalg.svdvals(product).sum())
    distance = float(((a.mean - b.mean) ** 2).sum())
    total = float(np.trace(a.covariance) + np.trace(b.covariance))
    distance = distance + total - 2 * cross
    if not distance >= -ROUNDED * total:
        raise DataError(f"a Fréchet distance of {distance:.4g} cannot be: check the reference")
    return max(distance, 0.0)


def _factor(covariance: np.ndarray) -> Tensor:
    """F (D, rank) with F Fᵀ = covariance: Cholesky's, with pivots, so that its rank may be low."""
    lower, pivots, rank, _ = dpstrf(covariance, lower=1)
    factor = np.zeros((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return torch.from_numpy(factor)


class InceptionScore:
    """Mean over consecutive, unshuffled splits of exp(E KL(p(y|x) | p(y))), as logits arrive.

    The last split may be short, as in ADM. E KL = E Σ p log p - Σ m log m with m the mean of p.
    """

    def __init__(self, split: int = IS_SPLIT):
        self.split = split
        self._scores: list[float] = []
        self._p = torch.zeros(())  # sums over the split: of p, and of p log p
        self._negentropy, self._count = 0.0, 0

    def add(self, logits: Tensor) -> None:
        """Logits (B, K) of further images, in order."""
        while len(logits):
            room = self.split - self._count
            log_p = torch.log_softmax(logits[:room].double(), dim=1)
            self._p = self._p + log_p.exp().sum(dim=0)
            self._negentropy += float((log_p.exp() * log_p).sum())
            self._count += len(log_p)
            logits = logits[room:]
            if self._count == self.split:
                self._scores.append(self._score())
                self._p = torch.zeros(())
                self._negentropy, self._count = 0.0, 0

    def value(self) -> float:
        """The score of everything added."""
        return float(np.mean(self._scores + ([self._score()] if self._count else [])))

    def _score(self) -> float:
        mean = self._p / self._count
        return float(np.exp(self._negentropy / self._count - float(torch.xlogy(mean, mean).sum())))


def inception_score(logits: np.ndarray, *, split: int = IS_SPLIT) -> float:
    """`InceptionScore` of logits (N, K)."""
    score = InceptionScore(split)
    score.add(torch.from_numpy(logits))
    return score.value()


def kernel_distance(
    a: Tensor | np.ndarray, b: Tensor | np.ndarray, *, block: int = 2000, device: str = "cpu"
) -> float:
    """KID: unbiased squared MMD with the kernel (x·y / D + 1)³, over all pairs, in float64.

    What the mean over random subsets estimates, without their noise; may lie a little below 0.
    """
    x, y = (torch.as_tensor(f).to(device).double() for f in (a, b))

    def total(u: Tensor, v: Tensor) -> float:
        parts = ((r @ c.T / x.shape[1] + 1) ** 3 for r in u.split(block) for c in v.split(block))
        return sum(float(part.sum()) for part in parts)

    def among(u: Tensor) -> float:
        own = ((u.square().sum(dim=1) / x.shape[1] + 1) ** 3).sum()
        return (total(u, u) - float(own)) / (len(u) * (len(u) - 1))

    return among(x) + among(y) - 2 * total(x, y) / (len(x) * len(y))


def precision_recall(
    generated: Tensor | np.ndarray,
    reference: Tensor | np.ndarray,
    *,
    neighbours: int = NEIGHBOURS,
    dtype: Distances = "float32",
    block: int = BLOCK,
    device: str = "cpu",
) -> tuple[float, float]:
    """Improved precision and recall from features (N, D) and (M, D), each more than `neighbours`.

    Precision: the share of generated images that lie within the distance of some reference image
    to its k-th nearest reference; recall: the same with the roles exchanged.
    """
    fake, real = (torch.as_tensor(f).to(device) for f in (generated, reference))
    fake_radii = _kth_distances(fake, neighbours, dtype, block)
    real_radii = _kth_distances(real, neighbours, dtype, block)
    fake_inside = torch.zeros(len(fake), dtype=torch.bool, device=device)
    real_inside = torch.zeros(len(real), dtype=torch.bool, device=device)
    for rows, columns, distances in _strips(real, fake, dtype, block):
        fake_inside[columns] |= (distances <= real_radii[rows, None]).any(dim=0)
        real_inside[rows] |= (distances <= fake_radii[columns]).any(dim=1)
    return float(fake_inside.double().mean()), float(real_inside.double().mean())


def _kth_distances(x: Tensor, k: int, dtype: Distances, block: int) -> Tensor:
    """Squared distance (N,) of each row to its k-th nearest other row."""
    nearest = torch.full((len(x), k + 1), torch.inf, device=x.device)
    for rows, _, distances in _strips(x, x, dtype, block):
        here = torch.cat([nearest[rows], distances], dim=1)
        nearest[rows] = here.topk(k + 1, dim=1, largest=False).values
    return nearest.max(dim=1).values  # the nearest of all is the row itself


def _strips(
    a: Tensor, b: Tensor, dtype: Distances, block: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances in pieces: rows of a, rows of b, float32 values.

    In float16 unless a block would overflow, as ADM; a block's strips are all of one kind.
    """
    for i in range(0, len(a), block):
        for j in range(0, len(b), block):
            u, v = a[i : i + block], b[j : j + block]
            kind = torch.float16 if dtype == "float16" and _fits_half(u, v) else torch.float32
            for k in range(0, len(u), STRIP):
                part = u[k : k + STRIP]
                rows, columns = slice(i + k, i + k + len(part)), slice(j, j + len(v))
                yield rows, columns, _squared_distances(part, v, kind)


def _fits_half(u: Tensor, v: Tensor) -> bool:
    """Whether the float16 distances of a block are all finite."""
    longest = sum(float(x.float().square().sum(dim=1).max().sqrt()) for x in (u, v))
    if longest**2 < HALF_SAFE:  # |u|² + 2 |u| |v| + |v|² bounds every term
        return True
    strips = (_squared_distances(part, v, torch.float16) for part in u.split(STRIP))
    return all(bool(distances.isfinite().all()) for distances in strips)


def _squared_distances(u: Tensor, v: Tensor, kind: torch.dtype) -> Tensor:
    """max(|u|² - 2 u·v + |v|², 0), (len(u), len(v)), rounded to `kind` after each term as in ADM.

    Products are summed in float32, as a GPU does: the result is the same everywhere.
    """
    u, v = u.to(kind), v.to(kind)
    products = (u.float() @ v.float().T).to(kind)
    distances = u.square().sum(dim=1)[:, None] - 2 * products + v.square().sum(dim=1)
    return distances.clamp(min=0).float()
