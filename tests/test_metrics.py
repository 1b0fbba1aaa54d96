import numpy as np
import pytest

from sra2cli.metrics import (
    frechet_distance,
    inception_score,
    precision_recall,
    statistics,
)


def test_golden_metrics(golden):
    g = golden("metrics.npz")
    gen, ref, logits = (g.arrays[k] for k in ("gen", "ref", "logits"))
    fid = frechet_distance(statistics(gen), statistics(ref))
    precision, recall = precision_recall(gen, ref, block=128)
    score = inception_score(logits, split=g.meta["is_split"])
    for value, key in [
        (fid, "fid"),
        (score, "inception_score"),
        (precision, "precision"),
        (recall, "recall"),
    ]:
        assert value == pytest.approx(float(g.arrays[key]), abs=1e-4, rel=1e-4), key


def test_frechet_distance_of_known_gaussians():
    """Diagonal covariances: |m|² + sum (s_a - s_b)²."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6))
    s, r = rng.uniform(0.5, 2, size=(2, 6))
    from sra2cli.metrics import Statistics

    distance = frechet_distance(
        Statistics(a, np.diag(s**2), 100), Statistics(b, np.diag(r**2), 100)
    )
    assert distance == pytest.approx(((a - b) ** 2).sum() + ((s - r) ** 2).sum())


def test_frechet_distance_of_singular_covariances_is_finite_and_zero_on_itself():
    x = statistics(np.random.default_rng(0).normal(size=(8, 32)))  # rank 7 of 32
    # A null eigenvalue comes out as eps * |A|², and its root counts: 24 of them here.
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-5)


def test_inception_score_splits_run_in_order_and_the_last_may_be_short():
    logits = np.random.default_rng(0).normal(size=(12, 5)) * 3
    parts = [inception_score(logits[k : k + 5], split=5) for k in (0, 5, 10)]
    assert inception_score(logits, split=5) == pytest.approx(np.mean(parts))


def test_inception_score_of_certain_and_even_predictions():
    assert inception_score(np.eye(7) * 1e3) == pytest.approx(7)
    assert inception_score(np.zeros((7, 4))) == pytest.approx(1)


@pytest.mark.parametrize("block", [7, 1000])
def test_precision_recall_by_brute_force(block):
    rng = np.random.default_rng(0)
    fake, real = rng.normal(size=(60, 4)), rng.normal(size=(80, 4)) * 1.3

    def covered(x, centres):
        own = np.linalg.norm(centres[:, None] - centres[None], axis=2)
        radii = np.sort(own, axis=1)[:, 3]
        return (np.linalg.norm(x[:, None] - centres[None], axis=2) <= radii).any(axis=1).mean()

    found = precision_recall(fake.astype(np.float32), real.astype(np.float32), block=block)
    assert found == pytest.approx((covered(fake, real), covered(real, fake)))


def test_statistics_are_numpys():
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    s = statistics(x)
    assert np.allclose(s.mean, x.mean(0), atol=1e-7)
    assert np.allclose(s.covariance, np.cov(x.astype(np.float64), rowvar=False))
    with pytest.raises(ValueError, match="N >= 2"):
        statistics(x[:1])
    with pytest.raises(ValueError, match="width"):
        frechet_distance(s, statistics(x[:, :3]))
