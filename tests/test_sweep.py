"""sra2 eval RUN: drawing and judging over settings, resumable."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import finished, one_line
from PIL import Image
from test_training_speed import graphs  # noqa: F401  (a fixture)

from sra2cli.config import recipe
from sra2cli.core.files import try_lock
from sra2cli.evaluation import sweep
from sra2cli.evaluation.judging import Judging
from sra2cli.sampling.opening import Options
from sra2cli.sampling.settings import Sampling
from sra2cli.training.train import train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(digits_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    settings = ["train.steps=4", "train.batch=8", "log.save_every=2", "log.tensorboard=false"]
    train(recipe.load("digits-sra2", settings), digits_store, out)
    return out


def test_a_run_is_drawn_and_judged(run_sra2, run):
    judge = ["eval", run, "--num", 12, "--steps", 3, "--metrics", "fd-digits", "--json"]
    result = json.loads(run_sra2(*judge).stdout)
    (row,) = result["rows"]
    assert row["count"] == 12 and row["how"]["step"] == 4 and result["plot"] is None
    name = "step0000004-em3-cfg1-n12-seed0"
    left = sorted(p.name for p in (run / "evals").glob(f"{name}*"))
    stem = Path(row["file"]).stem
    assert left == [f"{stem}.json", f"{stem}.png"]  # and no features
    assert run_sra2("sample", run, "--num", 12, "--steps", 3).returncode == 0
    alone = json.loads(
        run_sra2("eval", run / "samples" / name, "--metrics", "fd-digits", "--json").stdout
    )
    assert alone["fd-digits"] == row["fd-digits"] and alone["accuracy"] == row["accuracy"]


def test_a_sweep_is_a_table_and_a_plot_and_goes_on(run_sra2, run, monkeypatch):
    judge = ["eval", run, "--num", 12, "--steps", 3, "--cfg", "1,1.5,2", "--interval", "0:0.7"]
    first = run_sra2(*judge, "--metrics", "fd-digits", "--json")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert [row["value"] for row in result["rows"]] == [1.0, 1.5, 2.0]
    with Image.open(result["plot"]) as plot:
        assert plot.width > 300
    grids = {Path(row["file"]).with_name(Path(row["file"]).stem + ".png") for row in result["rows"]}
    assert len(grids) == 3 and all(grid.exists() for grid in grids)
    from sra2cli.evaluation import network_judge as streaming

    calls = []
    fill = streaming.Parts.fill
    monkeypatch.setattr(streaming.Parts, "fill", lambda *a: calls.append(a) or fill(*a))
    again = json.loads(run_sra2(*judge, "--metrics", "fd-digits", "--json").stdout)
    assert not calls and again["rows"] == result["rows"]
    more = [*judge[:-4], "--cfg", "1,1.5,2,3", "--interval", "0:0.7", "--metrics", "fd-digits"]
    assert run_sra2(*more).returncode == 0 and len(calls) == 1
    over = ["eval", run, "--num", 12, "--steps", 3, "--step", "2,4", "--metrics", "fd-digits"]
    found = json.loads(run_sra2(*over, "--json").stdout)
    assert [row["how"]["step"] for row in found["rows"]] == [2, 4]
    assert [row["value"] for row in found["rows"]] == [2.0, 4.0]


def test_what_does_not_fit_is_refused(run_sra2, run, digits_folder):
    assert "--cfg is for a run or checkpoint" in one_line(
        run_sra2("eval", digits_folder, "--cfg", "1"), 2
    )
    assert "--cfg takes values with commas" in one_line(run_sra2("eval", run, "--cfg", "x"), 2)
    assert "--save-stats is for samples" in one_line(
        run_sra2("eval", run, "--save-stats", "a.npz"), 2
    )
    few = ["--num", 4, "--metrics", "fd-digits"]
    before = set((run / "evals").glob("*"))
    refused = one_line(run_sra2("eval", run, "--step", "2,7", *few), 2)  # before 2 is drawn
    assert "no checkpoint of step 7" in refused and set((run / "evals").glob("*")) == before
    assert "give the step once" in one_line(run_sra2("eval", f"{run}@2", "--step", 4, *few), 2)
    assert "--cfg is a number from 0" in one_line(run_sra2("eval", run, "--cfg", "1,-1", *few), 2)
    assert "no run, checkpoint or samples at x" in one_line(run_sra2("eval", "x", *few), 2)
    assert "no checkpoint of step 7" in one_line(
        run_sra2("eval", run, "--step", "7", "--num", 4, "--metrics", "fd-digits"), 2
    )


def judge(run: Path, out: Path, *options: object) -> list[str]:
    draw = ["eval", run, "--num", 40, "--steps", 3, "--batch", 4, "--metrics", "fd-digits"]
    arguments = [*draw, "--seed", 3, "--out", out, *options]
    return [sys.executable, "-m", "sra2cli", *map(str, arguments)]


def result_in(out: Path) -> dict[str, object]:
    (file,) = out.glob("step0000004-em3-cfg1-n40-seed3-*.json")
    result = json.loads(file.read_text())
    return {k: v for k, v in result.items() if k not in ("environment", "file")}


@pytest.mark.parametrize(
    ("kills", "processes"), [(1, 1), *(pytest.param(8, n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_killed_while_judging(run, tmp_path, kills, processes):
    """kill -9 between and within parts, one process or two: the same result to the bit."""
    assert finished(judge(run, tmp_path / "whole")).returncode == 0
    out, dice = tmp_path / "killed", random.Random(0)
    command = judge(run, out, "--processes", processes)
    for _ in range(kills):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = len(list(out.glob("*.partial/*.safetensors")))
        while process.poll() is None:
            if len(list(out.glob("*.partial/*.safetensors"))) > before:
                break
            time.sleep(0.001)
        time.sleep(dice.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert finished(command).returncode == 0
    assert result_in(out) == result_in(tmp_path / "whole")
    assert not list(out.glob("*.partial"))
    pictures = [next(folder.glob("*seed3-*.png")) for folder in (out, tmp_path / "whole")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_one_evaluation_of_a_kind_at_a_time(run_sra2, run, tmp_path, monkeypatch):
    from sra2cli.core.files import hold
    from sra2cli.evaluation.network_judge import Parts

    folders = []

    def stopped(parts: Parts, *_: object) -> None:
        folders.append(parts.folder)
        sys.exit(9)

    monkeypatch.setattr(Parts, "fill", stopped)
    draw = ["eval", run, "--num", 8, "--steps", 2, "--out", tmp_path / "e"]
    assert run_sra2(*draw).returncode == 9
    monkeypatch.undo()
    with hold(folders[0] / ".lock", "not free"):  # as another process would hold it
        assert "another evaluation is filling" in one_line(run_sra2(*draw), 2)
    assert run_sra2(*draw).returncode == 0
    assert not folders[0].exists()


def test_the_folder_goes_while_it_is_held(run_sra2, run, tmp_path, monkeypatch):
    """Removed after the lock was let go, it could be the folder of the next evaluation."""
    from sra2cli.evaluation.network_judge import Parts

    remove, found = Parts.remove, []

    def looked_at(parts: Parts) -> None:
        with (parts.folder / ".lock").open("ab") as handle:
            found.append(try_lock(handle))
        remove(parts)

    monkeypatch.setattr(Parts, "remove", looked_at)
    draw = ["eval", run, "--num", 8, "--steps", 2, "--out", tmp_path / "e"]
    assert run_sra2(*draw).returncode == 0
    assert found == [False]


def test_a_damaged_part_is_named(run_sra2, run, tmp_path, monkeypatch):
    from sra2cli.evaluation import network_judge as streaming

    monkeypatch.setattr(streaming.Parts, "collect", lambda *a: sys.exit(9))
    draw = ["eval", run, "--num", 8, "--steps", 2, "--batch", 4, "--out", tmp_path / "e"]
    assert run_sra2(*draw).returncode == 9  # as if it had been killed there
    monkeypatch.undo()
    part = next((tmp_path / "e").glob("*.partial/00000004.safetensors"))
    part.write_bytes(part.read_bytes()[:-100])
    assert f"{part.name} cannot be read" in one_line(run_sra2(*draw), 1)
    part.unlink()
    assert run_sra2(*draw).returncode == 0


def test_a_sweep_compiles_two_graphs(run, graphs, tmp_path):  # noqa: F811
    """One with and one without guidance, whatever its checkpoints and scales."""
    wanted, swept = sweep.points(Sampling(steps=2), checkpoints=[2, 4], cfgs=[1.0, 1.5, 2.0])
    judging = Judging(metric="fd-digits")
    how = {"num": 40, "options": Options(compile=True), "judging": judging, "device": "cpu"}
    found = sweep.judge(run, wanted, swept=swept, out=tmp_path, **how)
    assert len(found["rows"]) == 6 and graphs() == 2
