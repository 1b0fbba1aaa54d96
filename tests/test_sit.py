import pytest
import torch
from test_sampler import golden_model

from sra2cli.align.heads import mlp
from sra2cli.models.layers import sincos_positions
from sra2cli.models.sit import SIZES, SiT, SiTConfig, named_size

SMALL = {"depth": 2, "width": 48, "heads": 3, "latent": 8}


@pytest.mark.parametrize("name", ["sit_repa.npz", "sit_sra.npz"])
def test_golden_velocity_tokens_and_head(golden, name):
    g = golden(name)
    model, sd, tap = golden_model(golden, name), g.state_dict(), g.meta["tap"]
    with torch.no_grad():
        v, tokens = model(g["x"], g["t"], g["y"], taps=[tap])
        stopped = model.tokens(g["x"], g["t"], g["y"], depth=tap)
        if name == "sit_repa.npz":
            head, key = mlp(64, 48, 48, 24), "projected"
            head.load_state_dict(
                {k[13:]: v for k, v in sd.items() if k.startswith("projectors.0.")}
            )
        else:
            head, key = mlp(64, 128, 64), "head"
            renamed = {"linear1": "0", "linear2": "2"}
            own = {k: v for k, v in sd.items() if k.startswith("ap_head.")}
            head.load_state_dict(
                {f"{renamed[k.split('.')[1]]}.{k.split('.')[2]}": v for k, v in own.items()}
            )
        projected = head(tokens[tap])
    torch.testing.assert_close(v, g["v"], rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens[tap], g["tokens"], rtol=0, atol=1e-5)
    torch.testing.assert_close(stopped, tokens[tap], rtol=0, atol=0)
    torch.testing.assert_close(projected, g[key], rtol=0, atol=1e-5)


def test_golden_positions(golden):
    table = golden("sit_repa.npz").state_dict()["pos_embed"]
    torch.testing.assert_close(sincos_positions(64, 4), table, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_sizes_build(size, patch):
    with torch.device("meta"):
        model = SiT(SiTConfig(**named_size(f"{size}/{patch}")))
    assert len(model.blocks) == SIZES[size]["depth"]
    assert model.pos_embed.shape == (1, (32 // patch) ** 2, SIZES[size]["width"])


def test_starts_at_zero_and_gradient_reaches_the_output():
    model = SiT(SiTConfig(**SMALL))
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 1000])
    v, _ = model(x, t, y)
    assert torch.equal(v, torch.zeros_like(x))
    (v - x).square().mean().backward()
    assert model.final_layer.linear.weight.grad.abs().sum() > 0


def test_taps_change_nothing_and_unknown_ones_are_refused():
    model = randomised(SiT(SiTConfig(**SMALL)))
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 2])
    with torch.no_grad():
        v, none = model(x, t, y)
        tapped, tokens = model(x, t, y, taps={1, 2})
    assert torch.equal(v, tapped) and none == {} and set(tokens) == {1, 2}
    for depth in (0, 3):
        with pytest.raises(ValueError, match=r"blocks? of 1\.\.2"):
            model(x, t, y, taps=[depth])
        with pytest.raises(ValueError, match=r"blocks? of 1\.\.2"):
            model.tokens(x, t, y, depth=depth)


def test_tokens_runs_only_the_first_blocks():
    model = SiT(SiTConfig(**SMALL))
    ran = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.tokens(torch.randn(1, 4, 8, 8), torch.rand(1), torch.tensor([0]), depth=1)
    assert ran == [0]


@pytest.mark.parametrize(
    "extra",
    [
        {"classes": 0},
        {"classes": 7, "qk_norm": True},
        {"channels": 16, "patch": 1},
        {"latent": 16, "patch": 4},
        {"latent": 32, "patch": 8},
    ],
)
def test_any_shape(extra):
    config = SiTConfig(**{**SMALL, **extra})
    model = randomised(SiT(config))
    x = torch.randn(2, config.channels, config.latent, config.latent)
    y = torch.tensor([0, config.classes]) if config.classes else None
    v, tokens = model(x, torch.rand(2), y, taps=[2])
    assert v.shape == x.shape and v.isfinite().all() and v.abs().sum() > 0
    assert tokens[2].shape == (2, config.shape.tokens, config.width)


def test_patches_are_put_back_where_they_came_from():
    """unpatchify undoes the patch order of the embedding."""
    from sra2cli.models.layers import patchify, unpatchify

    x = torch.randn(3, 4, 8, 8)
    assert torch.equal(unpatchify(patchify(x, 2), 2), x)


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model = randomised(SiT(SiTConfig(**SMALL)))
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 2])
    grads = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(x, t, y)[0].square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SMALL, "patch": 3}, "does not divide"),
        ({**SMALL, "heads": 5}, "do not divide"),
        ({**SMALL, "width": 6, "heads": 3}, "multiple of 4"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SiTConfig(**settings)


@pytest.mark.parametrize("name", ["B/3", "M/2", "B", "B/x", ""])
def test_unknown_sizes_are_refused(name):
    with pytest.raises(ValueError, match="unknown size"):
        named_size(name)


def test_labels_are_needed_where_there_are_classes():
    with pytest.raises(ValueError, match="labels y are needed"):
        SiT(SiTConfig(**SMALL))(torch.randn(1, 4, 8, 8), torch.rand(1))


def randomised(model: SiT) -> SiT:
    """Initial weights are zero where it matters; make them all count."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return model
