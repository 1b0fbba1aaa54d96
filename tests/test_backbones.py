"""LightningDiT, REG, MaskDiT and SiT on VA-VAE latents: golden numbers through what users call."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN, Golden
from safetensors.torch import save_file

from sra2cli.align.sra2 import Sra2Alignment
from sra2cli.config import recipe
from sra2cli.config.methods import SRA2
from sra2cli.core.errors import SetupError
from sra2cli.data.batches import Batch
from sra2cli.diffusion import path, samplers
from sra2cli.encoders.first_stage import over_channels
from sra2cli.models import checkpoints
from sra2cli.models.build import BACKBONES, shape_of
from sra2cli.models.checkpoints import export, load, load_model
from sra2cli.models.contract import Condition
from sra2cli.models.families import MARKS
from sra2cli.sampling.draw import cast_once
from sra2cli.sampling.settings import Sampling
from sra2cli.tables.methods import method_recipe
from sra2cli.training.counting import method_cost, parameters
from sra2cli.training.objective import Objective

LIGHTNING = ("lightningdit.npz", "lightningdit_qknorm.npz")
COSTS = json.loads((GOLDEN / "costs_backbones.json").read_text())
SHAPES = json.loads((GOLDEN / "shapes_backbones.json").read_text())


def heads(g: Golden) -> int:
    return g.meta["arch"]["heads"]


def network(name: str):
    """A golden file's weights as one of our networks."""
    g = Golden(name)
    return load_model(g.state_dict(), num_heads=heads(g))


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, check_dtype=False)


@pytest.mark.parametrize("name", LIGHTNING)
@pytest.mark.parametrize("form", ["bare", "wrapped", "file", "exported"])
def test_golden_lightningdit(golden, tmp_path, name, form):
    """Its time runs the other way: v_ours(x, 1 - t, y) = -v, and taps are equal."""
    g = golden(name)
    state = source = g.state_dict()
    if form == "wrapped":
        zero = {k: torch.zeros_like(v) for k, v in state.items()}
        source = {
            "model": {f"module.{k}": v for k, v in zero.items()},
            "ema": {f"module.{k}": v for k, v in state.items()},
            "opt": {"state": {}},
            "config": {"model": {"model_type": "LightningDiT-XL/1"}},
        }
    if form == "file":
        source = tmp_path / "ema.safetensors"
        save_file(state, source)
    if form == "exported":
        export(load_model(state, num_heads=heads(g)), tmp_path)
        source = tmp_path
    found = load(source, num_heads=None if form == "exported" else heads(g))
    assert found.model.kind == "lightningdit"
    assert found.kind == ("sra2" if form == "exported" else "LightningDiT")
    tap = g.meta["tap"]
    v, taps = found.model(g["x"], 1 - g["t"], g["y"], taps=[tap])
    close(v, -g["v"])
    close(taps[tap], g["tokens"])
    close(found.model.tokens(g["x"], 1 - g["t"], g["y"], depth=tap), g["tokens"])


def objective_of(name: str, **settings) -> Objective:
    """The objective of a recipe whose network is a golden file's."""
    g, tree = Golden(name), recipe.load("digits-sit").to_dict()
    a = g.meta["arch"]
    tree["data"] = {"classes": a["classes"], "channels": a["ch"], "latent": a["size"]}
    size = {"depth": a["depth"], "width": a["hidden"], "heads": a["heads"], "patch": a["patch"]}
    model = network(name)
    tree["model"] = {"kind": model.kind, "size": "custom", **size}
    if model.shape.class_width:
        tree["model"]["class_width"] = model.shape.class_width
    for key, value in settings.items():
        tree[key] = {**tree[key], **value}
    objective = Objective(recipe.from_dict(tree), feature_width=model.shape.class_width or None)
    objective.network.load_state_dict(model.state_dict())
    return objective


def test_golden_lightning_times(golden):
    g = golden("lightning_loss.npz")
    uniform = torch.special.ndtr(-g["normal"])  # t ↔ 1 - t turns the normals round
    close(path.sample_times(uniform, "lognormal"), g["t"])
    shifted = g.meta["shifted"]
    found = path.sample_times(uniform, "lognormal", mean=-shifted["mean"], std=shifted["std"])
    close(found, 1 - g["t_peer_shifted"])


