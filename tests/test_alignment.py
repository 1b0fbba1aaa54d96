"""Linear probes, CKA, CKNNA and principal components, against their plain definitions."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from sra2cli.figures import linear_probe
from sra2cli.figures.neighbours import cknna


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=rng) + 3
    y = x[:, :5] @ torch.randn(5, 4, generator=rng) + 0.5 * torch.randn(400, 4, generator=rng) - 2
    return x, y


def test_the_probe_is_ridge_regression_judged_on_other_rows(data):
    x, y = data
    fit, judge = linear_probe.sums(x[:300], y[:300]), linear_probe.sums(x[300:], y[300:])
    width = x.shape[1]
    penalty = linear_probe.RIDGE * float(x[:300].double().var(dim=0, correction=0).mean()) * 300
    ridge = Ridge(alpha=penalty).fit(x[:300].double().numpy(), y[:300].double().numpy())
    predicted = ridge.predict(x[300:].double().numpy())
    residual = ((y[300:].numpy() - predicted) ** 2).sum()
    total = ((y[300:] - y[:300].mean(dim=0)) ** 2).sum().item()
    assert width == 12 and linear_probe.probe(fit, judge) == pytest.approx(
        1 - residual / total, abs=1e-6
    )
    assert 0.5 < linear_probe.probe(fit, judge) < 1


def test_what_is_there_is_found_and_what_is_not_is_not(data):
    x, _ = data
    everything = linear_probe.sums(x, x @ torch.ones(12, 2))
    assert linear_probe.probe(everything, everything) > 0.999
    noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    fit, judge = linear_probe.sums(x[:300], noise[:300]), linear_probe.sums(x[300:], noise[300:])
    assert linear_probe.probe(fit, judge) < 0.05


def test_cka_is_that_of_centred_kernels(data):
    x, y = data
    a, b = x.double().numpy(), y.double().numpy()
    centre = np.eye(400) - 1 / 400
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_probe.cka(linear_probe.sums(x, y)) == pytest.approx(expected, abs=1e-9)
    turned = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    assert linear_probe.cka(linear_probe.sums(x, 2 * x.double() @ turned)) == pytest.approx(1)


def test_components_are_those_of_the_largest_variance():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=rng) * torch.tensor([5.0, 0.1, 3.0, 0.1, 1.0, 0.1]) + 7
    halves = linear_probe.sums(x[:100], x[:100]) + linear_probe.sums(x[100:], x[100:])
    mean, scattered = halves.mean, halves.scatter
    assert torch.allclose(mean, x.double().mean(dim=0))
    assert torch.allclose(scattered / 499, x.double().T.cov())
    found = linear_probe.components(scattered)
    assert found.abs().argmax(dim=1).tolist() == [0, 2, 4]
    assert (found.gather(1, found.abs().argmax(dim=1, keepdim=True)) > 0).all()
    colours = linear_probe.colours(x, mean, found)
    assert colours.shape == (500, 3) and colours.min() == 0 and colours.max() == 1
    assert torch.corrcoef(torch.stack([colours[:, 0], x[:, 0].double()]))[0, 1] > 0.99


def unbiased_hsic(k, m):
    """Song et al. 2012, equation 5."""
    n = len(k)
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    ends = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
    return ((k * m).sum() + ends) / (n * (n - 3))


def test_cknna_of_all_neighbours_is_unbiased_cka(data):
    x, y = (torch.nn.functional.normalize(f[:60].double(), dim=1) for f in data)
    k, m = x @ x.T, y @ y.T
    expected = unbiased_hsic(k, m) / (unbiased_hsic(k, k) * unbiased_hsic(m, m)).sqrt()
    assert cknna(x, y, neighbours=59) == pytest.approx(float(expected), abs=1e-12)


def test_cknna_by_its_sum_over_pairs(data):
    x, y = data[0][:40], data[1][:40]

    def centred(f):
        f = f.double() / f.double().norm(dim=1, keepdim=True)
        k, n = f @ f.T, len(f)
        k = k - torch.diag(k.diagonal())
        own = [[sum(k[i]) / (n - 2) + sum(k[:, j]) / (n - 2) for j in range(n)] for i in range(n)]
        return k, k - torch.tensor(own) + k.sum() / ((n - 1) * (n - 2))

    def nearest(k, i):
        others = sorted((j for j in range(len(k)) if j != i), key=lambda j: -float(k[i, j]))
        return set(others[:10])

    (k, kc), (m, mc) = centred(x), centred(y)

    def align(a, ac, b, bc):
        pairs = ((i, j) for i in range(40) for j in nearest(a, i) & nearest(b, i))
        return float(sum(ac[i, j] * bc[i, j] for i, j in pairs))

    expected = align(k, kc, m, mc) / (align(k, kc, k, kc) * align(m, mc, m, mc)) ** 0.5
    assert 0.05 < expected < 0.95
    assert cknna(x, y) == pytest.approx(expected, abs=1e-9)


def test_cknna_by_hand():
    """Two pairs; beside them 0°, 0°, 60°, 180°: 1 and 2 are near in both, 3 is near 4 in one alone.

    Centred: 2/3 within pairs; 1/3 for 1-2 and 3-4, -1/6 else.
    """
    x = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    angles = torch.tensor([0, 0, 60, 180]).deg2rad()
    y = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert cknna(x, y, neighbours=1) == pytest.approx(3 / 13**0.5, abs=1e-6)
    assert cknna(x, x[[0, 2, 1, 3]], neighbours=1) == 0  # no pair is shared


def test_what_cknna_does_not_see(data):
    """Rotations, sizes of features, the order of things; and chance gives nothing."""
    x, y = data
    turned = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    sizes = torch.rand(400, 1, generator=torch.Generator().manual_seed(2)) + 0.1
    order = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    assert cknna(x, x) == pytest.approx(1)
    assert cknna(sizes * x, 3 * y.double()) == pytest.approx(cknna(x, y), abs=1e-6)
    assert cknna(x.double() @ turned, y) == pytest.approx(cknna(x, y), abs=1e-6)
    assert cknna(x[order], y[order]) == pytest.approx(cknna(x, y), abs=1e-9)
    assert abs(cknna(x, y[order])) < 0.1 < cknna(x, y)
    assert cknna(torch.ones(400, 3), y) == 0
    with pytest.raises(ValueError, match="10 neighbours of 10"):
        cknna(x[:10], y[:10])
