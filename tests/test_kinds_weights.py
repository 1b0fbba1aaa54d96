"""Weights of others: complete, finite and of what they say they are, or refused by name."""

import json
import shutil
import zipfile
from argparse import Namespace
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from conftest import one_line
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification

from sra2cli.config import recipe
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import file_digest
from sra2cli.encoders.first_stage import to_uint8
from sra2cli.encoders.image import load_encoder
from sra2cli.encoders.vae import load_vae
from sra2cli.evaluation import scores
from sra2cli.evaluation.extractors import Collected, Extractor
from sra2cli.evaluation.judging import Judging
from sra2cli.evaluation.metrics import Statistics
from sra2cli.evaluation.network_judge import Parts
from sra2cli.evaluation.scores import Wanted
from sra2cli.models.checkpoints import export, load, metadata
from sra2cli.models.sit import SiT, SiTConfig
from sra2cli.runs.network import open_network
from sra2cli.training.assemble import start
from sra2cli.training.objective import Objective
from sra2cli.training.train import train

CONFIG = SiTConfig(depth=2, width=48, heads=3, latent=8, channels=16, classes=10)
SAMPLE = ["--num", 2, "--steps", 2, "--vae", "digits", "--num-heads", 3, "--out", "s", "--offline"]


def of_sit(**more):
    """What SiT's trainer keeps of its options."""
    args = {"model": "SiT-S/2", "path_type": "Linear", "prediction": "velocity"}
    return Namespace(**{**args, "loss_weight": None, "num_classes": 10, **more})


def of_repa(**more):
    args = {"model": "SiT-S/2", "path_type": "linear", "prediction": "v", "num_classes": 10}
    return Namespace(**{**args, **more})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = SiT(CONFIG)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return model.eval().requires_grad_(False)


@pytest.fixture
def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def velocity(model, t):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 16, 8, 8)).astype(np.float32))
    return model(x, torch.full((2,), t), torch.tensor([1, 10]))[0]


def doubled(state):
    """As SiT with learn_sigma: as many channels again, which it does not use."""
    state = dict(state)
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[key].view(4, 16, -1)
        more = torch.cat([rows, torch.ones_like(rows)], dim=1)
        state[key] = more.reshape(4 * 32, *state[key].shape[1:])
    return state


# What a checkpoint says of its training.


