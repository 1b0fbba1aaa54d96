"""Ctrl-C: one line, exit code 130, within a second, whatever the command is at."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sra2cli.config import recipe
from sra2cli.runs.run import Run
from sra2cli.training.judging import TrainingJudge
from sra2cli.training.train import train

ROOT = Path(__file__).parent.parent
EVALUATED = ["train.steps=6", "train.batch=8", "log.every=4", "log.save_every=5", "log.keep=9"]
EVALUATED += ["log.tensorboard=false", "log.preview_every=0", "log.eval_every=3"]
EVALUATED += ["log.eval_metrics=fd-digits", "log.eval_num=8", "log.eval_steps=2"]


def steps_and_sum(run: Path) -> tuple[list[int], float]:
    """Of the rows of losses: their steps, and the sum of the loss over all steps."""
    rows = Run(run).metrics()
    steps = [int(row["step"]) for row in rows]
    pairs = zip([0, *steps], steps, rows, strict=False)
    return steps, sum(row["loss"] * (step - before) for before, step, row in pairs)


def test_a_signal_breaks_an_evaluation_off(digits_store, tmp_path, monkeypatch):
    """The step is saved at once; going on evaluates it, and trains to the same bits."""
    wanted = recipe.load("digits-sit", EVALUATED)
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    train(wanted, digits_store, whole)

    def interrupted(self, model):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        raise AssertionError("a signal did not end it")

    monkeypatch.setattr(TrainingJudge, "look", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train(wanted, digits_store, out)
    assert stopped.value.code == 130
    assert Run(out).checkpoint().step == 3 and not Run(out).events("eval")
    assert steps_and_sum(out)[0] == [3]
    with pytest.raises(SystemExit):  # and again, before a step is trained
        train(wanted, digits_store, out)
    assert Run(out).checkpoint().step == 3
    monkeypatch.undo()
    train(wanted, digits_store, out)
    for kind in ("model", "ema"):
        a, b = (
            load_file(r / "checkpoints/step-00000006" / f"{kind}.safetensors") for r in (whole, out)
        )
        assert all(a[k].equal(b[k]) for k in a)
    first, second = Run(whole).events("eval"), Run(out).events("eval")
    assert first == second and [row["step"] for row in first] == [3, 6]
    (steps, total), (others, same) = steps_and_sum(whole), steps_and_sum(out)
    assert steps == [4, 5, 6] and others == [3, 4, 5, 6] and total == pytest.approx(same)


@pytest.mark.parametrize("after", [0.02, 0.04, 0.06, 0.08, 0.1, 0.13])
def test_ctrl_c_while_a_command_is_being_imported(after):
    """At some seconds of its processor time: one line at most, no traceback."""
    code = (
        "import runpy, signal, sys; sys.argv = ['sra2', 'recipes']\n"
        "signal.signal(signal.SIGPROF, signal.default_int_handler)\n"
        f"signal.setitimer(signal.ITIMER_PROF, {after})\n"
        "runpy.run_module('sra2cli', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130, (done.returncode, done.stderr)
    assert not done.stdout and len(done.stderr.splitlines()) <= 1, done.stderr


def seconds_of(pid: int) -> float:
    """Of a processor, that a process has used; other processes beside it do not count."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["extract", "train", "sample", "eval", "vae"])
def test_ctrl_c_answers_within_a_second(digits_folder, digits_store, tmp_path, name):
    """At random moments; in processor time, as other tests run beside this one."""
    run, out, dice = tmp_path / "run", tmp_path / "out", random.Random(name)
    if name in ("sample", "eval"):
        train(recipe.load("digits-sit", EVALUATED), digits_store, run)
    many = tmp_path / "many"  # as many as take a while
    for copy in range(40):
        shutil.copytree(digits_folder, many / str(copy))
    commands = {
        "extract": ["extract", many, "--out", out, "--vae", "digits", "--resolution", 32],
        "train": ["train", "--recipe", "digits-sit", "--data", digits_store, "--out", out],
        "sample": ["sample", run, "--num", 4000, "--out", out],
        "eval": ["eval", run, "--num", 4000, "--preset", "digits", "--out", out],
        "vae": ["vae", digits_folder, "--out", out, "--resolution", 32],
    }
    for _ in range(5):
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "sra2cli", *map(str, commands[name])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        wanted = dice.uniform(0.3, 6)
        while process.poll() is None and seconds_of(process.pid) < wanted:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        begun = used = seconds_of(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        while process.poll() is None:
            used = seconds_of(process.pid)
            time.sleep(0.01)
        said = process.communicate()[0]
        assert process.returncode == 130 and "Traceback" not in said, said
        assert "run the same command again" in said or wanted < 0.5, said
        assert used - begun < 1, (used - begun, said)
