"""MMDiT: golden numbers through what users call, its counts, and the empty caption on its ways."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import save_file

from sra2cli.config import recipe
from sra2cli.core.errors import SetupError
from sra2cli.diffusion import samplers
from sra2cli.models.checkpoints import export, load, load_model
from sra2cli.models.contract import Condition
from sra2cli.models.mmdit import MMDiT, MMDiTConfig
from sra2cli.training.counting import method_cost

COSTS = json.loads((GOLDEN / "costs_t2i.json").read_text())
SMALL = MMDiTConfig(depth=2, width=64, heads=2, latent=8, text_width=16, text_tokens=5)


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, check_dtype=False)


def within(found: float, expected: float, share: float = 1e-3) -> None:
    assert abs(found / expected - 1) <= share


@pytest.mark.parametrize("form", ["bare", "trained", "file"])
def test_golden_network(golden, tmp_path, form):
    g = golden("mmdit_repa.npz")
    state = source = g.state_dict()
    if form == "trained":
        zero = {k: torch.zeros_like(v) for k, v in state.items()}
        source = {"model": zero, "ema": state, "opt": {"state": {}}, "steps": 3}
    if form == "file":
        source = tmp_path / "ema.safetensors"
        save_file(state, source)
    found, tap, told = load(source), g.meta["tap"], Condition(text=g["context"])
    assert found.kind == "REPA" and "clip-vit-large-patch14" in found.assumed
    assert found.model.config.heads == g.meta["heads"]
    v, taps = found.model(g["x"], g["t"], told, taps=[tap])
    close(v, g["v"])
    close(taps[tap], g["tokens"])
    close(found.model.tokens(g["x"], g["t"], told, depth=tap), g["tokens"])


CASES = ["euler", "euler_cfg", "heun_cfg", "em", "em_cfg", "em_cfg_interval"]


@pytest.mark.parametrize("case", CASES)
def test_golden_samplers(golden, case):
    """The empty caption is told to the network, which holds it from then on."""
    g = golden("samplers_t2i.npz")
    model = load_model(golden("mmdit_repa.npz").state_dict())
    model.tell_null(g["null_context"])
    c, steps = g.meta["cases"][case], g.meta["num_steps"]
    interval = c.get("guidance_low", 0.0), c.get("guidance_high", 1.0)
    told = Condition(text=g["context"])
    v = samplers.guided(model, told, scale=c["cfg_scale"], interval=interval)
    if case.startswith("em"):
        noise = g[f"{case}/noise"]
        last = g.meta["last_step"]
        x0 = samplers.euler_maruyama(
            v, g["x1"], steps=steps, noise=lambda i: noise[i], last_step=last
        )
    else:
        x0 = (samplers.heun if c["heun"] else samplers.euler)(v, g["x1"], steps=steps)
    close(x0, g[f"{case}/x0"])


def test_counts():
    theirs = COSTS["MMDiT/2"]
    heads = {"sra2": "sra2_head_5", "repa": "repa_projector", "sra": "sra_head"}
    for method, head in heads.items():
        wanted = recipe.load(f"coco-mmdit-{method}", ["data.classes=0", "data.text_encoder=x"])
        cost = method_cost(wanted)
        within(cost.network.parameters, theirs["params"])
        within(cost.network.macs, theirs["forward_gmacs"] * 1e9)
        within(cost.heads[method].parameters, theirs[head]["params"])
        within(cost.heads[method].macs, theirs[head]["gmacs"] * 1e9)
    teacher = next(iter(cost.external.values()))
    within(teacher.macs, theirs["sra_teacher"][0]["gmacs"] * 1e9)
    within(teacher.parameters, theirs["sra_teacher"][0]["params"])


def told(count: int) -> Condition:
    return Condition(text=torch.randn(count, 5, 16))


def test_the_empty_caption_stands_for_none():
    model = MMDiT(SMALL).eval()
    null = torch.randn(5, 16)
    model.tell_null(null)
    some = told(3)
    assert torch.equal(model.null(some).text, null.expand(3, 5, 16))
    dropped = model.null(some, torch.tensor([True, False, True])).text
    assert torch.equal(dropped[1], some.text[1]) and torch.equal(dropped[2], null)


def test_image_does_not_see_the_order_of_the_caption():
    torch.manual_seed(0)
    model, some = MMDiT(SMALL).eval(), told(2)
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    turned = Condition(text=some.text.flip(1))
    close(model(x, t, some).v, model(x, t, turned).v)
    assert (model(x, t, some).v - model(x, t, told(2)).v).abs().max() > 1e-3


def test_an_export_holds_the_empty_caption(tmp_path):
    model = MMDiT(replace(SMALL, text_encoder="words"))
    model.tell_null(torch.randn(5, 16))
    export(model, tmp_path)
    found = load_model(tmp_path)
    assert torch.equal(found.null_text, model.null_text)
    assert found.config.text_encoder == "words"


def test_refused():
    state = MMDiT(SMALL).state_dict()
    lacking = {k: v for k, v in state.items() if k != "context_embedder.weight"}
    with pytest.raises(SetupError, match="context_embedder"):
        load_model(lacking, num_heads=2)
    other = MMDiT(replace(SMALL, depth=1)).state_dict()  # not as many blocks as heads of 32
    with pytest.raises(SetupError, match="--num-heads"):
        load_model({k: v for k, v in other.items() if k != "null_text"})
    with pytest.raises(ValueError, match="captions"):
        MMDiT(SMALL)(torch.randn(1, 4, 8, 8), torch.rand(1))
