import math

import pytest
import torch

from sra2cli import align
from sra2cli.align.contract import AlignInputs
from sra2cli.align.dispersive import dispersion
from sra2cli.align.heads import OBJECTIVES, token_loss
from sra2cli.align.repa import over_tokens
from sra2cli.align.sra import teacher_time
from sra2cli.config.methods import (
    REPA,
    SRA,
    SRA2,
    Dispersive,
    Internal,
    LayerSync,
    SelfTranscendence,
)
from sra2cli.models.contract import Condition
from sra2cli.models.layers import patchify, unpatchify

SHAPE = align.Shape(width=48, depth=4, patch=2, channels=4, latent=8, classes=10)


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        ("smooth-l1", "smooth_l1"),
        ("l1", "l1"),
        ("l2", "l2"),
        ("cosine", "cos_over_features"),
        ("cosine-over-tokens", "sra_cos_over_tokens"),
    ],
)
def test_golden_token_losses(golden, objective, key):
    g = golden("losses.npz")
    loss = token_loss(objective, g["feat"], g["target"])
    assert loss.shape == (6,)
    torch.testing.assert_close(loss.mean(), g[key], rtol=0, atol=1e-6)


def test_golden_repa_loss(golden):
    g = golden("losses.npz")
    repa = align.build({"repa": REPA(depth=1)}, SHAPE, feature_width=24)["repa"]
    repa.head = torch.nn.Identity()
    loss = repa({1: g["feat"]}, inputs(features=g["target"], batch=6)).mean()
    torch.testing.assert_close(loss, g["repa_loss"], rtol=0, atol=1e-6)


def test_golden_teacher_time(golden):
    g = golden("losses.npz")
    t = teacher_time(g["t"], g["teacher_u"], g.meta["t_max"])
    torch.testing.assert_close(t, g["teacher_t"], rtol=0, atol=1e-6)


def inputs(*, batch=3, t=None, **others) -> AlignInputs:
    z = torch.randn(batch, 4, 8, 8)
    t = torch.rand(batch) if t is None else t
    given = {
        "z": z,
        "mean": z + 1,
        "t": t,
        "condition": Condition(y=torch.zeros(batch, dtype=torch.long)),
        "teacher_uniform": torch.rand(batch),
        "noised": lambda t: z * t.view(-1, 1, 1, 1),
    }
    return AlignInputs(**{**given, **others})


def test_head_shapes_are_the_papers():
    """D → 2D → 2D → 2D → 2D → p²C, and D → 2D → p²C for two layers (SPEC)."""
    for layers, widths in [(5, [96, 96, 96, 96, 16]), (2, [96, 16])]:
        head = align.build({"sra2": SRA2(layers=layers)}, SHAPE)["sra2"].head
        assert [m.out_features for m in head if isinstance(m, torch.nn.Linear)] == widths


def test_last_layers_of_the_head():
    """norm: a LayerNorm before the last linear. adaln: D → 2D → 2D → 2D → D, then as SiT's."""
    tokens, batch = {2: torch.randn(3, 16, 48)}, inputs(c=torch.randn(3, 48))
    norm = align.build({"sra2": SRA2(final="norm")}, SHAPE)["sra2"]
    hidden = norm.head[:-2](tokens[2])
    expected = norm.head[-1](torch.nn.functional.layer_norm(hidden, (96,), eps=1e-6))
    assert torch.equal(norm.predict(tokens[2], None), expected)
    adaln = align.build({"sra2": SRA2(final="adaln")}, SHAPE)["sra2"]
    widths = [m.out_features for m in adaln.head if isinstance(m, torch.nn.Linear)]
    assert widths == [96, 96, 96, 48]
    plain = adaln.predict(tokens[2], batch.c)
    normed = torch.nn.functional.layer_norm(adaln.head(tokens[2]), (48,), eps=1e-6)
    assert torch.equal(plain, adaln.last.linear(normed))  # modulations begin at zero
    with torch.no_grad():
        adaln.last.adaLN_modulation[1].bias[48:] = 1.0  # the scale: twice the normed tokens
    bias = adaln.last.linear.bias
    torch.testing.assert_close(adaln.predict(tokens[2], batch.c) - bias, 2 * (plain - bias))
    adaln(tokens, batch).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adaln.parameters())
    with pytest.raises(ValueError, match="needs a network that has a vector c"):
        adaln(tokens, inputs())


def test_target_norm_compares_z_scores():
    batch, flat = inputs(), lambda x: x.flatten(1)
    sra2 = align.build({"sra2": SRA2(target_norm="sample", objective="l2")}, SHAPE)["sra2"]
    sra2.head = torch.nn.Identity()
    tokens = patchify(batch.z, 2)
    assert sra2({2: 7 * tokens - 3}, batch).abs().max() < 1e-10  # whatever its scale and shift
    other = torch.randn(3, 16, 16)
    pairs = torch.stack([flat(tokens), flat(other)], dim=1)
    r = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    torch.testing.assert_close(sra2({2: other}, batch), 2 - 2 * r)  # of z-scores: 2 - 2 corr


