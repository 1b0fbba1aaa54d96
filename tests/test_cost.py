"""sra2 cost: what is counted equals the golden file, what is measured is said to be so."""

import json
import weakref

import pytest
import torch
from conftest import GOLDEN, one_line
from documented import check

from sra2cli.config import recipe
from sra2cli.models.build import shape_of
from sra2cli.tables import cost, methods, paper, timing
from sra2cli.training.trial import make_store, trial

COSTS = json.loads((GOLDEN / "costs.json").read_text())


def test_counts_of_every_size_are_golden(run_sra2):
    for size in ("S/2", "B/2", "L/2", "XL/2"):
        process = run_sra2("cost", "--model", size, "--no-measure", "--json")
        assert process.returncode == 0, process.stderr
        rows = {row["method"]: row for row in json.loads(process.stdout)["counted"]}
        assert list(rows) == list(methods.methods())
        golden = COSTS[size]
        close = {"rel": 1e-3}
        assert rows["sit"]["gmacs"] == pytest.approx(golden["forward_gmacs"], **close)
        assert rows["sit"]["parameters"] == pytest.approx(golden["params"], **close)
        for method, percent in golden["overhead_percent"].items():
            assert rows[method]["gmacs_percent"] == pytest.approx(percent, **close), method
        teacher = golden["sra_teacher"]["params"]
        assert rows["sra"]["external_parameters"] == pytest.approx(teacher, **close)
        heads = golden["sra2_head_5"]["params"]
        assert rows["sra2"]["head_parameters"] == pytest.approx(heads, **close)
        assert rows["repa-stored"]["external_parameters"] == 0
        for method, key, part in [
            ("repa", "external_parameters", "dinov2_b14_224"),
            ("repa", "head_parameters", "repa_projector"),
            ("sra", "head_parameters", "sra_head"),
        ]:
            assert rows[method][key] == pytest.approx(golden[part]["params"], **close)


def test_the_papers_numbers_stand_beside_ours(run_sra2):
    process = run_sra2("cost", "--baseline", "sra", "--no-measure")
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if "SRA" in line and "%" in line]
    assert "+4.0%" in lines[0] and "+4%" in lines[0] and "18.6M" in lines[0]
    assert "+72.6%" in lines[1] and "+73%" in lines[1] and "480.9M" in lines[1]
    assert "REPA" not in process.stdout and "measured" not in process.stdout
    assert paper.cost("sra2")["latency_percent"] == 6 and paper.cost("nothing") == {}


def test_measured_in_turns_and_shown_again(run_sra2, tmp_path):
    measure = ["cost", "--baseline", "repa", "--model", "S/2", "--measured-model", "S/2"]
    process = run_sra2(*measure, "--batch", 1, "--rounds", 3, "--device", "cpu", "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    check("cost", result)
    found = result["measured"]
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == ["sit", "sra2", "repa", "repa-stored"]
    assert rows["sit"]["latency_percent"] == 0 == rows["sit"]["speed_percent"]
    assert rows["repa"]["latency_percent"] > 100  # its encoder is four times the network
    assert rows["repa"]["speed_percent"] < 0
    assert all(row["peak_memory_gb"] is None for row in rows.values())  # not measured on a CPU
    assert found["batch"] == 1 and "random weights" in found["repa_encoder"]
    assert {"before", "after"} == set(found["clocks"])
    assert result["file"] == "runs/cost/S2-256px-repa-stored-cpu.json"
    shown = run_sra2("cost", "--show", result["file"])
    assert shown.returncode == 0, shown.stderr
    assert "measured: S/2, 256 px, batch 1" in shown.stdout and "REPA" in shown.stdout


def test_an_order_that_is_not_that_of_the_macs_is_said():
    def row(method, macs, latency, spread):
        limits = [latency - spread, latency + spread]
        return {
            "method": method,
            "gmacs_percent": macs,
            "latency_percent": latency,
            "latency_range": limits,
        }

    rows = [row("sit", 0, 0, 0), row("sra2", 4, 6, 1), row("repa", 21, 26, 2)]
    assert cost.orders(rows) == []
    (line,) = cost.orders([*rows[:2], row("repa", 21, 3, 1)])
    assert "SRA 2 took longer than REPA" in line and "beyond the spread" in line
    (line,) = cost.orders([row("sra2", 4, 6, 5), row("repa", 21, 3, 1)])
    assert "within the spread" in line
    (line,) = cost.orders([row("sit", 0, 0, 0), row("repa-stored", 2, -0.5, 2)])
    assert "within the spread" in line


def test_what_does_not_fit_is_refused(run_sra2, tmp_path):
    assert "--model" in one_line(run_sra2("cost", "--model", "XXL/2", "--no-measure"), 2)
    assert "multiple of 16" in one_line(run_sra2("cost", "--resolution", 250, "--no-measure"), 2)
    assert "--baseline" in one_line(run_sra2("cost", "--baseline", "dit"), 2)
    useless = ["cost", "--no-measure", "--batch", 3]
    assert "--batch is for what is measured" in one_line(run_sra2(*useless), 2)
    assert "no file" in one_line(run_sra2("cost", "--show", "x.json"), 2)
    (tmp_path / "x.json").write_text("{}")
    assert "not a result" in one_line(run_sra2("cost", "--show", "x.json"), 1)


@pytest.mark.parametrize("model", ["S/2", "MMDiT-S/2", "MMDiT-B/2", "LightningDiT-XL/1"])
def test_blocks_of_methods_are_there_whatever_the_depth(model):
    """An MMDiT of size S has 4 blocks, a SiT 12."""
    for method in methods.methods_with("all", model):
        wanted = methods.method_recipe(model, method)
        for settings in wanted.align.values():
            depths = [v for k, v in vars(settings).items() if k.endswith("depth")]
            assert all(1 <= depth <= shape_of(wanted).depth for depth in depths), method


def test_an_engine_that_was_measured_is_gone(tmp_path, monkeypatch):
    """Compiled blocks refer to themselves; the memory of the next is measured without them."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda m, **o: compile_(m, backend="aot_eager", **o)
    )
    torch.compiler.reset()
    sizes = ["model.size=custom", "model.depth=2", "model.width=32", "model.heads=2"]
    sizes += ["model.patch=2", "data.latent=4", "train.batch=2", "train.compile=true"]
    wanted = recipe.load("b-sit", [*sizes, "train.precision=fp32"])
    store = make_store(tmp_path, wanted, 4, features=False)
    training, engine = trial(wanted, store, "cpu", encoder=False)
    steps = engine.steps_from(training.batches("cpu").from_step(0, 9))
    assert next(steps) == 1
    weights = [weakref.ref(p) for p in engine.objective.parameters()]
    weights += [weakref.ref(s["exp_avg"]) for s in engine.optimizer.state.values()]
    del steps, training, engine
    timing.release()
    assert not [weight for weight in weights if weight() is not None]
