"""The objective: golden losses of each method, and gradients where they belong."""

import itertools
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import GOLDEN

from sra2cli.config import recipe
from sra2cli.core import clock
from sra2cli.data.batches import Batch
from sra2cli.diffusion import path
from sra2cli.models.contract import Condition
from sra2cli.models.ema import Ema, tokens_of
from sra2cli.models.sit import SIZES
from sra2cli.training.objective import Objective, build_heads, next_of_group

FEATURES = 24
METHODS = {
    "none": {},
    "sra2": {"sra2": {"depth": 2}},
    "repa": {"repa": {"depth": 2, "hidden": 64}},
    "sra": {"sra": {"depth": 1, "teacher_depth": 3}},
    "repa+sra2": {"repa": {"depth": 3, "hidden": 64}, "sra2": {"depth": 2}},
}
GROUPED = {
    "dispersive": ({"dispersive": {"depth": 2}}, {}),
    "contrastive": ({}, {"contrastive": 0.05}),
}
OBJECTIVES = ("smooth-l1", "cosine", "l1", "l2")


def digits(align, **train) -> recipe.Recipe:
    """The demo's network on Gaussian 4x8x8 latents; training as when the losses were recorded."""
    tree = recipe.load("digits-sit").to_dict()
    tree["data"]["channels"] = 4
    tree["align"] = align
    tree["train"] |= {"batch": 128, "lr": 3e-3, "betas": [0.9, 0.95], "ema": 0.97, **train}
    return recipe.from_dict(tree)


def make_batch(step: int, size: int, *, channels=4, latent=8, classes=10) -> Batch:
    """A batch made by the clock from Gaussian stand-ins for latents and features."""
    rows = range(size)
    shape = (channels, latent, latent)
    draw = lambda index, shape: torch.from_numpy(  # noqa: E731
        clock.normals(0, clock.Purpose(index), step, rows, shape)
    )
    uniforms = torch.from_numpy(clock.scalars(0, step, rows))
    return Batch(
        z=draw(3, shape),
        mean=draw(3, shape),
        noise=draw(4, shape),
        t=uniforms[:, 0],
        condition=Condition(y=torch.arange(size) % (classes + 1)),
        teacher_uniform=uniforms[:, 3],
        features=draw(5, ((latent // 2) ** 2, FEATURES)),
    )


def six_steps(method: str) -> list[dict[str, float]]:
    """Losses of six steps of the digits recipe in fp32, on Gaussian data."""
    settings = digits(METHODS[method])
    objective = Objective(settings, feature_width=FEATURES)
    ema = Ema(objective.network, settings.train.ema)
    optimizer = torch.optim.AdamW(
        objective.parameters(), lr=settings.train.lr, betas=settings.train.betas, weight_decay=0
    )
    rows = []
    for step in range(6):
        losses = objective(make_batch(step, 16), None, partial(tokens_of, ema.model))
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), settings.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(objective.network)
        rows.append({name: loss.item() for name, loss in losses.items()})
    return rows


@pytest.mark.parametrize("method", METHODS)
def test_recorded_losses(method):
    """Recorded with `python tests/test_objective.py`; they change only when the method does."""
    recorded = json.loads((GOLDEN / "six_steps.json").read_text())[method]
    for found, expected in zip(six_steps(method), recorded, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "objective"),
    [("none", None), *itertools.product(["sra2", "repa", "sra", "repa+sra2"], OBJECTIVES)],
)
def test_gradients_are_finite_and_where_they_belong(method, objective):
    align = {
        k: {**v, **({"objective": objective} if objective else {})}
        for k, v in METHODS[method].items()
    }
    module = Objective(digits(align), feature_width=FEATURES)
    jolt(module)
    ema = Ema(module.network, 0.9)
    module(make_batch(0, 4), None, partial(tokens_of, ema.model))["loss"].backward()
    for name, p in module.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if "attn.qkv.bias" not in name:  # the key bias has a true gradient of zero
            assert p.grad.abs().sum() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in ema.model.parameters())


@pytest.mark.parametrize("method", ["sra2", "repa", "sra"])
def test_a_method_of_weight_zero_is_not_built_and_changes_nothing(method):
    align = {k: {**v, "weight": 0.0} for k, v in METHODS[method].items()}
    off = Objective(digits(align), feature_width=FEATURES)
    none = Objective(digits({}))
    for module in (off, none):
        module(make_batch(0, 4))["loss"].backward()
    assert not off.methods()
    for a, b in zip(off.network.parameters(), none.network.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a.grad, b.grad)


def test_the_total_is_the_weighted_sum():
    module = Objective(
        digits({"sra2": {"depth": 2, "weight": 0.3}, "repa": {"depth": 1}}), feature_width=FEATURES
    )
    jolt(module)
    losses = module(make_batch(0, 4))
    total = losses["denoise"] + 0.3 * losses["sra2"] + 0.5 * losses["repa"]
    torch.testing.assert_close(losses["loss"], total)