def test_sra2_is_zero_when_the_head_gives_the_latent():
    sra2 = align.build({"sra2": SRA2()}, SHAPE)["sra2"]
    sra2.head = torch.nn.Identity()
    batch = inputs()
    assert sra2({2: patchify(batch.z, 2)}, batch).abs().max() == 0
    mean = align.build({"sra2": SRA2(target="mean")}, SHAPE)["sra2"]
    mean.head = torch.nn.Identity()
    assert mean({2: patchify(batch.z + 1, 2)}, batch).abs().max() == 0


def test_window_zeroes_samples_outside_it():
    batch = inputs(t=torch.tensor([0.1, 0.5, 0.9]))
    tokens = {2: torch.randn(3, 16, 48)}
    whole = align.build({"sra2": SRA2()}, SHAPE)["sra2"]
    part = align.build({"sra2": SRA2(window=(0.0, 0.5))}, SHAPE)["sra2"]
    part.load_state_dict(whole.state_dict())
    inside = torch.tensor([True, True, False])
    assert torch.equal(part(tokens, batch), whole(tokens, batch) * inside)


def test_sum_is_the_mean_times_what_is_summed():
    tokens, batch = {2: torch.randn(3, 16, 48)}, inputs()
    mean = align.build({"sra2": SRA2()}, SHAPE)["sra2"]
    total = align.build({"sra2": SRA2(reduction="sum")}, SHAPE)["sra2"]
    total.load_state_dict(mean.state_dict())
    torch.testing.assert_close(total(tokens, batch), 4 * 8 * 8 * mean(tokens, batch))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_fp32_under_autocast(objective):
    prediction, target = torch.randn(2, 3, 16, 24)
    with torch.autocast("cpu", torch.bfloat16):
        half = token_loss(objective, prediction.bfloat16(), target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, token_loss(objective, prediction.bfloat16(), target))


def test_sra_asks_its_teacher_at_the_cleaner_time():
    asked = {}

    def teacher(x_t, t, condition, depth):
        asked.update(x_t=x_t, t=t, condition=condition, depth=depth)
        return torch.zeros(3, 16, 48)

    batch = inputs(teacher=teacher)
    sra = align.build({"sra": SRA(depth=1, teacher_depth=3)}, SHAPE)["sra"]
    sra({1: torch.randn(3, 16, 48)}, batch)
    expected = teacher_time(batch.t, batch.teacher_uniform, 0.2)
    assert torch.equal(asked["t"], expected) and asked["depth"] == 3
    assert torch.equal(asked["x_t"], batch.noised(expected))
    assert asked["condition"] is batch.condition


def test_sra_weight_falls_tenfold_in_1000_epochs():
    sra = align.build({"sra": SRA(depth=1, teacher_depth=2)}, SHAPE)["sra"]
    assert [sra.factor(0, e) for e in (0, 149)] == [0.2, 0.2]
    assert sra.factor(0, 1149) == pytest.approx(0.02)
    assert sra.factor(0, 150) == pytest.approx(2 * 0.1 ** (1 + 1 / 1000))  # SRA's own formula


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sra2": SRA2(depth=5)}, r"align.sra2.depth is 5, but the network has blocks 1..4"),
        ({"sra": SRA(depth=1, teacher_depth=9)}, r"align.sra.teacher_depth is 9"),
        ({"repa": REPA(depth=0)}, r"align.repa.depth is 0"),
    ],
)
def test_depths_the_network_lacks_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        align.build(settings, SHAPE, feature_width=8)


def test_layersync_stops_its_target():
    layersync = align.build({"layersync": LayerSync(depth=1, target_depth=3)}, SHAPE)["layersync"]
    tokens = {1: torch.randn(3, 16, 48, requires_grad=True), 3: torch.randn(3, 16, 48)}
    tokens[3].requires_grad_()
    batch = inputs()
    loss = layersync(tokens, batch)
    cos = (tokens[1] * tokens[3]).sum(2) / (tokens[1].norm(dim=2) * tokens[3].norm(dim=2))
    torch.testing.assert_close(loss, -cos.mean(dim=1))
    loss.sum().backward()
    assert tokens[1].grad.any() and tokens[3].grad is None
    assert layersync.depths == (1, 3) and not list(layersync.parameters())
    assert layersync({1: 2 * tokens[3], 3: tokens[3]}, batch).detach() == pytest.approx([-1] * 3)