def test_golden_lightning_loss(golden):
    g = golden("lightning_loss.npz")
    objective = objective_of(g.meta["network"], train={"cosine_loss": 1.0})
    x_t, v = path.interpolate(g["z"], g["noise"], g["t"])
    close(x_t, g["x_t"])
    close(v, g["v"])
    for rows in (slice(None), slice(0, 1), slice(3, 7)):
        part = {k: g[k][rows] for k in ("z", "noise", "t", "y", "mse", "cos")}
        losses = objective(batch_of(part))
        close(losses["denoise"], part["mse"].mean())
        close(losses["cosine"], part["cos"].mean())
        close(losses["loss"], (part["mse"] + part["cos"]).mean())
    close(objective(batch_of({k: g[k] for k in ("z", "noise", "t", "y")}))["loss"], g["total"])


def batch_of(g, **more) -> Batch:
    noise = more.pop("noise", g["noise"])
    condition, t = Condition(y=g["y"]), g["t"]
    return Batch(g["z"], g["z"], noise, t, condition, teacher_uniform=t, **more)


SAMPLED = ("euler", "euler_shift", "euler_shift_cfg", "euler_shift_cfg_all")


@pytest.mark.parametrize("case", [*SAMPLED, "euler_cfg_no_interval", "euler_cfg_edge"])
def test_golden_lightning_sampler(golden, case):
    g = golden("lightning_sampler.npz")
    assert case in g.meta["ours"]
    ours, times = g.meta["ours"][case], []
    guided = samplers.guided(
        network(g.meta["network"]),
        g["y"],
        scale=ours["cfg"],
        interval=tuple(ours["interval"]),
        channels=ours["channels"],
    )

    def v(x, t, t_step):
        times.append(t)
        return guided(x, t, t_step)

    x0 = samplers.euler(v, g["x1"], steps=ours["steps"], shift=ours["shift"])
    close(x0, g[f"{case}/x0"], 2e-5)
    close(1 - torch.tensor(times), g[f"{case}/times"], 1e-6)


def test_golden_reg(golden):
    g = golden("reg.npz")
    found = load(g.state_dict(), num_heads=heads(g))
    model, tap = found.model, g.meta["tap"]
    assert found.kind == "REG" and model.shape.class_width == g.meta["zdim"]
    out = model(model.pack(g["x"], g["cls"]), g["t"], g["y"], taps=[tap])
    v, v_class = model.unpack(out.v)
    close(v, g["v"])
    close(v_class, g["cls_v"])
    close(torch.cat([out.class_taps[tap][:, None], out.taps[tap]], 1), g["tokens"])
    patches = model.tokens(model.pack(g["x"], g["cls"]), g["t"], g["y"], depth=tap)
    close(patches, g["tokens"][:, 1:])


def test_golden_reg_losses(golden):
    g = golden("reg.npz")
    align = {"depth": g.meta["tap"], "hidden": g.meta["projector_dim"]}  # weights: our defaults
    objective = objective_of("reg.npz", align={"reg": align})
    assert objective_of("reg.npz").class_weight == g.meta["cls_weight"]
    head = objective.methods()["reg"].head
    theirs = {k: v for k, v in g.state_dict().items() if k.startswith("projectors.0.")}
    head.load_state_dict({k.removeprefix("projectors.0."): v for k, v in theirs.items()})
    close(head(g["tokens"]), g["projected"])
    noise = objective.network.pack(g["noise"], g["cls_noise"])
    batch = batch_of(g, noise=noise, features=g["features"], class_feature=g["cls_clean"])
    x_t = path.interpolate(objective.network.pack(g["z"], g["cls_clean"]), noise, g["t"])[0]
    close(x_t, objective.network.pack(g["x"], g["cls"]))
    losses = objective(batch)
    close(losses["denoise"], g["denoise"].mean())
    close(losses["class"], g["denoise_cls"].mean())
    close(losses["reg"], g["align"])
    close(losses["loss"], g["total"])


