"""--device mps, as far as it is seen without one: what is refused, and where float64 is kept."""

import pytest
import torch
from conftest import one_line

from sra2cli.cli.app import pick_device
from sra2cli.config import recipe
from sra2cli.core.devices import kept_on
from sra2cli.core.errors import SetupError
from sra2cli.core.processes import Group
from sra2cli.data.store import Store
from sra2cli.diffusion import samplers
from sra2cli.diffusion.guidance import guided
from sra2cli.encoders.vae import layout
from sra2cli.models.contract import Condition, Output
from sra2cli.training.engine import Engine, resolve_precision
from sra2cli.training.objective import Objective

MPS = torch.device("mps")


@pytest.fixture
def a_mac(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_it_is_taken_where_it_is_there(a_mac):
    assert pick_device("mps", apple=True) == "mps"
    assert pick_device(None, apple=True) in ("cpu", "cuda")  # only where it is asked for


def test_it_is_refused_where_it_is_not(run_sra2):
    train = ["train", "--recipe", "digits-sit", "--data", "a.h5"]
    assert "no Apple GPU here" in one_line(run_sra2(*train, "--device", "mps"), 2)


def test_other_commands_and_several_processes_are_refused(run_sra2, a_mac):
    line = one_line(run_sra2("figures", "pca", "run", "--device", "mps"), 2)
    assert "--device mps is for extract, train, sample and eval" in line
    train = ["train", "--recipe", "digits-sit", "--data", "a.h5", "--processes", 2]
    assert "one process" in one_line(run_sra2(*train, "--device", "mps"), 2)


def test_fp16_is_refused_and_auto_is_fp32_or_bf16():
    with pytest.raises(SetupError, match="fp16 is not for --device mps"):
        resolve_precision(recipe.load("digits-sit", ["train.precision=fp16"]), None, MPS)


def test_float64_is_kept_on_the_cpu():
    assert kept_on(MPS) == torch.device("cpu")
    assert kept_on(torch.device("cuda:1")) == torch.device("cuda:1")
    assert layout(MPS, torch.float32) is torch.contiguous_format


class Elsewhere:
    """A network on another device, "meta": takes float32 that was brought there; v is -x."""

    def __init__(self):
        self.seen: list[torch.Tensor] = []

    def __call__(self, x, times, condition, taps=()):
        assert x.device.type == times.device.type == "meta"
        assert x.dtype == times.dtype == torch.float32
        self.seen.append(x)
        return Output(torch.full(x.shape, -1.0), {})


@pytest.mark.parametrize("solver", [samplers.euler, samplers.heun, samplers.edm])
def test_samplers_bring_float32_to_the_network_and_keep_their_state(solver):
    model = Elsewhere()
    v = guided(model, Condition(), device=torch.device("meta"))
    state = solver(v, torch.zeros(2, 3, 4, 4), steps=4)
    assert state.device.type == "cpu" and state.dtype == torch.float64
    assert len(model.seen) in (4, 7) and state.isfinite().all()


def test_a_step_that_is_not_finite_touches_nothing(digits_store, monkeypatch):
    """Apple's fused AdamW does not read found_inf: the step is not made."""
    wanted = recipe.load("digits-sit", ["train.precision=fp32"])
    engine = Engine(wanted, Store(digits_store), Objective(wanted), Group())
    steps = []
    monkeypatch.setattr(engine.optimizer, "step", lambda: steps.append(engine.step))
    engine.device = MPS
    for norm in (1.0, float("nan"), 1.0):
        engine._optimize(torch.tensor(norm))
    assert len(steps) == 1  # and nothing after it
