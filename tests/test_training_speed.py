"""What makes a training step fast on a GPU, as far as a CPU can tell."""

import json
import time
from pathlib import Path

import pytest
import torch
from test_encoders import dinov2  # noqa: F401  (a fixture)
from torch import distributed
from torch._dynamo.utils import counters

from sra2cli.config import recipe
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import SetupError
from sra2cli.core.processes import Group
from sra2cli.data.batches import Batches, share
from sra2cli.encoders.first_stage import over_channels
from sra2cli.encoders.image import load_encoder
from sra2cli.models import compiling
from sra2cli.runs.run import Run
from sra2cli.tables.methods import method_recipe
from sra2cli.training import rates
from sra2cli.training.engine import resolve_precision
from sra2cli.training.memory import CARD, memory_of
from sra2cli.training.previews import drawn_in
from sra2cli.training.train import train
from sra2cli.training.trial import make_store, trial

QUICK = ["train.batch=8", "train.steps=4", "log.every=2", "log.tensorboard=false"]


@pytest.fixture
def graphs(monkeypatch):
    """How many graphs were traced and compiled so far; without the code of them, which takes
    most of the time."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda m, **o: compile_(m, backend="aot_eager", **o)
    )
    torch.compiler.reset()
    counters.clear()
    yield lambda: counters["aot_autograd"]["total"]
    torch.compiler.reset()


def test_previews_and_evaluations_compile_nothing_anew(digits_store, tmp_path, graphs, monkeypatch):
    """Two graphs: a block of the step, and one without gradient, of teacher and drawing alike, as
    32 images are what a CPU draws together."""
    seen = []
    update = "sra2cli.training.engine.Engine.update"
    from sra2cli.training.engine import Engine

    original = Engine.update

    def counted(self, raws):
        seen.append(graphs())
        original(self, raws)

    monkeypatch.setattr(update, counted)
    settings = ["train.batch=32", "train.steps=5", "train.compile=true", "log.preview_every=2"]
    settings += ["log.eval_every=2", "log.eval_num=40", "log.eval_steps=2"]
    settings += ["log.eval_metrics=fd-digits", "train.precision=bf16"]
    train(recipe.load("digits-sra", [*QUICK, *settings]), digits_store, tmp_path / "run")
    assert seen == [0, 2, 2, 2, 2] and graphs() == 2
    events = Run(tmp_path / "run").events("eval")
    assert [(e["step"], e["precision"]) for e in events] == [(2, "bf16"), (4, "bf16")]


def test_what_is_drawn_while_training_is_as_its_passes():
    settings = {
        "fp32": ["train.precision=fp32"],
        "tf32": ["train.precision=fp32", "train.tf32=true"],
        "bf16": ["train.precision=bf16", "train.tf32=true"],
        "fp16": ["train.precision=fp16"],
    }
    for expected, given in settings.items():
        assert drawn_in(recipe.load("digits-sit", given).train) == expected


def test_blocks_are_whole_under_ddp(tmp_path, graphs):
    """DDP's optimiser of graphs would cut each block that is larger than a bucket (1 MB here)."""
    sizes = {"size": "custom", "depth": 2, "width": 192, "heads": 3, "patch": 2}
    settings = [f"model.{k}={v}" for k, v in sizes.items()]
    settings += ["data.latent=4", "data.channels=2", "data.classes=3", "train.batch=2"]
    wanted = recipe.load("b-sit", [*settings, "train.compile=true", "train.precision=fp32"])
    store = make_store(tmp_path, wanted, 4, features=False)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        training, _ = trial(wanted, store, "cpu", encoder=False)
        engine = training.engine(training.objective(), Group(0, 2))
        engine.update([training.batches("cpu").raw(0, range(2))])
    finally:
        distributed.destroy_process_group()
    assert graphs() == 1