def test_self_transcendence_guides_a_frozen_networks_tokens():
    settings = SelfTranscendence(depth=1, teacher_depth=3, guidance=30.0, window=(0.4, 0.7))
    method = align.build({"self-transcendence": settings}, SHAPE)["self-transcendence"]
    method.head = torch.nn.Identity()
    told, null = Condition(y=torch.tensor([1, 2, 3])), Condition(y=torch.tensor([10, 10, 10]))
    asked = []

    def frozen(x_t, t, condition, depth):
        asked.append((x_t, t, depth))
        return torch.full((3, 16, 48), 1.1 if condition is told else 1.0, requires_grad=True)

    t = torch.tensor([0.4, 0.5, 0.71])
    batch = inputs(t=t, frozen=frozen, told=told, null=null)
    tokens = torch.full((3, 16, 48), 2.0, requires_grad=True)
    loss = method({1: tokens}, batch)  # the target is 1 + 30 * 0.1
    assert loss.tolist() == pytest.approx([4.0, 4.0, 0.0], abs=1e-4)
    loss.sum().backward()
    assert tokens.grad[0].any() and len(asked) == 2
    assert all(d == 3 and torch.equal(x, batch.noised(t)) and at is t for x, at, d in asked)
    with pytest.raises(ValueError, match="tokens of a frozen network"):
        method({1: tokens}, inputs())


def test_internal_reads_the_velocity_off_a_block():
    internal = align.build({"internal": Internal(depth=2)}, SHAPE)["internal"]
    tokens, v = {2: torch.randn(3, 16, 48)}, torch.randn(3, 4, 8, 8)
    batch = inputs(c=torch.randn(3, 48), v=v)
    torch.testing.assert_close(internal(tokens, batch), v.square().mean(dim=(1, 2, 3)))  # from 0
    with torch.no_grad():
        internal.final.linear.bias.copy_(torch.arange(16.0))
    constant = unpatchify(torch.arange(16.0).expand(3, 16, 16), 2)
    expected = (constant - v).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(internal(tokens, batch), expected)
    with pytest.raises(ValueError, match="a network that has a vector c"):
        internal(tokens, inputs(v=v))
    with pytest.raises(ValueError, match="needs the velocity"):
        internal(tokens, inputs(c=batch.c))


def test_dispersion_by_hand():
    """Two samples at distance d: log of (1 + exp(-d / tau)) / 2, of both alike."""
    x = torch.zeros(4, 2, 3)
    x[1] += 1.0  # mean squared difference 1 to the first
    x[3] += 2.0  # 4
    method = align.build({"dispersive": Dispersive(depth=1, temperature=0.5)}, SHAPE)["dispersive"]
    x.requires_grad_()
    loss = method({1: x}, inputs(batch=4, group=2))
    first, second = (math.log((1 + math.exp(-d / 0.5)) / 2) for d in (1, 4))
    assert loss.tolist() == pytest.approx([first, first, second, second], abs=1e-6)
    loss.sum().backward()
    assert (x.grad[1] < 0).all() and torch.equal(x.grad[0], -x.grad[1])  # downhill they part
    alone = method({1: x.detach()}, inputs(batch=4, group=1))
    assert torch.equal(alone, torch.zeros(4))
    far = dispersion(1000 + 100 * torch.randn(1, 8, 16, 48), 0.5)
    assert far.item() == pytest.approx(-math.log(8))


def test_repa_with_irepas_two_changes():
    features = torch.randn(3, 16, 24) + 5
    found = over_tokens(features, 0.6)
    mean, std = features.mean(dim=1, keepdim=True), features.std(dim=1, keepdim=True)
    torch.testing.assert_close(found, (features - 0.6 * mean) / std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(over_tokens(features, 1.0).mean(dim=1), torch.zeros(3, 24))
    settings = {"repa": REPA(depth=1, projector="conv", spatial_norm=0.6)}
    repa = align.build(settings, SHAPE, feature_width=24)["repa"]
    assert sum(p.numel() for p in repa.parameters()) == 9 * 48 * 24 + 24
    repa.head.conv.weight.data.zero_()[:, :24, 1, 2] = torch.eye(24)  # the right-hand neighbour
    tokens = torch.randn(3, 16, 48)
    moved = tokens.unflatten(1, (4, 4))[..., :24].roll(-1, dims=2)
    moved[:, :, 3] = 0  # beyond the edge
    torch.testing.assert_close(repa.head(tokens), moved.flatten(1, 2))
    loss = repa({1: tokens}, inputs(features=features))
    cos = torch.nn.functional.cosine_similarity(moved.flatten(1, 2), found, dim=2)
    torch.testing.assert_close(loss, -cos.mean(dim=1))
    assert not repa({1: tokens.requires_grad_()}, inputs(features=features)).isnan().any()


def test_missing_ingredients_are_named():
    methods = align.build(
        {"repa": REPA(depth=1), "sra": SRA(depth=1, teacher_depth=2)}, SHAPE, feature_width=8
    )
    tokens = {1: torch.randn(3, 16, 48)}
    with pytest.raises(ValueError, match="needs encoder features"):
        methods["repa"](tokens, inputs())
    with pytest.raises(ValueError, match="needs the tokens of the EMA"):
        methods["sra"](tokens, inputs())
    with pytest.raises(ValueError, match="9 tokens, the network has 16"):
        methods["repa"](tokens, inputs(features=torch.randn(3, 9, 8)))
    with pytest.raises(ValueError, match="needs the width"):
        align.build({"repa": REPA(depth=1)}, SHAPE)