@pytest.mark.parametrize("case", ["em", "em_cfg", "em_cfg_cls", "em_cfg_cls_off", "em_cosine"])
def test_golden_reg_sampler(golden, case):
    g = golden("reg_sampler.npz")
    c, model = g.meta["cases"][case], network(g.meta["network"])
    v = samplers.guided(
        model,
        g["y"],
        scale=c["cfg_scale"],
        interval=(c["guidance_low"], c["guidance_high"]),
        class_scale=c["cls_cfg_scale"],
    )
    draws = g[f"{case}/noise"], g[f"{case}/cls_noise"]
    state = samplers.euler_maruyama(
        v,
        model.pack(g["x1"], g["cls1"]),
        steps=g.meta["num_steps"],
        noise=lambda i: model.pack(*(draw[i] for draw in draws)),
        last_step=g.meta["last_step"],
        kind=c["path_type"],
    )
    x0, class_token = model.unpack(state)
    close(x0, g[f"{case}/x0"])
    close(class_token, g[f"{case}/cls0"])


def test_golden_sit_on_vavae_latents(golden):
    g = golden("sit_vavae.npz")
    found = load(g.state_dict(), num_heads=heads(g))
    v, taps = found.model(g["x"], g["t"], g["y"], taps=[g.meta["tap"]])
    close(v, g["v"])
    close(taps[g.meta["tap"]], g["tokens"])
    scale, shift = (over_channels(values, g["latents"]) for values in found.statistics)
    close((g["latents"] - shift) * scale, g["normalised"])


def maskdit_inputs(g):
    """(x_t, t, y) of a golden file that has sigma and one-hot labels, the null class as zeros."""
    sigma = g["sigma"].view(-1, 1, 1, 1)
    t, noised = g["sigma"] / (1 + g["sigma"]), g["z"] + sigma * g["noise"]
    told, null = g["onehot"].sum(1) > 0, torch.tensor(g.meta["arch"]["classes"])
    return noised / (1 + sigma), t, torch.where(told, g["onehot"].argmax(1), null)


def test_golden_maskdit(golden):
    g = golden("maskdit.npz")
    model, (x_t, t, y) = network("maskdit.npz"), maskdit_inputs(g)
    depth = model.shape.depth
    v, taps = model(x_t, t, y, taps=[depth])
    close(path.data(v, x_t, t), g["full/D"])
    close(taps[depth], g["full/encoder_tokens"])
    ends = model(x_t, torch.tensor([0.0, 1.0, 0.0, 1.0]), y).v
    assert ends.isfinite().all()


def test_golden_maskdit_loss(golden):
    """EDM's loss is ours, weighted: ((t² + ¼(1 - t)²) / ¼) (v̂ - v)²."""
    g = golden("maskdit.npz")
    x_t, t, y = maskdit_inputs(g)
    target = path.interpolate(g["z"], g["noise"], t)[1]
    errors = (network("maskdit.npz")(x_t, t, y).v - target).square().flatten(1).mean(1)
    close((t**2 + (1 - t) ** 2 / 4) * 4 * errors, g["full/loss"], 5e-5)


@pytest.mark.parametrize(("case", "scale"), [("heun", 1.0), ("heun_cfg", 1.5)])
def test_golden_maskdit_sampler(golden, case, scale):
    g = golden("maskdit.npz")
    v = samplers.guided(network("maskdit.npz"), g["sample_labels"], scale=scale)
    x0 = samplers.edm(v, g["x1"], steps=g.meta["num_steps"])
    close(x0, g[f"{case}/x0"], g.meta["agree_to_sampler"])


XL = {"LightningDiT-XL/1": "lightningdit", "REG SiT-XL/2": "reg", "MaskDiT-XL/2": "maskdit"}


