"""What changes with the step: `until`, SRA's falling weight, the learning rate."""

import math

import pytest
import torch
from conftest import one_line
from safetensors.torch import load_file

from sra2cli.config import recipe
from sra2cli.config.methods import METHODS, SRA, SRA2
from sra2cli.config.settings import Train
from sra2cli.core.errors import SetupError
from sra2cli.training import engine
from sra2cli.training.engine import Engine, learning_rate
from sra2cli.training.train import train

TINY = ["model.depth=2", "model.width=24", "train.batch=32", "train.steps=6"]
TINY += ["log.tensorboard=false", "log.preview_every=0", "train.grad_clip=0.1"]  # at each step
SRA_METHOD = ["align.sra.depth=1", "align.sra.teacher_depth=2"]


@pytest.mark.parametrize("until", [5, "5", "2ep"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_off_from_its_step_or_epoch_on(method, until):
    settings = METHODS[method].settings(until=until, weight=0.5)
    epochs = until == "2ep"
    for step, epoch in [(0, 0), (4, 1), (4, 7), (5, 1), (900, 1), (5, 2), (900, 90)]:
        off = epoch >= 2 if epochs else step >= 5
        assert settings.factor(step, epoch) == (0 if off else 0.5), (step, epoch)
    assert METHODS[method].settings(until=None, weight=0.5).factor(10**9, 100) == 0.5


def test_until_0_is_off_from_the_start():
    assert SRA2(until=0).factor(0, 0) == SRA2(until="0ep").factor(0, 0) == 0


@pytest.mark.parametrize(
    ("given", "kept"), [("7", 7), ("'7'", "7"), ("80ep", "80ep"), ("null", None), ("1_000", 1000)]
)
def test_until_is_read_as_it_is_written(given, kept):
    assert recipe.load("digits-sra2", [f"align.sra2.until={given}"]).align["sra2"].until == kept


@pytest.mark.parametrize("bad", ["-1", "soon", "-3ep", "ep", "5 ep", "5.0ep", "1.5", "true", "[1]"])
def test_other_values_are_refused_in_one_sentence(bad):
    with pytest.raises(SetupError) as caught:
        recipe.load("digits-sra2", [f"align.sra2.until={bad}"])
    said = str(caught.value)
    assert said.startswith("'align.sra2.until' ") and said.count("align.sra2.until") == 1, said
    assert "of steps, as 100000, or of epochs, as 80ep" in said


def trained(store, out, *settings):
    """Network and EMA of a run of six steps in this process."""
    train(recipe.load("digits-sit", [*TINY, *settings]), store, out)
    folder = out / "checkpoints" / "step-00000006"
    return {n: load_file(folder / f"{n}.safetensors") for n in ("model", "ema")}


def assert_equal(a, b):
    for name, tensors in a.items():
        assert tensors.keys() == b[name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, b[name][key]), (name, key)


@pytest.fixture(scope="module")
def plain(digits_store, tmp_path_factory):
    """A run without any method."""
    return trained(digits_store, tmp_path_factory.mktemp("plain") / "run")


def unasked(*_):
    raise AssertionError("the teacher was asked")


@pytest.mark.parametrize(
    "method",
    [
        ["align.sra2.until=0"],
        [*SRA_METHOD, "align.sra.until=0ep"],
    ],
)
def test_a_method_that_is_off_leaves_the_network_to_the_bit(
    digits_store, tmp_path, monkeypatch, plain, method
):
    monkeypatch.setattr(engine, "tokens_of", unasked)
    assert_equal(plain, trained(digits_store, tmp_path / "run", *method))


@pytest.mark.parametrize("until", ["3", "1ep"])  # an epoch is three steps
def test_the_teacher_is_asked_until_then_alone(digits_store, tmp_path, monkeypatch, plain, until):
    asked, tokens = [], engine.tokens_of

    def counted(model, *arguments):
        asked.append(model)
        return tokens(model, *arguments)

    monkeypatch.setattr(engine, "tokens_of", counted)
    settings = [*SRA_METHOD, f"align.sra.until={until}", "log.every=1"]
    found = trained(digits_store, tmp_path / "run", *settings)
    assert len(asked) == 3
    assert any(not torch.equal(t, plain["model"][k]) for k, t in found["model"].items())
    from sra2cli.runs.run import Run

    rows = Run(tmp_path / "run").metrics()
    assert [row["step"] for row in rows if "sra" in row] == [1, 2, 3]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("epoch", [0, 99, 100, 499, 899, 1500])
def test_sras_weight_at_512_is_that_of_its_code(epoch):
    """2 * 0.1^(1 + (epoch - 99) / 800) after epoch 99."""
    expected = 2 * 0.1 ** (1 + max(0, epoch - 99) / 800)
    found = recipe.load("xl-sra-512").align["sra"].factor(0, epoch)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["xl-sra", "l-sra", "b-sra"])
@pytest.mark.parametrize("epoch", [0, 149, 150, 649, 1149])
def test_sras_weight_at_256_is_that_of_its_code(name, epoch):
    expected = 2 * 0.1 ** (1 + max(0, epoch - 149) / 1000)
    found = recipe.load(name).align["sra"].factor(0, epoch)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("b-sra", (3, 8)),
        ("l-sra", (6, 16)),
        ("xl-sra", (8, 20)),
        ("xl-sra-512", (8, 16)),
        ("b-sra-cosine", (3, 8)),
        ("xl-sra-cosine", (8, 20)),
        ("xl-sra-cosine-512", (8, 16)),
    ],
)
def test_sras_recipes_are_the_papers(name, blocks):
    (settings,) = recipe.load(name).align.values()
    assert isinstance(settings, SRA) and (settings.depth, settings.teacher_depth) == blocks
    if "cosine" in name:
        assert settings.objective == "cosine-over-tokens"
        assert [settings.factor(0, epoch) for epoch in (0, 99, 149, 5000)] == [0.5] * 4
    else:
        assert settings.objective == "smooth-l1" and settings.weight == 0.2


