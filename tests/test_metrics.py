import time

import numpy as np
import pytest
import torch

from sra2cli.evaluation import metrics
from sra2cli.evaluation.metrics import (
    InceptionScore,
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
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
    from sra2cli.evaluation.metrics import Statistics

    distance = frechet_distance(
        Statistics(a, np.diag(s**2), 100), Statistics(b, np.diag(r**2), 100)
    )
    assert distance == pytest.approx(((a - b) ** 2).sum() + ((s - r) ** 2).sum())


def test_frechet_distance_of_singular_covariances_is_finite_and_zero_on_itself():
    x = statistics(np.random.default_rng(0).normal(size=(8, 32)))  # rank 7 of 32
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_inception_score_splits_run_in_order_and_the_last_may_be_short():
    logits = np.random.default_rng(0).normal(size=(12, 5)) * 3
    parts = [inception_score(logits[k : k + 5], split=5) for k in (0, 5, 10)]
    assert inception_score(logits, split=5) == pytest.approx(np.mean(parts))


def test_inception_score_of_certain_and_even_predictions():
    assert inception_score(np.eye(7) * 1e3) == pytest.approx(7)
    assert inception_score(np.zeros((7, 4))) == pytest.approx(1)


def brute_force(fake, real, block, half):
    """ADM's rule, entry by entry of its formula: float16 blocks that overflow, in float32."""

    def distances(a, b):
        out = np.empty((len(a), len(b)), np.float32)
        for i in range(0, len(a), block):
            for j in range(0, len(b), block):
                for kind in (np.float16, np.float32) if half else (np.float32,):
                    u, v = a[i : i + block].astype(kind), b[j : j + block].astype(kind)
                    products = (u.astype(np.float32) @ v.astype(np.float32).T).astype(kind)
                    norms = [np.square(x).astype(np.float32).sum(1).astype(kind) for x in (u, v)]
                    d = norms[0][:, None] - kind(2) * products + norms[1]
                    if np.isfinite(d).all():
                        break
                out[i : i + block, j : j + block] = np.maximum(d, 0)
        return out

    with np.errstate(over="ignore", invalid="ignore"):
        radii = [np.sort(distances(x, x), axis=1)[:, 3] for x in (fake, real)]
        between = distances(real, fake)
    inside = (between <= radii[1][:, None]).any(0), (between <= radii[0]).any(1)
    return inside[0].mean(), inside[1].mean()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("block", [7, 40, 1000])
@pytest.mark.parametrize("large", [1, 60, 1000])  # of a few rows; 60 and 1000 overflow float16
def test_precision_recall_by_brute_force(monkeypatch, dtype, block, large):
    monkeypatch.setattr(metrics, "STRIP", 16)
    rng = np.random.default_rng(0)
    fake, real = (rng.normal(size=(n, 20)).astype(np.float32) for n in (60, 80))
    fake[:5] *= large
    found = precision_recall(fake, real * 1.1, block=block, dtype=dtype)
    assert found == pytest.approx(brute_force(fake, real * 1.1, block, dtype == "float16"))


def test_float16_distances_differ_from_float32_ones():
    """Not the same number under two names."""
    rng = np.random.default_rng(0)
    fake, real = (rng.uniform(size=(300, 64)).astype(np.float32) for _ in range(2))
    halves = precision_recall(fake, real, dtype="float16")
    assert halves != precision_recall(fake, real)


def test_moments_and_score_do_not_depend_on_the_batches():
    x = torch.randn(3000, 12, generator=torch.Generator().manual_seed(0))
    found = []
    for batch in (1, 64, 1024, 2048, 3000):
        moments, score = Moments(), InceptionScore(split=700)
        for part in x.split(batch):
            moments.add(part)
            score.add(part)
        s = moments.statistics()
        assert s.count == 3000
        found.append((s.mean.tobytes(), s.covariance.tobytes()))
        assert score.value() == pytest.approx(inception_score(x.numpy(), split=700), rel=1e-12)
    assert len(set(found)) == 1


def test_moments_far_from_zero_lose_nothing():
    x = np.random.default_rng(0).normal(size=(4000, 5)) + 1e6
    assert np.allclose(statistics(x).covariance, np.cov(x, rowvar=False), rtol=1e-9)


def test_kernel_distance_is_torch_fidelitys_over_all_pairs():
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = (torch.from_numpy(np.random.default_rng(s).normal(size=(70, 9)) + s) for s in (0, 1))
    theirs = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=70, verbose=False)
    assert kernel_distance(a, b, block=16) == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-9
    )


def reference_distance(a, b):
    """The definition, with the eigenvalues of the product itself."""
    mean = [x.mean(0) for x in (a, b)]
    A, B = (np.cov(x, rowvar=False) for x in (a, b))
    cross = np.sqrt(np.linalg.eigvals(A @ B).astype(complex)).real.sum()
    return ((mean[0] - mean[1]) ** 2).sum() + np.trace(A) + np.trace(B) - 2 * cross


@pytest.mark.parametrize("width", [128, pytest.param(2048, marks=pytest.mark.slow)])
def test_frechet_distance_of_correlated_features(width):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(width, width)) / width**0.5
    a = np.maximum(rng.normal(size=(4000, width)) @ mix, 0)
    b = np.maximum(rng.normal(size=(6000, width)) @ mix * 1.1 + 0.05, 0)
    theirs = reference_distance(a, b)
    a, b = statistics(a), statistics(b)
    begun = time.monotonic()
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)
    assert time.monotonic() - begun < 15


def test_statistics_are_numpys():
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    s = statistics(x)
    assert np.allclose(s.mean, x.mean(0), atol=1e-7)
    assert np.allclose(s.covariance, np.cov(x.astype(np.float64), rowvar=False))
    with pytest.raises(ValueError, match="N >= 2"):
        statistics(x[:1])
    with pytest.raises(ValueError, match="width"):
        frechet_distance(s, statistics(x[:, :3]))
