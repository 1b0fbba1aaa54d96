from itertools import pairwise

import pytest
import torch

from sra2cli.align.heads import mlp
from sra2cli.diffusion import path
from sra2cli.diffusion import samplers as sampler
from sra2cli.models.sit import SiT, SiTConfig


def golden_model(golden, name="sit_repa.npz") -> SiT:
    g = golden(name)
    model = SiT(SiTConfig(depth=3, width=64, heads=4, latent=8)).eval()
    own = {k: v for k, v in g.state_dict().items() if not k.startswith(("projectors", "ap_head"))}
    model.load_state_dict(own)
    return model


@pytest.mark.parametrize("case", ["euler", "euler_cfg", "heun_cfg", "em", "em_cfg", "em_cosine"])
def test_golden_samplers(golden, case):
    g = golden("samplers.npz")
    settings, steps = g.meta["cases"][case], g.meta["num_steps"]
    interval = (settings.get("guidance_low", 0.0), settings.get("guidance_high", 1.0))
    v = sampler.guided(golden_model(golden), g["y"], scale=settings["cfg_scale"], interval=interval)
    with torch.no_grad():
        if case.startswith("em"):
            draws = g[f"{case}/noise"]
            x_0 = sampler.euler_maruyama(
                v,
                g["x1"],
                steps=steps,
                noise=lambda i: draws[i],
                kind=settings.get("path_type", "linear"),
            )
        else:
            solve = sampler.heun if settings["heun"] else sampler.euler
            x_0 = solve(v, g["x1"], steps=steps)
    assert x_0.dtype == torch.float64
    torch.testing.assert_close(x_0, g[f"{case}/x0"], rtol=0, atol=1e-5)


def gaussian_velocity(s: float, kind: str) -> sampler.Velocity:
    """The exact velocity when z ~ N(0, s²)."""

    def v(x, t, t_step):
        c = path.coefficients(torch.tensor([t], dtype=torch.float64), kind)
        return (
            (c.d_alpha * c.alpha * s**2 + c.d_sigma * c.sigma)
            / (c.alpha**2 * s**2 + c.sigma**2)
            * x
        )

    return v


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize(("solve", "order"), [(sampler.euler, 1), (sampler.heun, 2)])
def test_ode_error_falls_at_its_order(kind, solve, order):
    """The flow maps N(0, 1) to N(0, s²): x_0 = s x_1 exactly."""
    s, x_1 = 0.6, torch.ones(1, 1, 1, 1, dtype=torch.float64)
    errors = []
    for steps in (32, 64, 128):
        x_0 = solve(gaussian_velocity(s, kind), x_1, steps=steps)
        errors.append(abs(x_0.item() - s))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


def test_sde_variance_error_falls_at_first_order():
    """Linear SDE: mean 0 and a variance that the scheme maps exactly; no sampling error.

    The variance after the whole scheme is read off two runs: the response to x_1, and to each draw.
    """
    s = 0.6

    def variance(steps: int) -> float:
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        solve = lambda x, noise: sampler.euler_maruyama(  # noqa: E731
            gaussian_velocity(s, "linear"), x, steps=steps, noise=noise, last_step=1 / steps
        )
        total = solve(one, lambda i: zero).item() ** 2
        for k in range(steps - 1):
            total += solve(zero, lambda i, k=k: one if i == k else zero).item() ** 2
        return total

    errors = [abs(variance(steps) - s**2) for steps in (20, 40, 80)]
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.5


def test_guidance_formula_interval_and_channels(golden):
    model = golden_model(golden)
    x, y = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 7])
    with torch.no_grad():
        t = torch.full((2,), 0.5)
        v_y = model(x.float(), t, y)[0].double()
        v_null = model(x.float(), t, torch.full_like(y, model.null_class))[0].double()
        expected = v_null + 2.5 * (v_y - v_null)
        v = sampler.guided(model, y, scale=2.5, interval=(0.15, 0.6))
        torch.testing.assert_close(v(x, 0.5, 0.5), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(v(x, 0.5, 0.7), v_y, rtol=0, atol=1e-5)
        for edge in (0.15, 0.6):  # both ends belong to the interval
            torch.testing.assert_close(v(x, 0.5, edge), expected, rtol=0, atol=1e-5)
        three = sampler.guided(model, y, scale=2.5, channels=3)(x, 0.5, 0.5)
        torch.testing.assert_close(three[:, :3], expected[:, :3], rtol=0, atol=1e-5)
        torch.testing.assert_close(three[:, 3:], v_y[:, 3:], rtol=0, atol=1e-5)


def test_no_guidance_costs_one_pass(golden):
    model = golden_model(golden)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([3, 7])
    with torch.no_grad():
        sampler.euler(sampler.guided(model, y, scale=1.8, interval=(0.0, 0.5)), x, steps=4)
    assert seen == [2, 2, 4, 4]  # t = 1, 0.75 unguided; 0.5, 0.25 guided


def test_guidance_needs_classes():
    model = SiT(SiTConfig(depth=1, width=32, heads=2, latent=8, classes=0))
    with pytest.raises(ValueError, match="class-conditional"):
        sampler.guided(model, None, scale=2.0)


def test_mlp_has_the_layers_asked_for():
    assert [m.out_features for m in mlp(8, 16, 4) if isinstance(m, torch.nn.Linear)] == [16, 4]
