"""sra2 ablate: cells that are ordinary runs, tables made from their results."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import one_line
from documented import check
from PIL import Image

from sra2cli.config import recipe
from sra2cli.core.errors import SetupError
from sra2cli.models.build import shape_of
from sra2cli.runs.run import Run
from sra2cli.tables import axes, method_rows, paper
from sra2cli.tables import render as tables

ROOT = Path(__file__).parent.parent
SMALL = ["train.steps=4", "train.batch=8", "log.save_every=2", "log.keep_every=2", "log.every=1"]
SETS = [part for setting in [*SMALL, "log.tensorboard=false"] for part in ("--set", setting)]


def test_rows_are_those_of_the_paper():
    base = recipe.load("b-sra2")
    depth = axes.rows("depth", base)
    assert [row.label for row in depth] == ["SiT (baseline)", "2", "3", "4", "6", "8"]
    assert depth[0].recipe.method == "none" and depth[0].paper["fid"] == 33.02
    assert [row.recipe.align["sra2"].depth for row in depth[1:]] == [2, 3, 4, 6, 8]
    assert [row.paper["fid"] for row in depth[1:]] == [28.89, 29.11, 29.51, 32.44, 36.20]
    windows = axes.rows("timesteps", base)
    assert [row.label for row in windows[1:]] == ["[0, 1]", "[0, 0.5]", "[0.5, 1]"]
    assert windows[3].recipe.align["sra2"].window == (0.5, 1.0)
    own = {axis: [row for row in axes.rows(axis, base) if row.own] for axis in axes.AXES}
    assert {row.cell for rows in own.values() for row in rows} == {"sra2"}  # trained once
    of_paper = {axis: rows[0].paper.get("fid") for axis, rows in own.items()}
    assert of_paper.pop("final") is None  # which head it is, the paper does not say
    assert set(of_paper.values()) == {28.89}
    assert [row.label for row in axes.rows("final", base)[1:]] == ["linear", "norm", "adaln"]
    every = {row.cell for axis in axes.AXES for row in axes.rows(axis, base)}
    assert len(every) == 1 + 1 + 4 + 2 + 3 + 2 + 1 + 2


def test_rows_follow_the_recipe():
    small = recipe.load("digits-sra2")
    assert [row.label for row in axes.rows("depth", small)[1:]] == ["1", "2", "3", "4"]
    weights = axes.rows("lambda", small)
    assert [row.label for row in weights[1:]] == ["4", "1", "0.1", "0.5"]
    assert [row.paper.get("fid") for row in weights[1:]] == [None, 28.89, 30.1, 29.5]
    chosen = axes.rows("timesteps", small, "0:0.25,[0.5, 1]")
    assert [row.recipe.align["sra2"].window for row in chosen[1:]] == [(0, 0.25), (0.5, 1)]
    both = axes.rows("depth", recipe.load("xl-repa-sra2"))
    assert both[0].label == "repa (baseline)" and both[0].recipe.method == "repa"
    assert not axes.rows("depth", recipe.load("b-repa"))[1].paper  # those are SRA 2's


def test_rows_of_methods():
    small = recipe.load("digits-sra2")
    found = {row.cell: row for row in method_rows.rows(small)}
    assert list(found)[:2] == ["sit", "sra2"] and found["sra2"].own
    assert not {"repa", "reg"} & set(found)  # the digits have no encoder's features
    layersync = found["layersync"].recipe.align["layersync"]
    assert (layersync.depth, layersync.target_depth) == (1, 2)  # 8 and 16 of 28, of 4 blocks
    assert found["self-transcendence"].taught_by == "sra2"
    assert found["contrastive"].recipe.train.contrastive == 0.05
    until = found["sra2-until"].recipe.align["sra2"]
    assert until.until == "1200" and until.weight == 4.0  # as the recipe otherwise
    both = found["sra2-layersync"]
    assert set(both.recipe.align) == {"sra2", "layersync"} and both.label == "SRA 2 + LayerSync"
    named = method_rows.rows(recipe.load("xl-sra2"), "repa, sra2+repa")
    assert [row.cell for row in named] == ["sit", "sra2", "repa", "sra2-repa"]
    assert named[2].recipe.align["repa"].depth == 8
    with pytest.raises(SetupError, match="not 'ripa'"):
        method_rows.rows(small, "layersync,ripa")
    for nothing in ("until", "contrastive+until"):
        with pytest.raises(SetupError, match=r"until is joined to a method, as sra2\+until"):
            method_rows.rows(small, nothing)


@pytest.mark.parametrize("name", ["emoji-mmdit-sra2", "coco-mmdit-sra2", "b-sra2", "xl-sra2"])
def test_rows_of_methods_fit_the_network(name):
    """An MMDiT of size S has 4 blocks, a SiT 12."""
    data = ["data.channels=4", "data.latent=8", "data.classes=0"]
    told = ["data.text_width=8", "data.text_tokens=4", "data.text_encoder=words"]
    base = recipe.load(name, [*data, *(told if "mmdit" in name else ())])
    blocks = shape_of(base).depth
    for row in method_rows.rows(base):
        for settings in row.recipe.align.values():
            depths = [v for k, v in vars(settings).items() if k.endswith("depth")]
            assert all(1 <= depth <= blocks for depth in depths), row.cell
            assert row.own or settings.depth < blocks


def test_paper_tables():
    assert paper.fid_after("B/2", "none", 400_000) == 33.0
    assert paper.fid_after("XL/2", "sra2", 4_000_000) == 6.6
    assert paper.fid_after("XL/2", "repa+sra2", 100_000) is None  # told as a gain alone


def test_tables_hold_means_and_what_is_missing():
    rows = axes.rows("depth", recipe.load("b-sra2"), "2,3")
    results = {"sit": [{"fid": 30.0}, {"fid": 34.0}], "sra2": [{"fid": 28.0}], "sra2-depth3": []}
    table = tables.of_axis("depth", "align depth", rows, results, ["fid"])
    table |= {"differs": ["train.steps: 10 (paper: 400000)"], "command": "sra2 ablate", "step": 10}
    table |= {"paper": paper.TABLE1, "missing": ["sra2-depth3-seed0"], "references": []}
    table["devices"] = ["a GPU"]
    assert table["rows"][0]["metrics"]["fid"]["std"] == pytest.approx(8**0.5)
    text = tables.markdown(table).splitlines()
    assert "| SiT (baseline) | 32.00 ± 2.83 | 33.02 |" in text
    assert "| 2 (recipe) (n=1) | 28.00 | 28.89 |" in text and "| 3 | – | 29.11 |" in text
    assert "- train.steps: 10 (paper: 400000)" in text
    assert "Not there yet: sra2-depth3-seed0." in text and paper.TABLE1 in "".join(text)


@pytest.fixture(scope="module")
def ablation(tmp_path_factory) -> tuple[Path, list[str]]:
    """Two cells, trained and judged."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    command = ["ablate", "depth", "--recipe", "digits-sra2", "--values", "2", "--num", "20"]
    command += ["--out", str(out), *SETS]
    process = sra2(*command, "--json")
    assert process.returncode == 0, process.stderr
    return out, command