def test_an_encoder_is_compiled_layer_by_layer(dinov2, graphs):  # noqa: F811
    encoder = load_encoder(str(dinov2), side=4)
    images = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    before = encoder.tokens(images)
    encoder.compile_blocks()
    assert torch.equal(encoder.tokens(images), before)
    assert encoder.model.config.num_hidden_layers > 1 and graphs() == 1


def test_constants_are_brought_to_the_device_once(dinov2, monkeypatch):  # noqa: F811
    """What is made anew on a GPU waits for all that it is at."""
    encoder = load_encoder(str(dinov2), side=4)
    like = torch.zeros(1)
    scale = over_channels((1.0, 2.0), like)

    def refused(*_, **__):
        raise AssertionError("a constant is brought along again")

    monkeypatch.setattr(torch, "tensor", refused)
    encoder.tokens(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert over_channels((1.0, 2.0), like) is scale


def test_the_optimisers_state_is_mapped_from_its_file(digits_store, tmp_path):
    train(recipe.load("digits-sit", QUICK), digits_store, tmp_path / "run")
    checkpoint = Run(tmp_path / "run").checkpoint()
    state = checkpoint.training()
    assert str(checkpoint.path / "training.pt") in Path("/proc/self/maps").read_text()
    assert len(state["optimizer"]["state"]) > 9


def test_rows_say_how_long_a_step_waited_for_data(digits_store, tmp_path, monkeypatch):
    raw = Batches.raw

    def slow(self, *arguments):
        time.sleep(0.2)
        return raw(self, *arguments)

    monkeypatch.setattr(Batches, "raw", slow)
    train(recipe.load("digits-sit", QUICK), digits_store, tmp_path / "run")
    rows = Run(tmp_path / "run").metrics()
    assert len(rows) == 2 and all(0.05 < row["data_seconds"] < 5 for row in rows)


def test_shares_of_a_rate_say_of_which(digits_store, tmp_path, monkeypatch):
    """Of the maker's figure, or of what was measured: stubs for a GPU."""
    from sra2cli.training import log

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert rates.rate_of("cuda:0", "bf16") == rates.MatrixRate(989e12, measured=False)
    monkeypatch.setattr(rates, "matrix_rate", lambda *_: 5e12)
    unknown = rates.rate_of("cuda:0", "fp32")
    assert unknown == rates.MatrixRate(5e12, measured=True) and "reached here" in str(unknown)
    assert rates.rate_of("cpu", "bf16") is None
    assert rates.MatrixRate(1.0, measured=False).share == "mfu"
    monkeypatch.setattr(log, "rate_of", lambda *_: unknown)
    train(recipe.load("digits-sit", QUICK), digits_store, tmp_path / "run")
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    flops = log.flops_per_image(Run(tmp_path / "run").recipe, encoder=False)
    assert row["of_matrix_rate"] == pytest.approx(row["images_per_second"] * flops / 5e12)


FITTED = ["data.channels=4", "data.latent=8", "data.classes=10"]


def test_a_recipes_micro_batch_is_a_bound():
    """So that one that fits one GPU is no obstacle to many."""
    wanted = recipe.load("xl-sit")
    assert wanted.train.micro_batch == 128
    assert [len(r) for r in share(wanted, rank=0, processes=1)] == [128, 128]
    assert share(wanted, rank=7, processes=8) == [range(224, 256)]
    with pytest.raises(SetupError, match="micro-batch 128 does not divide the 192"):
        share(recipe.load("xl-sit", ["train.batch=192"]), rank=0, processes=1)


def kept_by_hooks(wanted: Recipe, folder: Path, micro: int) -> int:
    """Bytes that a real step keeps for its backward pass."""
    folder.mkdir()
    store = make_store(folder, wanted, 2 * micro, features=wanted.encoder is not None)
    training, engine = trial(wanted, store, "cpu", encoder=False)
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        engine.update([training.batches("cpu").raw(0, range(micro))])
    weights = {p.untyped_storage().data_ptr() for p in engine.objective.parameters()}
    return sum(t.untyped_storage().nbytes() for at, t in seen.items() if at not in weights)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["sra2", "repa", "sra"])
