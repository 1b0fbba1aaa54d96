import math

import pytest
import torch

from sra2cli.diffusion import path

KINDS = ("linear", "cosine")


@pytest.mark.parametrize("kind", KINDS)
def test_golden_x_t_v_and_score(golden, kind):
    g = golden("losses.npz")
    x_t, v = path.interpolate(g["latents"], g["noise"], g["t"], kind)
    torch.testing.assert_close(x_t, g[f"{kind}/x_t"], rtol=0, atol=1e-6)
    torch.testing.assert_close(v, g[f"{kind}/v"], rtol=0, atol=1e-6)
    score = path.score(g["score_v"], g["score_x"], g["score_t"], kind)
    torch.testing.assert_close(score, g[f"{kind}/score"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_v_is_the_time_derivative_of_x_t(kind):
    z, noise = torch.randn(2, 5, 1, 1, 1, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    x_t, derivative = torch.func.jvp(
        lambda t: path.interpolate(z, noise, t, kind)[0], (t,), (torch.ones_like(t),)
    )
    torch.testing.assert_close(path.interpolate(z, noise, t, kind)[1], derivative)
    assert x_t.shape == z.shape


@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_data_and_noise(kind):
    z, noise = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(path.interpolate(z, noise, zero, kind)[0], z)
    torch.testing.assert_close(path.interpolate(z, noise, one, kind)[0], noise)


@pytest.mark.parametrize("kind", KINDS)
def test_data_and_score_from_a_known_gaussian(kind):
    """z ~ N(0, s²): E[z|x] and the score have closed forms, and v follows from them."""
    s, t = 0.7, torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    c = path.coefficients(t, kind)
    x_t = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    variance = c.alpha**2 * s**2 + c.sigma**2
    mean_z, mean_noise = c.alpha * s**2 * x_t / variance, c.sigma * x_t / variance
    v = c.d_alpha * mean_z + c.d_sigma * mean_noise
    torch.testing.assert_close(path.data(v, x_t, t, kind), mean_z)
    torch.testing.assert_close(path.score(v, x_t, t, kind), -x_t / variance)


def test_lognormal_times_are_logit_normal():
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    t = path.sample_times(uniform, "lognormal", mean=-0.4, std=1.3)
    logits = torch.logit(t)
    assert math.isclose(logits.mean().item(), -0.4, abs_tol=1e-3)
    assert math.isclose(logits.std().item(), 1.3, abs_tol=5e-3)
    assert path.sample_times(torch.zeros(1), "lognormal").isfinite().all()


def test_uniform_times_are_the_draws():
    uniform = torch.rand(7)
    assert torch.equal(path.sample_times(uniform), uniform)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown path"):
        path.coefficients(torch.zeros(1), "square")
    with pytest.raises(ValueError, match="unknown time sampling"):
        path.sample_times(torch.zeros(1), "beta")