@pytest.mark.parametrize(
    ("args", "kind", "path", "turned"),
    [
        (of_repa(), "REPA", "linear", False),
        (of_repa(path_type="cosine"), "REPA", "cosine", False),
        ({"path-type": "cosine", "prediction": "v", "model": "SiT"}, "REPA", "cosine", False),
        (of_sit(), "SiT", "linear", True),
        (of_sit(path_type="GVP"), "SiT", "cosine", True),
        (of_sit(learn_sigma=False), "SiT", "linear", True),
    ],
)
def test_path_and_time_are_read_from_the_args(
    tmp_path, capsys, model, state, args, kind, path, turned
):
    torch.save({"model": state, "ema": state, "args": args}, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt", num_heads=3)
    assert (found.kind, found.path, found.unsure, found.assumed) == (kind, path, False, "")
    expected = -velocity(model, 0.3) if turned else velocity(model, 0.3)
    given = velocity(found.model, 0.7 if turned else 0.3)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_a_cosine_path_of_others_is_sampled_as_ours(run_sra2, tmp_path, model, state):
    torch.save({"ema": state, "args": of_repa(path_type="cosine")}, tmp_path / "repa.pt")
    export(model, tmp_path / "ours", path="cosine")
    pixels = []
    for source in ("repa.pt", "ours"):
        draw = ["sample", source, *SAMPLE[:-2], source + "-s", "--offline", "--npz", "--json"]
        process = run_sra2(*draw)
        assert process.returncode == 0, process.stderr
        assert json.loads(process.stdout)["path"] == "cosine"
        pixels.append(np.load(f"{source}-s/samples.npz")["arr_0"])
    assert np.array_equal(*pixels)


def test_sit_without_learned_sigma_is_sit(state, tmp_path):
    """The same network, with and without the channels that SiT does not use."""
    torch.save({"ema": state, "args": of_sit()}, tmp_path / "a.pt")
    torch.save({"ema": doubled(state), "args": of_sit()}, tmp_path / "b.pt")
    a, b = (load(tmp_path / name, num_heads=3) for name in ("a.pt", "b.pt"))
    assert a.kind == b.kind == "SiT"
    assert torch.equal(velocity(a.model, 0.3), velocity(b.model, 0.3))


def test_whose_time_it_is_where_the_file_does_not_say(tmp_path, capsys, model, state):
    torch.save({"ema": state}, tmp_path / "x.pt")
    found = open_network(tmp_path / "x.pt", num_heads=3)
    said = capsys.readouterr().err
    assert (
        said.startswith("warning: ") and "--kind sit if at t = 1, --kind repa if at t = 0" in said
    )
    assert found.about["kind"] == "sra2"
    chosen = {kind: load(tmp_path / "x.pt", num_heads=3, kind=kind) for kind in ("sit", "repa")}
    torch.testing.assert_close(
        velocity(chosen["sit"].model, 0.7), -velocity(chosen["repa"].model, 0.3), rtol=0, atol=1e-5
    )
    assert torch.equal(velocity(chosen["repa"].model, 0.3), velocity(model, 0.3))
    assert not any(loaded.unsure for loaded in chosen.values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (of_sit(prediction="noise"), "trained to predict noise"),
        (of_sit(prediction="score", path_type="VP"), "trained to predict score"),
        (of_sit(path_type="VP"), "trained on the path VP"),
        (of_repa(prediction="x0"), "trained to predict x0"),
        (of_repa(path_type=["a"]), "trained on the path"),
        (of_repa(model="DiT-S/2"), "trained as a DiT-S/2"),
        (of_repa(model="UViT-M"), "trained as a UViT-M"),
        (of_repa(num_classes=1000), "num_classes 1000, but its table of labels has 11 rows"),
        (of_sit(learn_sigma=True), "learn_sigma True"),
        (of_repa(qk_norm=True), "qk_norm True"),
    ],
)
def test_what_is_no_velocity_of_such_a_network_is_refused(run_sra2, tmp_path, state, args, message):
    torch.save({"ema": state, "args": args}, tmp_path / "x.pt")
    assert message in one_line(run_sra2("sample", "x.pt", *SAMPLE), 2)
    assert not Path("s").exists()


@pytest.mark.parametrize("change", ["heads", "doubled"])
def test_tensors_and_args_of_different_times(tmp_path, state, change):
    if change == "heads":
        content = {**state, "projectors.0.0.weight": torch.zeros(2, 2)}, of_sit()
    else:
        content = doubled(state), of_repa()
    torch.save({"ema": content[0], "args": content[1]}, tmp_path / "x.pt")
    with pytest.raises(SetupError, match="time runs the other way"):
        load(tmp_path / "x.pt", num_heads=3)


def test_a_path_of_ours_that_is_not_known(tmp_path, model, state):
    save_file(state, tmp_path / "x.safetensors", metadata(model, "GVP"))
    with pytest.raises(DataError, match="its path is 'GVP'"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("path", "told"), [("cosine", 1), ("linear", 0)])
def test_weights_of_another_path_are_said_to_be(tmp_path, capsys, path, told):
    data = ["data={classes: 10, channels: 16, latent: 8}"]
    objective = Objective(recipe.load("digits-sit", data))
    export(objective.network, tmp_path, path=path)
    start(objective, tmp_path, None)
    said = capsys.readouterr().err
    assert said.count("trained on the cosine path, this recipe trains on the linear one") == told


# What is no single file of tensors.