def test_memory_is_that_of_a_real_step(tmp_path, method, precision):
    settings = [*FITTED, f"train.precision={precision}", "train.batch=12", "train.compile=false"]
    wanted = recipe.load(f"digits-{method}", settings)
    few, many = (kept_by_hooks(wanted, tmp_path / str(n), n) for n in (4, 12))
    found = memory_of(wanted).image
    assert found == pytest.approx((many - few) / 8, rel=0.02)


@pytest.mark.parametrize("method", ["reg", "self-transcendence", "dispersive"])
def test_memory_knows_what_methods_are_given(method):
    """A class token, a frozen network that is held too, groups."""
    found = memory_of(method_recipe("S/2", method, resolution=64))
    plain = memory_of(method_recipe("S/2", "sit", resolution=64))
    assert found.image > plain.image and found.fixed >= plain.fixed


def test_the_largest_micro_batch_divides_and_fits():
    found = memory_of(recipe.load("digits-sit", FITTED))
    assert found.largest(96, 1e12) == 96
    assert found.largest(96, found.of(47)) == 32 and found.largest(96, found.of(48)) == 48
    assert found.largest(96, found.of(40), group=16) == 32
    assert found.largest(96, 1.0) is None


LARGE = ["l-reg", "xl-sit", "xl-sra", "xl-reg-sra2", "xl-repa-sra2", "xl-repa-sra2-512"]
LARGE += ["xl-sit-512", "xl-sra-512", "xl1-vavae-sra2", "lightningdit-xl1-sra2", "coco-mmdit-repa"]


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_recipes_fit_a_gpu_of_80_gb(name):
    wanted = recipe.load(name, ["train.precision=bf16"])
    micro = wanted.train.micro_batch
    assert micro == memory_of(wanted).largest(wanted.train.batch, CARD)


def test_a_dry_run_proposes_a_micro_batch(run_sra2, digits_store, monkeypatch):
    command = ["train", "--recipe", "digits-sra2", "--data", digits_store, "--dry-run", "--json"]
    command += ["--set", "train.precision=fp32"]
    done = run_sra2(*command)
    assert json.loads(done.stdout)["micro_batch_that_fits"] == 32 and "--set" not in done.stderr
    from sra2cli.training import plan

    small = memory_of(recipe.load("digits-sra2", [*FITTED, "train.precision=fp32"])).of(17)
    monkeypatch.setattr(plan, "CARD", small)
    done = run_sra2(*command)
    assert json.loads(done.stdout)["micro_batch_that_fits"] == 16
    assert "--set train.micro_batch=16" in done.stderr


def test_compiling_is_set_up_once_for_all(monkeypatch):
    """Blocks are compiled for each shape by itself, with DDP's cutting switched off."""
    made = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **o: made.append(o))
    torch._dynamo.config.optimize_ddp = True
    compiling.compile_each([torch.nn.Linear(1, 1)] * 2)
    assert made == [{"dynamic": False}] * 2 and torch._dynamo.config.optimize_ddp is False


@pytest.mark.parametrize(("half", "precision"), [(4e11, "bf16"), (1e11, "fp32")])
def test_auto_is_bf16_where_its_products_are_faster(monkeypatch, half, precision):
    """There are CPUs with the instructions that take twice as long with them."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    reached = {torch.bfloat16: half, torch.float32: 2e11}
    monkeypatch.setattr(rates, "matrix_rate", lambda _device, _side, dtype: reached[dtype])
    wanted = recipe.load("b-sit", ["train.precision=auto"])
    rates.fast_bf16.cache_clear()
    found = resolve_precision(wanted, None, torch.device("cpu"))
    rates.fast_bf16.cache_clear()
    assert found.train.precision == precision
