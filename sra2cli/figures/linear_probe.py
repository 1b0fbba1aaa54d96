"""How much of a target is linearly in some tokens: a linear probe, CKA, principal components.

All are made of sums over tokens, so that tokens need not be kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean variance of the features: keeps the solution stable, little more


@dataclass(frozen=True)
class Sums:
    """Sums over rows of features x (N, D) and targets y (N, E), float64, with a column of ones.

    xx (D + 1, D + 1), xy (D + 1, E), yy (E, E): products. y (E,): the sum.
    """

    count: int
    xx: Tensor
    xy: Tensor
    yy: Tensor
    y: Tensor

    def __add__(self, more: "Sums") -> "Sums":
        """Of both sets of rows."""
        return Sums(
            self.count + more.count,
            self.xx + more.xx,
            self.xy + more.xy,
            self.yy + more.yy,
            self.y + more.y,
        )

    def of(self, columns: slice) -> "Sums":
        """With some of the targets."""
        return Sums(
            self.count, self.xx, self.xy[:, columns], self.yy[columns, columns], self.y[columns]
        )

    @property
    def mean(self) -> Tensor:
        """(D,) of the features."""
        return self.xx[:-1, -1] / self.count

    @property
    def scatter(self) -> Tensor:
        """(D, D): sum of squares of the features about their mean."""
        return self.xx[:-1, :-1] - self.count * torch.outer(self.mean, self.mean)


def sums(x: Tensor, y: Tensor | None = None) -> Sums:
    """x: (N, D) features. y: (N, E) targets of the same rows; None: no targets, E = 0."""
    one = torch.ones(len(x), 1, dtype=torch.float64)
    y = x[:, :0].double() if y is None else y.double()
    x = torch.cat([x.double(), one], dim=1)
    return Sums(len(x), x.T @ x, x.T @ y, y.T @ y, y.sum(dim=0))


def probe(train: Sums, test: Sums) -> float:
    """R² on `test` of ridge regression fitted to `train`; 1 is all, 0 no more than the mean.

    Over all components of the target together: 1 - Σ(y - ŷ)² / Σ(y - mean of train)².
    """
    penalty = torch.zeros_like(train.xx)
    size = RIDGE * train.scatter.diagonal().mean().clamp(min=1e-12)
    penalty.diagonal()[:-1] = size  # the constant is free
    weights = torch.linalg.solve(train.xx + penalty, train.xy)
    fitted = (weights * (test.xx @ weights)).sum()
    residual = test.yy.trace() - 2 * (weights * test.xy).sum() + fitted
    mean = train.y / train.count
    total = test.yy.trace() - 2 * (mean * test.y).sum() + test.count * mean.square().sum()
    return float(1 - residual / total)


def cka(s: Sums) -> float:
    """Linear CKA of features and targets (Kornblith et al. 2019), centred; in [0, 1]."""
    mean_y = s.y / s.count
    xx, xy = s.scatter, s.xy[:-1] - s.count * torch.outer(s.mean, mean_y)
    yy = s.yy - s.count * torch.outer(mean_y, mean_y)
    return float(xy.square().sum() / (xx.norm() * yy.norm()))


def components(scatter: Tensor) -> Tensor:
    """The first three principal components (3, D) of a scatter matrix (D, D).

    The sign of a component, which is arbitrary, is such that its largest loading is positive.
    """
    vectors = torch.linalg.eigh(scatter)[1].flip(1)[:, :3].T
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()


def colours(x: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """x (N, D) along three directions (3, D) from a mean (D,), each scaled to [0, 1]: (N, 3).

    From the 1st to the 99th percentile of what is shown.
    """
    found = (x.double() - mean) @ directions.T
    if found.shape[1] < 3:
        found = torch.nn.functional.pad(found, (0, 3 - found.shape[1]))
    low, high = torch.quantile(found, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    return ((found - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