def test_an_averaged_model_opens(tmp_path, model, state):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save({"ema": averaged.state_dict(), "args": of_repa()}, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt", num_heads=3).model
    assert torch.equal(velocity(found, 0.3), velocity(model, 0.3))


@pytest.mark.parametrize(
    ("value", "name"), [(np.float64(1), "multiarray.scalar"), (PosixPath("x"), "pathlib.PosixPath")]
)
def test_a_class_in_a_pickle_is_named(tmp_path, state, value, name):
    torch.save({"ema": state, "args": of_sit(lr=value)}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=rf"holds a \S*{name}.*torch\.save it again with tensors"):
        load(tmp_path / "x.pt", num_heads=3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "is sharded"),
        (["pytorch_model-00001-of-00002.bin"], "is sharded"),
        ([".metadata", "__0_0.distcp"], r"\(DCP\).*dcp_to_torch x one\.pt"),
        (["pytorch_model_fsdp_0/.metadata"], r"dcp_to_torch x/pytorch_model_fsdp_0 one\.pt"),
        (["zero_to_fp32.py", "latest"], "DeepSpeed"),
        (["pytorch_model.bin", "optimizer.bin"], r"as x/optimizer\.bin"),
        (["notes.txt"], r"no model\.safetensors"),
    ],
)
def test_a_folder_is_said_to_be_what_it_is(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    for file in files:
        (tmp_path / "x" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / file).touch()
    with pytest.raises(SetupError, match=message):
        open_network(Path("x"))
    if "is sharded" in message:
        with pytest.raises(SetupError, match=message):
            open_network(Path("x") / files[0])


def test_the_command_that_joins_shards_does(tmp_path, monkeypatch, model, state):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    for i, part in enumerate((list(state)[:9], list(state)[9:]), start=1):
        save_file({k: state[k] for k in part}, f"x/model-0000{i}-of-00002.safetensors")
    with pytest.raises(SetupError) as caught:
        open_network(Path("x"))
    code = str(caught.value).partition('python -c "')[2].rstrip('"')
    exec(code, {})
    assert torch.equal(velocity(load("one.pt", num_heads=3).model, 0.3), velocity(model, 0.3))


# Damaged and hostile files: one line, and no memory for what is not there.


def put(key, tensor):
    return lambda state: state.update({key: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(7, torch.zeros(3)), "its tensors have no names, as 7"),
        (put("blocks.20000.mlp.fc1.weight", torch.zeros(3)), r"blocks\.20000, but no blocks\.2"),
        (put("blocks.x.a", torch.zeros(3)), r"has blocks\.x"),
        (put("blocks." + "9" * 5000, torch.zeros(3)), "has blocks.9999"),
        (put("pos_embed", torch.zeros(16)), r"pos_embed is \(16,\)"),
        (put("y_embedder.embedding_table.weight", torch.zeros(())), r"weight is \(\)"),
        (put("x_embedder.proj.weight", torch.zeros(48, 16, 2, 3)), "2x3"),
        (put("x_embedder.proj.weight", torch.zeros(48, 0, 2, 2)), r"\(48, 0, 2, 2\)"),
        (put("blocks.0.mlp.fc1.bias", torch.zeros(192, dtype=torch.int32)), "int32"),
        (put("blocks.0.mlp.fc1.bias", torch.zeros(192).to_sparse()), "sparse"),
        (put("blocks.0.mlp.fc1.bias", torch.zeros(1).expand(10**10)), "more than the file holds"),
        (put("blocks.0.mlp.fc1.bias", "text"), r"no blocks\.0\.mlp\.fc1\.bias"),
        (put("module.pos_embed", torch.zeros(3)), "pos_embed twice"),
    ],
)
def test_odd_keys_and_shapes(tmp_path, state, change, message):
    change(state)
    torch.save({"ema": state, "args": of_repa()}, tmp_path / "x.pt")
    with pytest.raises(SetupError, match=message) as caught:
        load(tmp_path / "x.pt", num_heads=3)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"depth": 20_000}, "tensors for 20000 blocks"),
        ({"width": 12 * 10**8}, r"x_embedder.proj.weight is .* instead of \(1200000000"),
        ({"latent": 10**6}, r"pos_embed is .* instead of \(1, 250000000000, 48\)"),
        ({"classes": 10**9}, r"instead of \(1000000001, 48\)"),
        ({"mlp_ratio": 1e300}, "cannot be built|fc1.weight"),
        ({"patch": 0}, "'patch' must be above 0"),
        ({"heads": "3"}, "'heads'"),
        ({"colour": 3}, "'colour'"),
        ([1], "cannot be built"),
    ],
)
def test_a_record_is_held_against_the_tensors_before_anything_is_built(
    tmp_path, monkeypatch, state, record, message
):
    monkeypatch.setattr(SiT, "__init__", lambda *_: pytest.fail("it was built"))
    about = {**CONFIG.to_dict(), **record} if isinstance(record, dict) else record
    save_file(state, tmp_path / "x.safetensors", {"sit": json.dumps(about)})
    with pytest.raises((SetupError, DataError), match=message):
        load(tmp_path / "x.safetensors")


