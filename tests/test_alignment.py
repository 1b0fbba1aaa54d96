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
    assert cknna(x, y, neighbours=59) == pytest.approx(
        float(expected), rel=3e-3
    )  # they add 1e-6 below


def test_cknna_is_that_of_its_authors(data):
    """Numbers that their code (minyoungg/platonic-rep, metrics.py, unbiased) gave."""
    x, y = data
    waves = (
        np.sin(np.arange(60.0).reshape(20, 3) ** 2),
        np.cos(np.arange(40.0).reshape(20, 2) ** 1.5),
    )
    a, b = map(torch.from_numpy, waves)
    theirs = {2: 0.22041714519822728, 5: 0.40208755793641615, 10: 0.46703128229520074}
    assert {k: cknna(a, b, neighbours=k) for k in theirs} == pytest.approx(theirs, abs=1e-12)
    theirs = {2: 0.02417093331, 10: 0.08513474230, 50: 0.24936844817, 399: 0.36156500664}
    assert {k: cknna(x, y, neighbours=k) for k in theirs} == pytest.approx(theirs, abs=1e-9)


def test_what_cknna_does_not_see(data):
    """Rotations, sizes of features, the order of things; and chance gives nothing."""
    x, y = data
    turned = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    sizes = torch.rand(400, 1, generator=torch.Generator().manual_seed(2)) + 0.1
    order = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    assert cknna(x, x) == pytest.approx(1, rel=1e-2)
    assert cknna(sizes * x, 3 * y.double()) == pytest.approx(cknna(x, y), abs=1e-6)
    assert cknna(x.double() @ turned, y) == pytest.approx(cknna(x, y), abs=1e-6)
    assert cknna(x[order], y[order]) == pytest.approx(cknna(x, y), abs=1e-9)
    assert abs(cknna(x, y[order])) < 0.03 < cknna(x, y)
    assert cknna(torch.ones(400, 3), y) == 0
    with pytest.raises(ValueError, match="10 neighbours of 10"):
        cknna(x[:10], y[:10])