@pytest.mark.parametrize("name", XL)
def test_published_sizes_open_by_their_keys_and_shapes(monkeypatch, name):
    """Every key and shape of the published XL networks, on the meta device, without --num-heads."""
    monkeypatch.setattr(checkpoints, "_fault", lambda tensor: None)  # meta tensors hold nothing
    monkeypatch.setattr("sra2cli.models.build.check_finite", lambda state, name: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
    with torch.device("meta"):
        state = {k: torch.empty(shape) for k, shape in SHAPES[name].items()}
        model = load_model(state)
    assert model.kind == XL[name]
    recomputed = ("feat_rope.", "projectors.", "mask_token")
    prefix = "model." if name.startswith("MaskDiT") else ""
    theirs = {k.removeprefix(prefix): tuple(s) for k, s in SHAPES[name].items()}
    ours = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert ours.keys() == {k for k in theirs if not k.startswith(recomputed)}
    table = "y_embedder.embedding_table.weight"  # MaskDiT's has no row for no label
    odd = {table} if name.startswith("MaskDiT") else set()
    assert {k: ours[k] for k in ours.keys() - odd} == {k: theirs[k] for k in ours.keys() - odd}
    assert ours[table] == (1001, 1152)


def cost_of(size: str, **align):
    """Of a size such as "LightningDiT-XL/1" or "REG SiT-B/2", with several methods at once."""
    plain = method_recipe(size.removeprefix("REG ").removeprefix("SiT-"), "sit").to_dict()
    if size.startswith("REG"):
        plain["model"]["kind"] = "reg"
    return method_cost(recipe.from_dict({**plain, "align": align}))


def near(value):
    return pytest.approx(value, rel=1e-3)


def assert_counts(pairs):
    for found, golden in pairs:
        assert found.parameters == near(golden["params"])
        assert found.macs == near(golden.get("gmacs", golden.get("forward_gmacs")) * 1e9)


PLAIN = [size for size in COSTS if size.startswith(("SiT-", "LightningDiT-"))]
REG = [size for size in COSTS if size.startswith("REG ")]


@pytest.mark.parametrize("size", PLAIN)
def test_golden_costs_on_vavae_latents(size):
    golden = COSTS[size]
    found = cost_of(size, sra2={}, repa={}, sra={"depth": 1, "teacher_depth": 1})
    short = Sra2Alignment(SRA2(layers=2), shape_of(method_recipe(size.removeprefix("SiT-"), "sit")))
    assert parameters(short) == near(golden["sra2_head_2"]["params"])
    network, heads, encoder = found.network, found.heads, found.external["dinov2_b14"]
    keys = {"sra2": "sra2_head_5", "repa": "repa_projector", "sra": "sra_head"}
    assert_counts([(network, golden), (encoder, golden["dinov2_b14_224"])])
    assert_counts([(heads[name], golden[key]) for name, key in keys.items()])
    extra = {"sra2": heads["sra2"].macs, "repa_stored": heads["repa"].macs}
    extra["repa"] = extra["repa_stored"] + encoder.macs
    for name, percent in golden["overhead_percent"].items():
        assert 100 * extra[name] / network.macs == near(percent), name


@pytest.mark.parametrize("size", REG)
def test_golden_costs_of_reg(size):
    golden, sit = COSTS[size], json.loads((GOLDEN / "costs.json").read_text())
    plain = sit[size.removeprefix("REG SiT-")]
    found = cost_of(size, reg={}, sra2={})
    assert_counts(
        [
            (found.network, golden),
            (found.heads["reg"], golden["projector_257"]),
            (found.heads["sra2"], golden["sra2_head_5_256"]),
            (found.external["dinov2_b14"], golden["dinov2_b14_224"]),
        ]
    )
    extra = found.network.parameters - plain["params"]
    assert extra == near(golden["class_token_params"])
    stored = found.network.macs + found.heads["reg"].macs
    trained = {"sampling": found.network.macs, "training_stored_features": stored}
    trained["training_with_encoder"] = stored + found.external["dinov2_b14"].macs
    for name, percent in golden["overhead_percent_over_sit"].items():
        assert 100 * (trained[name] / (plain["forward_gmacs"] * 1e9) - 1) == near(percent), name


def test_golden_costs_of_maskdit():
    golden = COSTS["MaskDiT-XL/2"]
    found = cost_of("MaskDiT-XL/2").network
    assert found.parameters == near(golden["params"])
    assert found.macs == near(golden["forward_gmacs"] * 1e9)


def test_every_size_named_in_the_golden_costs_is_met():
    known = {*PLAIN, *REG, "MaskDiT-XL/2"}
    assert set(COSTS) - known == {"VA-VAE f16d32", "notes"}  # the first stage: test_vae


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("lightningdit.npz", "sit", "holds a LightningDiT.*--kind lightningdit"),
        ("lightningdit_qknorm.npz", "repa", "holds a LightningDiT.*--kind lightningdit"),
        ("reg.npz", "sit", "holds a REG"),
        ("maskdit.npz", "lightningdit", "holds a MaskDiT"),
        ("sit_official.npz", "lightningdit", "holds a SiT"),
        ("sit_repa.npz", "lightningdit", "holds a REPA"),
        ("sit_sra.npz", "sit", "holds a SRA"),
    ],
)
def test_a_file_taken_for_what_it_is_not_is_one_line(golden, name, kind, says):
    g = golden(name)
    with pytest.raises(SetupError, match=says) as error:
        load(g.state_dict(), num_heads=4, kind=kind)
    assert "\n" not in str(error.value)