def sra2(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sra2cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_cell_is_an_ordinary_run_and_tables_are_written(ablation):
    out, _ = ablation
    assert sorted(p.name for p in (out / "runs").iterdir()) == ["sit-seed0", "sra2-seed0"]
    run = Run(out / "runs" / "sra2-seed0")
    assert run.recipe.method == "sra2" and run.checkpoint().step == 4
    with (out / "depth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["depth"] for row in rows] == ["SiT (baseline)", "2"]
    assert rows[1]["paper_fid"] == "28.89" and float(rows[1]["fd-digits"]) > 0
    table = json.loads((out / "depth.json").read_text())
    assert table["rows"][1]["metrics"]["fd-digits"]["mean"] == float(rows[1]["fd-digits"])
    assert any("model.size: custom (paper: B/2)" in line for line in table["differs"])
    text = (out / "depth.md").read_text()
    assert "paper: FID ↓" in text and "- metric: fd-digits" in text
    with Image.open(out / "depth.png") as picture:
        assert picture.width > 600
    page = (out / "report.html").read_text()  # both cells, with what was found of them
    assert "sra2-seed0" in page and f"{float(rows[1]['fd-digits']):.4g}" in page


def test_run_again_it_only_reads(ablation, run_sra2, monkeypatch):
    out, command = ablation
    from sra2cli.tables import ablate

    monkeypatch.setattr(ablate, "run_cells", None)  # would be called if a cell were missing
    before = (out / "depth.md").read_text().splitlines()[1:]
    again = run_sra2(*command)
    assert again.returncode == 0, again.stderr
    assert (out / "depth.md").read_text().splitlines()[1:] == before
    meta = out / "runs" / "sra2-seed0" / "checkpoints" / "step-00000004" / "checkpoint.json"
    text = meta.read_text()
    meta.write_text(text.replace(json.loads(text)["files"]["ema.safetensors"], "0" * 32))
    with pytest.raises(TypeError):  # trained anew: its result is not believed
        run_sra2(*command)
    meta.write_text(text)


def test_methods_beside_each_other(ablation, run_sra2):
    """One with its teacher, which is trained before it; and what the trainings took."""
    out, command = ablation
    ask = ["ablate", "methods", *command[2:4], "--values", "self-transcendence"]
    done = run_sra2(*ask, "--num", "20", "--out", out, *SETS, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    check("ablate", found)
    rows = found["tables"]["methods"]["rows"]
    assert [row["label"] for row in rows] == ["SiT (baseline)", "digits-sra2", "Self-Transcendence"]
    taught = Run(out / "runs" / "self-transcendence-seed0")
    assert taught.about["teacher"]["path"] == str(out / "runs" / "sra2-seed0")
    assert all(row["costs"]["s/step"] > 0 and row["costs"]["peak GB"] > 0.1 for row in rows)
    header = (out / "methods.md").read_text().splitlines()[2]
    assert header.endswith("| s/step | peak GB |")


def test_iterations_of_runs_that_are_there(ablation, run_sra2):
    out, _ = ablation
    runs = [out / "runs" / name for name in ("sit-seed0", "sra2-seed0")]
    process = sra2("ablate", "iterations", *runs, "--num", 20, "--out", out / "more", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    check("ablate", found)
    (table,) = found["tables"].values()
    assert [row["step"] for row in table["rows"]] == [2, 4, 2, 4]
    last = json.loads((out / "depth.json").read_text())["rows"][1]["metrics"]["fd-digits"]
    assert table["rows"][3]["metrics"]["fd-digits"] == last
    assert (out / "more" / "iterations.png").exists()


def test_dry_run_lists_the_cells(run_sra2, ablation):
    _, command = ablation
    process = run_sra2(*command, "--values", "1,2", "--seeds", 2, "--dry-run", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    check("ablate --dry-run", found)
    left = {cell["cell"]: cell["steps_left"] for cell in found["cells"]}
    assert left == {
        "sit-seed0": 0,
        "sra2-depth1-seed0": 4,
        "sra2-seed0": 0,
        "sit-seed1": 4,
        "sra2-depth1-seed1": 4,
        "sra2-seed1": 4,
    }
    other = json.loads(run_sra2(*command, "--num", 21, "--dry-run", "--json").stdout)
    assert not any(cell["done"] for cell in other["cells"])  # judged otherwise
    refused = one_line(run_sra2(*command, "--set", "train.batch=16", "--dry-run"), 2)
    assert "trained with other settings (differs in train.batch)" in refused
    shards = []
    for shard in ("1/2", "2/2"):
        options = ["--values", "1,2", "--seeds", 2, "--shard", shard, "--dry-run", "--json"]
        found = json.loads(run_sra2(*command, *options).stdout)
        shards += [cell["cell"] for cell in found["cells"]]
    assert sorted(shards) == sorted(left)


def test_what_does_not_fit_is_refused(run_sra2, digits_store, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # without Inception's weights
    small, digits = ["--recipe", "digits-sra2"], ["--metrics", "fd-digits"]
    for arguments, said in [
        (["width"], "AXIS is one of"),
        (["depth"], "Give --ref"),
        (["depth", "--ref", "x.npz"], "no reference x.npz"),
        (["depth", "--metrics", "is"], "no Inception weights at"),
        (["depth", *small, "--set", "data.vae=null"], "Give --ref"),
        (["depth", *small, "--set", "data.vae=null", *digits], "--data: a latent store"),
        (["depth", *small, "--values", "7"], "blocks 1..4"),
        (["depth", *small, "--values", "x"], "--values of depth are as 1,2,4"),
        (["objective", *small, "--values", "l3"], "is one of"),
        (["methods", *small, "--values", "dispersive", "--set", "train.batch=24"], "whole groups"),
        (["all", *small, "--values", "1"], "--values is for one axis"),
        (["depth", *small, "--shard", "3/2"], "--shard is i/n"),
        (["depth", *small, "--seeds", "0"], "--seeds must be above 0"),
        (["depth", *small, "--step", "7"], "--step 7 is not kept"),
        (["iterations", *small, "--step", "7"], "--step 7 is not kept"),
        (["iterations", *small, "--values", "1"], "--values is for one axis"),
        (["iterations", "x", *small], "--recipe is for runs that are made"),
        (["depth", *small, "--jobs", 0], "--jobs must be above 0"),
        (["depth", *small, "--device", "gpu", "--dry-run"], "unknown device 'gpu'"),
        (["depth", "--recipe", "coco-mmdit-sra2", *digits], "is told captions: give --prompts"),
        (["depth", *small, "--prompts", "x"], "--prompts is for networks that are told captions"),
        (["depth", *small, "--vae", "nowhere", "--offline"], "cannot load the VAE 'nowhere'"),
        (["depth", *small, "--num", 1], "--num is at least 2"),
        (["depth", *small, "--solver", "eluer"], "--solver is one of"),
        (["depth", *small, "--preset", "sra3"], "--preset is one of"),
        (["depth", *small, "--steps", 0], "--steps 0 is too few"),
        (["depth", *small, "--set", "log.save_every=900", "--step", 1200], "is not kept"),
        (["depth", *small, "--step", "1200,2400"], "--step takes one step"),
        (["depth", "--recipe", "digits-sit"], "aligns with nothing"),
        (["depth", "x", *small], "runs are for"),
        (["iterations", "x"], "not a run folder"),
        (["iterations", "x@5"], "give runs without a step"),
        (["lambda", *small, "--values", "-1"], "must not be negative"),
        (["depth", *small, "--metrics", "fid"], "Give --ref"),
        (["depth", "--data", digits_store, *digits], "the recipe wants"),
    ]:
        assert said in one_line(run_sra2("ablate", *arguments), 2)


@pytest.mark.slow
def test_a_cell_that_fails_says_why_and_where(tmp_path, digits_store):
    out = tmp_path / "out"
    blocked = out / "runs" / "sit-seed0"
    blocked.mkdir(parents=True)
    (blocked / "mine.txt").write_text("not a run")
    command = ["ablate", "depth", "--recipe", "digits-sra2", "--values", "2", "--jobs", 1]
    process = sra2(*command, "--data", digits_store, "--num", 20, "--out", out, *SETS)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "error: sit-seed0: " in process.stderr and "sit-seed0.log" in process.stderr
    text = (out / "depth.md").read_text()  # the other cell went on
    assert "| SiT (baseline) | – |" in text and "Not there yet: sit-seed0." in text


def children_of(out: Path) -> list[str]:
    """Command lines of processes that work in a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(out) in line and int(file.parent.name) != os.getpid():
            found.append(line)
    return found


LONGER = ["--set", "train.steps=300", "--set", "log.save_every=50", "--set", "log.keep_every=300"]


@pytest.fixture(scope="module")
def longer(tmp_path_factory, ablation) -> tuple[Path, list[str]]:
    """Two cells that take seconds to train; their table, and the command without its --out."""
    out = tmp_path_factory.mktemp("ablation") / "longer"
    _, command = ablation
    command = [*command[: command.index("--out")], *SETS, *LONGER]
    assert sra2(*command, "--out", out).returncode == 0
    return out, command


def rows_of(out: Path) -> list[dict[str, object]]:
    return json.loads((out / "depth.json").read_text())["rows"]


def begin(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sra2cli", *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_at_many_points(tmp_path, longer):
    """kill -9 of the command alone: its processes end with it, and the numbers do not change."""
    whole, command = longer
    out, dice, hits = tmp_path / "killed", random.Random(0), 0
    for _ in range(8):
        process = begin(*command, "--out", out)
        time.sleep(4 + 8 * dice.random())
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 5
        while children_of(out) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not children_of(out)
    assert hits >= 3  # while there was something to lose
    assert sra2(*command, "--out", out).returncode == 0
    assert rows_of(out) == rows_of(whole)


@pytest.mark.slow
def test_ctrl_c_saves_and_goes_on(tmp_path, longer):
    whole, command = longer
    out = tmp_path / "stopped"
    process = begin(*command, "--out", out)
    metrics = out / "runs" / "sit-seed0" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text()) < 500:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in stderr
    assert not children_of(out)
    assert 0 < Run(out / "runs" / "sit-seed0").checkpoint().step < 300
    assert sra2(*command, "--out", out).returncode == 0
    assert rows_of(out) == rows_of(whole)
