"""sra2 runs: states, last loss and metric, what is damaged; of large files the end is read."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import one_line
from typer.testing import CliRunner

from sra2cli.cli import app
from sra2cli.core.files import hold
from sra2cli.runs.listing import list_runs
from sra2cli.runs.rows import lines_from_end

TRAIN = ["--recipe", "digits-sit", "--set", "train.batch=8", "--set", "log.tensorboard=false"]
EVALUATED = ["--set", "log.eval_every=2", "--set", "log.eval_metrics=fd-digits"]
EVALUATED += ["--set", "log.eval_num=8", "--set", "log.eval_steps=2"]


@pytest.fixture(scope="module")
def trained(digits_store, tmp_path_factory):
    """A run of three steps, evaluated at the second."""
    out = tmp_path_factory.mktemp("trained") / "a"
    settings = [*TRAIN, *EVALUATED, "--set", "train.steps=3", "--data", str(digits_store)]
    assert CliRunner().invoke(app, ["train", *settings, "--out", str(out)]).exit_code == 0
    return out


@pytest.fixture
def a_run(trained, run_sra2, tmp_path):
    """A copy of it, runs/a."""
    return shutil.copytree(trained, tmp_path / "runs" / "a")


def listed(run_sra2, *arguments: str) -> dict[str, dict]:
    found = run_sra2("runs", *arguments, "--json")
    assert found.returncode == 0
    return {row["run"]: row for row in json.loads(found.stdout)["runs"]}


def test_runs_says_how_far_each_is(run_sra2, a_run, digits_store, tmp_path):
    more = tmp_path / "runs" / "deeper" / "still" / "b"
    shutil.copytree(a_run, more)
    with (more / "recipe.yaml").open("r+") as file:
        text = file.read().replace("steps: 3\n", "steps: 5\n")
        file.seek(0)
        file.write(text)
    with hold(a_run / ".lock", ""):
        rows = listed(run_sra2)
        assert {run: row["state"] for run, row in rows.items()} == {
            "runs/a": "training",
            "runs/deeper/still/b": "stopped",
        }
    row = listed(run_sra2, "runs/a")["runs/a"]
    assert row["state"] == "finished"
    last = json.loads((a_run / "metrics.jsonl").read_text().splitlines()[-1])
    event = next(r for r in map(json.loads, (a_run / "metrics.jsonl").open()) if "event" in r)
    known = {"recipe": "digits-sit", "method": "none", "step": 3, "steps": 3, "saved": 3}
    known |= {"loss": last["loss"], "problem": None}
    assert {key: row[key] for key in known} == known
    assert row["metric"] == {
        "name": "fd-digits",
        "value": event["fd-digits"],
        "step": 2,
        "file": None,
    }
    text = run_sra2("runs").stdout
    assert "runs/deeper/still/b" in text and "3 of 5" in text and "at 2" in text


def test_the_younger_of_evaluations_counts(run_sra2, a_run):
    result = {"settings": {"metrics": ["fid", "is"]}, "fid": 3.5, "is": 9.0, "how": {"step": 1}}
    (a_run / "evals").mkdir()
    (a_run / "evals" / "table.json").write_text("[{}]")
    file = a_run / "evals" / "x.json"
    file.write_text(json.dumps(result))
    metrics = a_run / "metrics.jsonl"
    os.utime(file, (metrics.stat().st_mtime + 5,) * 2)
    found = {"name": "fid", "value": 3.5, "step": 1, "file": "runs/a/evals/x.json"}
    assert listed(run_sra2)["runs/a"]["metric"] == found
    os.utime(file, (metrics.stat().st_mtime - 5,) * 2)
    assert listed(run_sra2)["runs/a"]["metric"]["name"] == "fd-digits"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "recipe.yaml").unlink(), "no recipe file"),
        (lambda run: (run / "recipe.yaml").write_text("train: {stepz: 3}"), "unknown key"),
        (lambda run: (run / "recipe.yaml").write_bytes(b"\xff\xfe"), "not a YAML file"),
        (lambda run: (run / "run.json").unlink(), "run.json"),
        (lambda run: (run / "run.json").write_text("[1]"), "run.json"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\0" * 99 + b"\n"), "metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": "x"}\n'), "metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\0" * (5 << 20)), "metrics.jsonl"),
    ],
)
def test_a_damaged_run_is_a_row_that_says_so(run_sra2, a_run, tmp_path, damage, said):
    shutil.copytree(a_run, tmp_path / "runs" / "b")
    damage(a_run)
    rows = listed(run_sra2)
    assert rows["runs/b"]["state"] == "finished"
    assert rows["runs/a"]["state"] == "damaged" and said in rows["runs/a"]["problem"]
    shown = run_sra2("runs")
    assert shown.returncode == 0 and "damaged" in shown.stdout
    assert f"warning: runs/a is damaged: {rows['runs/a']['problem']}" in shown.stderr


def test_a_row_cut_off_by_a_kill_is_passed_over(run_sra2, a_run):
    with (a_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert listed(run_sra2)["runs/a"]["step"] == 3


def test_no_folder_and_no_runs(run_sra2, tmp_path):
    assert "no folder runs" in one_line(run_sra2("runs"), 2)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
    found = run_sra2("runs")
    assert found.returncode == 0 and "no runs in runs" in found.stderr and not found.stdout


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_lines_come_from_the_end_whole(tmp_path, monkeypatch, size):
    monkeypatch.setattr("sra2cli.runs.rows.BLOCK", size)
    file = tmp_path / "rows"
    for text in ("", "\n", "a", "a\n", "a\nbb\n\nccc\n", "first\nsecond, which is longer\ncut o"):
        file.write_bytes(text.encode())
        assert [line.decode() for line in lines_from_end(file)] == text.split("\n")[:-1][::-1]


def test_hundreds_of_runs_with_large_metrics_are_quick(a_run, tmp_path):
    """200 runs of 100,000 rows: not more than their ends is read."""
    row = json.dumps({"step": 100_000, "loss": 1.0, "text": 150 * "x"}) + "\n"
    (tmp_path / "large").write_text(100_000 * row)
    (a_run / "recipe.yaml").write_text("train: {steps: 100000}")
    for number in range(200):
        copy = tmp_path / "many" / str(number)
        copy.mkdir(parents=True)
        for name in ("recipe.yaml", "run.json"):
            os.link(a_run / name, copy / name)
        os.link(tmp_path / "large", copy / "metrics.jsonl")
    begun = time.process_time()
    rows = list_runs(tmp_path / "many")
    assert time.process_time() - begun < 3
    assert len(rows) == 200 and all(row.step == 100_000 and row.loss == 1.0 for row in rows)


def test_runs_imports_no_torch(a_run):
    code = (
        "import sys; from typer.testing import CliRunner; from sra2cli.cli import app;"
        "assert CliRunner().invoke(app, ['runs', '--json']).exit_code == 0;"
        "heavy = {'torch', 'numpy', 'h5py'} & set(sys.modules); assert not heavy, heavy"
    )
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=a_run.parents[1], env=here)
    assert done.returncode == 0