def test_our_own_file_is_not_taken_for_another_kind(golden, tmp_path):
    export(network("lightningdit.npz"), tmp_path)
    assert load(tmp_path, kind="lightningdit").model.kind == "lightningdit"
    with pytest.raises(SetupError, match="holds a LightningDiT"):
        load(tmp_path, kind="sit")


def test_lightningdit_without_its_options_is_said_by_the_user(golden):
    """Its keys are ours, its time is SiT's."""
    state = {k: v for k, v in golden("sit_repa.npz").state_dict().items() if "projectors" not in k}
    ours = load(state, num_heads=4, kind="repa").model
    theirs = load(state, num_heads=4, kind="lightningdit").model
    g = golden("sit_repa.npz")
    close(theirs(g["x"], 1 - g["t"], g["y"]).v, -ours(g["x"], g["t"], g["y"]).v)


@pytest.mark.parametrize("key", ["final_layer.linear_cls.weight", "final_layer.linear_cls.bias"])
def test_reg_without_its_class_head_is_one_line(golden, key):
    g = golden("reg.npz")
    state = {k: v for k, v in g.state_dict().items() if k != key}
    with pytest.raises(SetupError, match=f"REG.*no {key}") as error:
        load(state, num_heads=heads(g))
    assert "\n" not in str(error.value)


def test_every_family_is_a_backbone():
    assert {opener.__name__ for opener in MARKS.values()} == {
        "lightning",
        "reg",
        "masked",
        "captioned",
    }
    assert {"sit", "lightningdit", "reg", "maskdit", "mmdit"} <= BACKBONES.keys()
    assert math.isclose(samplers.shifted([0.5], 1 / 0.3)[0], 1 / 1.3)


def test_settings_of_a_class_token_are_for_networks_with_one(golden):
    model = load(golden("reg.npz").state_dict(), num_heads=heads(golden("reg.npz"))).model
    Sampling(cfg=2.0, class_cfg=1.5).check(model.shape)
    with pytest.raises(SetupError, match="--class-cfg needs guidance"):
        Sampling(class_cfg=1.5).check(model.shape)
    with pytest.raises(SetupError, match="for networks with a class token"):
        Sampling(cfg=2.0, class_cfg=1.5).check(replace(model.shape, class_width=0))
    tree = {"data": {"classes": 3, "channels": 4, "latent": 8}, "model": {"class_width": 24}}
    with pytest.raises(SetupError, match="'class_width' is for kind reg, not sit"):
        shape_of(recipe.from_dict(tree))
    tree["model"]["kind"] = "reg"
    assert shape_of(recipe.from_dict(tree)).class_width == 24


@pytest.mark.parametrize("name", ["sit_repa", "lightningdit", "reg", "maskdit", "mmdit_repa"])
def test_weights_cast_once_give_the_same_bits(name):
    """As autocast casts them at every call."""
    g = Golden(f"{name}.npz")
    count = g.meta["arch"]["heads"] if "arch" in g.meta else 4
    model = load_model(g.state_dict(), num_heads=count).eval().requires_grad_(False)
    x, t = torch.randn(1, *model.shape.state), torch.tensor([0.3])
    told = Condition(y=torch.tensor([2]))
    if name == "mmdit_repa":
        told = Condition(text=torch.randn(1, 7, model.shape.text[1]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = model(x, t, told).v
        cast_once(model, torch.bfloat16)
        assert any(p.dtype == torch.bfloat16 for p in model.parameters())
        assert torch.equal(model(x, t, told).v, before)