def test_a_record_that_is_no_json(tmp_path, state):
    for text in ("{" * 10, "[" * 100_000, "9" * 5000):
        save_file(state, tmp_path / "x.safetensors", {"sit": text})
        with pytest.raises(DataError):
            load(tmp_path / "x.safetensors")


def test_a_file_that_unpacks_to_more_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("x/data.pkl", b"0" * 10_000_000)
    with pytest.raises(DataError, match="would unpack to 10,000,000 bytes"):
        load(tmp_path / "x.pt")


# Numbers that are not finite.


def test_a_network_that_is_not_finite_draws_nothing(run_sra2, tmp_path, model, state):
    state["blocks.0.attn.qkv.weight"][0, 0] = torch.nan
    torch.save({"ema": state, "args": of_repa()}, tmp_path / "nan.pt")
    line = one_line(run_sra2("sample", "nan.pt", *SAMPLE), 1)
    assert "nan.pt: blocks.0.attn.qkv.weight holds values that are not finite" in line
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["final_layer.linear.bias"] += 1e6  # more than float16 can hold
    torch.save({"ema": state, "args": of_repa()}, tmp_path / "big.pt")
    line = one_line(run_sra2("sample", "big.pt", *SAMPLE, "--precision", "fp16"), 1)
    assert "images 0..1 are not finite: numbers are too large for fp16: --precision fp32" in line
    assert not json.loads(Path("s/samples.json").read_text())["complete"]
    assert not list(Path("s").glob("0*.png"))


def test_no_black_image_of_what_is_not_finite():
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0, 0, 0] = torch.inf
    with pytest.raises(DataError, match="decoded images are not finite"):
        to_uint8(x)


def test_features_and_metrics_that_are_not_finite(tmp_path):
    bad = {"features": torch.full((2, 4), torch.nan)}
    extractor = Extractor("toy", "f", {"features": 4}, {}, lambda images: bad)
    need = Wanted(rows=frozenset({"features"}))
    parts = Parts(tmp_path / "e.json", 2, Judging(), extractor, need)
    parts.folder.mkdir()
    with pytest.raises(DataError, match=r"features of toy are not finite at images 0\.\.1"):
        parts.write(range(2), np.zeros((2, 8, 8, 3), np.uint8))
    assert not list(parts.folder.iterdir())  # a later run does not take it up
    huge = Statistics(np.full(4, 1e200), np.eye(4), 5)
    fake, real = (
        Collected(5, {"features": s}, {}) for s in (huge, Statistics(-huge.mean, np.eye(4), 5))
    )
    with pytest.raises(DataError, match="fd-digits is inf"):
        scores.values(("fd-digits",), fake, real)


# First stages and image encoders.


@pytest.fixture
def vae(tmp_path):
    """A small one; returns its folder and its weights, which a test may write again."""
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
        block_out_channels=[8],
        norm_num_groups=4,
        latent_channels=3,
    ).save_pretrained(tmp_path)
    return tmp_path, load_file(tmp_path / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.conv_in.bias"), r"1 missing \(decoder\.conv_in\.bias\)"),
        (lambda s: s.pop("encoder.conv_in.bias"), r"1 missing \(encoder\.conv_in\.bias\)"),
        (put("more", torch.zeros(1)), r"1 unexpected \(more\)"),
        (put("decoder.conv_in.bias", torch.zeros(9)), r"conv_in\.bias \(9,\) for \(8,\)"),
    ],
)
def test_a_vae_is_complete(vae, change, message):
    folder, weights = vae
    change(weights)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(SetupError, match=message) as caught:
        load_vae(str(folder))
    assert "meta tensor" not in str(caught.value)


