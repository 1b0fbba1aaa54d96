"""Published and trained checkpoints of SiT, REPA and SRA, and our own, in any wrapping."""

import argparse
import pickle

import pytest
import torch

from sra2cli.core.errors import DataError, SetupError
from sra2cli.models import sit_checkpoints
from sra2cli.models.checkpoints import export, load, load_model
from sra2cli.models.sit import SiT, SiTConfig

OURS = SiTConfig(depth=2, width=48, heads=3, latent=8, classes=7)


@pytest.mark.parametrize(("name", "kind"), [("sit_repa.npz", "REPA"), ("sit_sra.npz", "SRA")])
def test_golden_repa_and_sra(golden, name, kind):
    g = golden(name)
    loaded = load(g.state_dict(), num_heads=4)
    assert loaded.kind == kind and loaded.model.config.classes == 1000
    v, _ = loaded.model(g["x"], g["t"], g["y"])
    torch.testing.assert_close(v, g["v"], rtol=0, atol=1e-5)


def test_golden_official_sit_is_turned_round(golden):
    g = golden("sit_official.npz")
    loaded = load(g.state_dict(), num_heads=4)
    assert loaded.kind == "SiT"
    v, _ = loaded.model(g["x"], 1 - g["t"], g["y"])
    torch.testing.assert_close(v, -g["v"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("top", ["bare", "ema", "trained"])
def test_any_wrapping(golden, tmp_path, prefix, top):
    g = golden("sit_repa.npz")
    state = {prefix + k: v for k, v in g.state_dict().items()}
    wrong = {k: torch.zeros_like(v) for k, v in state.items()}
    content = {
        "bare": state,
        "ema": {"ema": state},
        "trained": {
            "model": wrong,
            "ema": state,
            "opt": {"state": {}},
            "args": argparse.Namespace(lr=1e-4),
            "steps": 7,
        },
    }[top]
    torch.save(content, tmp_path / "last.pt")
    v, _ = load_model(tmp_path / "last.pt", num_heads=4)(g["x"], g["t"], g["y"])
    torch.testing.assert_close(v, g["v"], rtol=0, atol=1e-5)


def test_keys_wrapped_in_the_middle_by_regional_compilation(golden):
    g = golden("sit_repa.npz")
    state = {k.replace("blocks.1.", "blocks.1._orig_mod."): v for k, v in g.state_dict().items()}
    v, _ = load_model(state, num_heads=4)(g["x"], g["t"], g["y"])
    torch.testing.assert_close(v, g["v"], rtol=0, atol=1e-5)


def test_weights_choose_between_ema_and_model(golden):
    state = golden("sit_repa.npz").state_dict()
    zero = {k: torch.zeros_like(v) for k, v in state.items()}
    content = {"ema": state, "model": zero}
    assert load(content, num_heads=4).model.blocks[0].mlp.fc1.weight.abs().sum() > 0
    raw = load(content, num_heads=4, weights="model").model
    assert raw.blocks[0].mlp.fc1.weight.abs().sum() == 0


@pytest.mark.parametrize(
    "config",
    [
        OURS,
        SiTConfig(depth=2, width=48, heads=3, latent=8, classes=0, qk_norm=True),
        SiTConfig(depth=1, width=64, heads=2, latent=16, patch=1, channels=16, mlp_ratio=2.0),
    ],
)
def test_export_and_back(tmp_path, config):
    model = SiT(config)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    export(model, tmp_path, path="cosine")
    for source in (tmp_path, tmp_path / "model.safetensors"):  # the heads travel in the file
        loaded = load(source)
        assert loaded.kind == "sra2" and loaded.model.config == config
        assert loaded.path == "cosine"
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.model.state_dict()[key])
    assert load(dict(model.state_dict()), num_heads=config.heads).model.config == config


def test_sizes_of_the_table_know_their_heads():
    with torch.device("meta"):
        state = SiT(SiTConfig(depth=12, width=384, heads=6, classes=3)).state_dict()
    assert sit_checkpoints.infer_config(state, None, "x").heads == 6


def test_other_sizes_ask_for_their_heads():
    with pytest.raises(SetupError, match=r"depth 2 and width 48.*--num-heads"):
        load_model(SiT(OURS).state_dict())


def broken(change) -> dict[str, torch.Tensor]:
    state = dict(SiT(OURS).state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc1.bias"), r"does not fit a SiT: no blocks.1.mlp.fc1.bias"),
        (lambda s: s.update(extra=torch.zeros(3)), r"unknown extra \(3,\)"),
        (
            lambda s: s.update({"blocks.0.mlp.fc2.weight": torch.zeros(2, 2)}),
            r"blocks.0.mlp.fc2.weight is \(2, 2\) instead of \(48, 192\)",
        ),
        (lambda s: s.pop("x_embedder.proj.weight"), r"is not a SiT: it has no x_embedder"),
        (lambda s: s.update({"blocks.0.mlp.w12.weight": torch.zeros(1)}), "LightningDiT"),
        (lambda s: s.update({"wg_norm.weight": torch.zeros(1)}), "REG"),
        (lambda s: s.clear(), "holds no network"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(SetupError, match=message):
        load_model(broken(change), num_heads=3)


class Evil:
    def __reduce__(self):
        return (print, ("arbitrary code ran",))


def test_bad_files(tmp_path, capsys):
    path = tmp_path / "x.pt"
    with pytest.raises(SetupError, match="no checkpoint"):
        load_model(path)
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match=r"x\.pt"):
        load_model(path)
    torch.save(SiT(OURS).state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged"):
        load_model(path)
    torch.save({"model": Evil()}, path)
    with pytest.raises(DataError, match="cannot be opened safely"):
        load_model(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError):
        load_model(path)
    assert "arbitrary" not in capsys.readouterr().out
    torch.save([1], path)
    with pytest.raises(SetupError, match="holds a list"):
        load_model(path)
    bad = tmp_path / "x.safetensors"
    bad.write_bytes(b"\x10\0\0\0")
    with pytest.raises(DataError, match="damaged"):
        load_model(bad)