def test_the_learning_rate_in_closed_form():
    constant = Train(lr=0.5, steps=100)
    assert {learning_rate(constant, step) for step in (0, 50, 99, 10**6)} == {0.5}
    warm = Train(lr=0.5, steps=100, lr_warmup=10)
    assert [learning_rate(warm, step) for step in range(10)] == [
        pytest.approx(0.05 * (step + 1)) for step in range(10)
    ]
    assert learning_rate(warm, 10) == learning_rate(warm, 99) == 0.5
    falling = Train(lr=0.5, steps=100, lr_warmup=10, lr_decay="cosine")
    for step in range(10):
        assert learning_rate(falling, step) == learning_rate(warm, step)
    for step in range(10, 101):
        expected = 0.25 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert learning_rate(falling, step) == pytest.approx(expected, abs=1e-15)
    assert learning_rate(falling, 10) == 0.5
    assert learning_rate(falling, 55) == pytest.approx(0.25)
    assert learning_rate(falling, 100) == pytest.approx(0, abs=1e-15)
    assert learning_rate(Train(lr=0.5, steps=5, lr_warmup=5, lr_decay="cosine"), 4) == 0.5


def test_a_falling_rate_is_that_of_the_optimiser_and_fixes_the_last_step(
    run_sra2, digits_store, tmp_path, monkeypatch
):

    rates, optimize = [], Engine._optimize

    def noted(self, norm):
        rates.append(self.optimizer.param_groups[0]["lr"])
        optimize(self, norm)

    monkeypatch.setattr(Engine, "_optimize", noted)
    command = ["train", "--recipe", "digits-sit", "--data", digits_store, "--out", "run"]
    settings = [*TINY, "train.lr=0.01", "train.lr_warmup=2", "train.lr_decay=cosine"]
    command += [part for setting in settings for part in ("--set", setting)]
    assert run_sra2(*command).returncode == 0
    cosine = [0.005 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([0.005, 0.01, *cosine])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.*") if p.is_file()}
    line = one_line(run_sra2(*command, "--set", "train.steps=8"), 2)
    assert "differs in train.steps" in line
    line = one_line(run_sra2(*command, "--set", "train.lr_decay=constant"), 2)
    assert "differs in train.lr_decay" in line
    assert {p: p.stat().st_mtime_ns for p in before} == before