def test_contrastive_takes_the_next_of_the_group():
    """-w (v - v_other)^2, v_other of the partner's latent and noise at the sample's own time."""
    kind = {"kind": "cosine"}  # there the time matters
    tree = digits({}, contrastive=0.05, group=2).to_dict() | {"path": kind}
    module = Objective(recipe.from_dict(tree))
    jolt(module)
    batch = make_batch(0, 4)
    losses = module(batch)
    partner = [1, 0, 3, 2]
    x_t, _ = path.interpolate(batch.z, batch.noise, batch.t, "cosine")
    _, other = path.interpolate(batch.z[partner], batch.noise[partner], batch.t, "cosine")
    found = module.network(x_t, batch.t, batch.condition).v
    torch.testing.assert_close(losses["contrastive"], (found - other).square().mean())
    torch.testing.assert_close(losses["loss"], losses["denoise"] - 0.05 * losses["contrastive"])
    assert next_of_group(torch.arange(6), 3).tolist() == [1, 2, 0, 4, 5, 3]


@pytest.mark.parametrize("method", GROUPED)
def test_terms_over_pairs_do_not_depend_on_how_a_batch_is_cut(method):
    align, train = GROUPED[method]
    module = Objective(digits(align, group=4, **train))
    jolt(module)
    batch = make_batch(0, 16)

    def part(rows: slice) -> Batch:
        cut = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
        return replace(batch, **cut, condition=Condition(y=batch.condition.y[rows]))

    def trained(parts: list[Batch]) -> tuple[list[float], list[torch.Tensor]]:
        module.zero_grad(set_to_none=True)
        found = [module(part) for part in parts]
        for losses in found:
            (losses["loss"] / len(parts)).backward()
        names = found[0]
        means = [sum(x[name].item() for x in found) / len(found) for name in names]
        return means, [p.grad for p in module.parameters()]

    whole, expected = trained([batch])
    assert set(GROUPED[method][0]) == set(module.methods())
    for size in (4, 8):
        found, gradients = trained([part(slice(k, k + size)) for k in range(0, 16, size)])
        assert found == pytest.approx(whole, abs=1e-5)
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["layersync", "internal", "dispersive"])
def test_gradients_of_methods_without_a_target_of_others(method):
    settings = {"layersync": {"depth": 2, "target_depth": 4}}.get(method, {"depth": 2})
    module = Objective(digits({method: settings}, group=4))
    jolt(module)
    for parameter in module.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    module(make_batch(0, 4))[method].backward()
    inner, outer = (module.network.blocks[k].mlp.fc1.weight.grad for k in (1, 2))
    assert inner.any() and inner.isfinite().all() and outer is None
    assert all(p.grad is not None and p.grad.any() for p in module.heads.parameters())


def test_no_gradient_flows_into_what_is_frozen():
    """SRA's teacher may be the network itself in a test: still no gradient through it."""
    module = Objective(digits({"sra": {"depth": 1, "teacher_depth": 4, "weight": 1.0}}))
    jolt(module)
    teacher = lambda x, t, c, depth: module.network.tokens(x, t, c, depth=depth)  # noqa: E731
    losses = module(make_batch(0, 4), None, teacher)
    losses["sra"].backward()
    assert module.network.blocks[3].mlp.fc1.weight.grad is None
    assert module.network.blocks[0].mlp.fc1.weight.grad is not None


def test_align_losses_are_fp32_under_autocast():
    module = Objective(digits(METHODS["repa+sra2"]), feature_width=FEATURES)
    with torch.autocast("cpu", torch.bfloat16):
        losses = module(make_batch(0, 4))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_every_size_method_and_objective_runs(size):
    """Full width and depth; a 4x4 latent keeps it quick, and the network is made once a size."""

    def settings(align):
        return recipe.from_dict(
            {
                "data": {"classes": 1000, "channels": 4, "latent": 4},
                "model": {"size": f"{size}/2"},
                "align": align,
            }
        )

    module = Objective(settings({}))
    jolt(module)
    ema = Ema(module.network, 0.9)
    batch = make_batch(0, 2, latent=4, classes=1000)
    ran = 0
    for method, objective in [("none", ""), *itertools.product(list(METHODS)[1:], OBJECTIVES)]:
        align = {k: {**v, "objective": objective} for k, v in METHODS[method].items()}
        module.heads = build_heads(settings(align), feature_width=FEATURES)
        module.zero_grad(set_to_none=True)
        module(batch, None, partial(tokens_of, ema.model))["loss"].backward()
        for name, p in module.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), (method, objective, name)
        assert all(p.grad is None for p in ema.model.parameters())
        ran += 1
    assert ran == 17


def jolt(module: Objective) -> None:
    """Move the zero-initialised layers off zero, so that every gradient can be seen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.network.parameters():
            if not p.any():
                p.normal_(std=0.02)


if __name__ == "__main__":
    recorded = {method: six_steps(method) for method in METHODS}
    (GOLDEN / "six_steps.json").write_text(json.dumps(recorded, indent=1) + "\n")