def test_a_vae_is_finite(vae):
    folder, weights = vae
    weights["decoder.conv_in.bias"][0] = torch.nan
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"decoder\.conv_in\.bias holds values that are not finite"):
        load_vae(str(folder))


SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 56, "patch_size": 14,
}  # fmt: skip


@pytest.fixture
def dinov2(tmp_path):
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SMALL)).save_pretrained(tmp_path)
    return tmp_path, load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, "missing .*unexpected"),
        (lambda s: {k: v for k, v in s.items() if ".layer.1." not in k}, r"missing .*layer\.1"),
        (lambda s: {k: v for k, v in s.items() if k != "layernorm.bias"}, r"1 missing \(layern"),
        (lambda s: {**s, "encoder.layer.2.norm1.bias": torch.zeros(24)}, "1 unexpected"),
        (lambda s: {**s, "layernorm.bias": torch.zeros(9)}, r"layernorm\.bias \(9,\) for \(24,\)"),
    ],
)
def test_an_encoder_is_complete(dinov2, change, message):
    folder, weights = dinov2
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SetupError, match=f"weights of the encoder .*{message}"):
        load_encoder(str(folder), side=4)


def test_an_encoder_is_finite(dinov2):
    folder, weights = dinov2
    weights["layernorm.bias"][0] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"layernorm\.bias holds values that are not finite"):
        load_encoder(str(folder), side=4)


def test_what_an_encoder_does_not_use_may_be_missing_and_is_not_in_its_fingerprint(tmp_path):
    """A classifier has no pooler: transformers makes one of random values, which nothing reads."""
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SMALL)).save_pretrained(tmp_path)
    first, second = (load_encoder(str(tmp_path), side=4) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    assert torch.equal(first.features(image), second.features(image))


# A run that goes on: what its checkpoint holds is looked at, whatever its digests say.


@pytest.fixture(scope="module")
def begun(digits_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(recipe.load("digits-sit", RUN), digits_store, out)
    return out


RUN = ["train.steps=1", "train.batch=4", "log.tensorboard=false", "log.preview_every=0"]


def edited(checkpoint, file, change):
    """A file of a checkpoint, changed, and its digest with it."""
    path = checkpoint / file
    if path.suffix == ".pt":
        torch.save(change(torch.load(path, weights_only=True)), path)
    else:
        save_file(change(load_file(path)), path)
    meta = json.loads((checkpoint / "checkpoint.json").read_text())
    meta["files"][file] = file_digest(path)
    (checkpoint / "checkpoint.json").write_text(json.dumps(meta))


def poisoned(training):
    next(iter(training["optimizer"]["state"].values()))["exp_avg"].fill_(torch.nan)
    return training


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("ema.safetensors", lambda s: {k: v * torch.nan for k, v in s.items()}, "not finite"),
        ("model.safetensors", lambda s: {k: v[:1] for k, v in s.items()}, "does not fit this run"),
        ("training.pt", lambda _: [1], "is damaged"),
        ("training.pt", lambda t: {**t, "optimizer": {}}, "does not fit this run"),
        ("training.pt", poisoned, "exp_avg holds values that are not finite"),
    ],
)
def test_a_checkpoint_that_was_edited_is_not_resumed(
    begun, digits_store, tmp_path, file, change, message
):
    out = Path(shutil.copytree(begun, tmp_path / "run"))
    edited(out / "checkpoints" / "step-00000001", file, change)
    with pytest.raises(DataError, match=message) as caught:
        train(recipe.load("digits-sit", [*RUN, "train.steps=2"]), digits_store, out)
    assert "\n" not in str(caught.value)
