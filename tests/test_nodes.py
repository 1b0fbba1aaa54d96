"""Two machines, launched by the very commands of docs/launching.md, on the loopback address."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import finished
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
LAUNCHERS = ("torchrun", "accelerate")
STEPS = 240
SETTINGS = ["train.batch=8", "train.lr=1e-4", "log.every=5", "log.save_every=40", "log.keep=9"]
SETTINGS += [f"train.steps={STEPS}", "log.tensorboard=false"]
pytestmark = pytest.mark.slow


def printed(launcher: str, rank: int, port: int) -> list[str]:
    """What the page says to launch with, up to the name of the module."""
    page = (ROOT / "docs" / "launching.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    block = next(b for b in blocks if b.startswith(launcher) and "RANK" in b)
    words = shlex.split(block.replace("\\\n", " "))
    words = words[: words.index("sra2cli") + 1]
    here = {"RANK": str(rank), "FIRST": "127.0.0.1", "29500": str(port), "8": "1", "16": "2"}
    assert {"RANK", "FIRST", "29500"} <= set(words)
    program = Path(sys.executable).with_name(words[0])
    return [str(program), *(here.get(word, word) for word in words[1:])]


class Nodes:
    """One command on two nodes of one process each; `log` is what a node wrote."""

    def __init__(self, launcher: str, folder: Path, *commands: list[str], hook: Path | None = None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.logs = [folder / f"{launcher}-{port}-{rank}.log" for rank in (0, 1)]
        self.nodes = []
        for rank, log in enumerate(self.logs):
            path = os.pathsep.join(str(p) for p in (hook, ROOT) if p)
            with log.open("w") as file:
                self.nodes.append(
                    subprocess.Popen(
                        [*printed(launcher, rank, port), *commands[rank % len(commands)]],
                        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
                        stdout=file,
                        stderr=file,
                        start_new_session=True,
                    )
                )

    def workers(self, rank: int) -> list[int]:
        pid = self.nodes[rank].pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def kill(self, rank: int) -> None:
        """As if the machine had lost its power."""
        for pid in (self.nodes[rank].pid, *self.workers(rank)):
            os.kill(pid, signal.SIGKILL)

    def end(self, seconds: float = 120) -> list[int]:
        """Exit codes of the launchers."""
        deadline = time.monotonic() + seconds
        return [node.wait(max(0.1, deadline - time.monotonic())) for node in self.nodes]

    def log(self, rank: int) -> str:
        return self.logs[rank].read_text()

    def said(self, rank: int) -> list[str]:
        """Our own error lines, and with them any traceback of ours."""
        ours = [line for line in self.log(rank).splitlines() if line.startswith("error: ")]
        assert f'File "{ROOT}/sra2cli' not in self.log(rank), self.log(rank)
        return ours


@contextmanager
def nodes(launcher: str, folder: Path, *commands: list[str], hook: Path | None = None):
    running = Nodes(launcher, folder, *commands, hook=hook)
    try:
        yield running
    finally:
        for node in running.nodes:
            node.kill()
            node.wait()


def train(store: Path, out: Path) -> list[str]:
    sets = [part for s in SETTINGS for part in ("--set", s)]
    command = ["train", "--recipe", "digits-sit", "--data", str(store), "--out", str(out)]
    return [*command, "--device", "cpu", *sets]


def weights(out: Path) -> dict[str, torch.Tensor]:
    folder = out / "checkpoints" / f"step-{STEPS:08d}"
    found = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "ema")}
    return {f"{name}.{key}": t for name, tensors in found.items() for key, t in tensors.items()}


def steps(out: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in out.glob("checkpoints/step-*"))


def until(there, running: Nodes) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        for rank, node in enumerate(running.nodes):
            assert node.poll() is None, running.log(rank)
        time.sleep(0.005)


def same_bits(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def whole(digits_store, tmp_path_factory) -> Iterator[Path]:
    """The run of two nodes by torchrun that nothing happened to."""
    folder = tmp_path_factory.mktemp("nodes")
    with nodes("torchrun", folder, train(digits_store, folder / "run")) as running:
        assert running.end() == [0, 0], running.log(0) + running.log(1)
    return folder / "run"


def test_two_nodes_train_as_one_process(whole, digits_store, tmp_path):
    done = finished([sys.executable, "-m", "sra2cli", *train(digits_store, tmp_path / "one")])
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(whole)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert (tensor - two[key]).abs().max() < 1e-4, key


@pytest.mark.parametrize(("launcher", "lost", "asked"), [("torchrun", 1, 0), ("accelerate", 0, 1)])
def test_a_node_is_lost_another_asked_to_stop_and_the_bits_are_the_same(
    whole, digits_store, tmp_path, launcher, lost, asked
):
    out = tmp_path / "run"
    command = train(digits_store, out)
    with nodes(launcher, tmp_path, command) as running:
        until(lambda: steps(out), running)
        running.kill(lost)
        assert running.end(60)[1 - lost] == 1
        (line,) = running.said(1 - lost)
        assert "another process of this command ended" in line, line
    assert STEPS not in steps(out)
    with nodes(launcher, tmp_path, command) as running:
        until(lambda: len(running.workers(0)) and "resuming" in running.log(0), running)
        begun = steps(out)
        until(lambda: steps(out) > begun, running)
        running.nodes[asked].send_signal(signal.SIGTERM)
        running.end(60)
        stopped = re.search(r"stopped at step (\d+), saved in", running.log(0))
        assert stopped and not running.said(0) and not running.said(1), running.log(0)
        assert steps(out)[-1] == int(stopped[1]) < STEPS
    with nodes(launcher, tmp_path, command) as running:
        assert running.end() == [0, 0], running.log(0) + running.log(1)
    assert same_bits(whole, out)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_do_not_outlive_their_launchers(digits_store, tmp_path, launcher, monkeypatch):
    """Killed alone; the next start is neither refused nor does it wait. Nor does it wait longer
    than it is told to for a node that says nothing more."""
    monkeypatch.setenv("SRA2_TIMEOUT", "30")
    out = tmp_path / "run"
    with nodes(launcher, tmp_path, train(digits_store, out)) as running:
        until(lambda: steps(out), running)
        workers = running.workers(0) + running.workers(1)
        for node in running.nodes:
            node.kill()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/fd/0").exists() for pid in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with nodes(launcher, tmp_path, train(digits_store, out)) as running:
        begun = steps(out)
        until(lambda: steps(out) > begun, running)
        for pid in running.workers(1):
            os.kill(pid, signal.SIGSTOP)
        assert running.nodes[0].wait(90) == 1
        (line,) = running.said(0)
        assert "ended or does not answer" in line, line


def test_nodes_that_see_other_folders_or_settings_are_refused(digits_store, tmp_path):
    commands = [train(digits_store, tmp_path / name) for name in ("a", "b")]
    with nodes("torchrun", tmp_path, *commands) as running:
        assert running.end() == [1, 1]
        for rank in (0, 1):
            (line,) = running.said(rank)
            assert f"process 1 writes to {tmp_path}/b and does not see" in line
    assert not list(tmp_path.glob("*/*"))
    commands = [train(digits_store, tmp_path / "a"), train(digits_store, tmp_path / "a")]
    commands[1] += ["--set", "train.lr=1e-3"]
    with nodes("accelerate", tmp_path, *commands) as running:
        assert running.end() == [1, 1]
        for rank in (0, 1):
            (line,) = running.said(rank)
            assert "process 1 has other settings or data than the first one" in line
    assert not list(tmp_path.glob("*/*"))


HOOK = """
import os, sys

def note(event, args):
    if event == "open" and str(args[0]).endswith((".png", ".partial")):
        with open({log!r} + os.environ["RANK"], "a") as f:
            print(args[0], file=f)

if "RANK" in os.environ:
    sys.addaudithook(note)
"""


def test_sample_extract_and_eval_share_their_work(whole, digits_folder, digits_store, tmp_path):
    """Each of 96, 16 and 16 images is read or drawn by one node, and the results are the same."""
    log = tmp_path / "opened."
    (tmp_path / "sitecustomize.py").write_text(HOOK.format(log=str(log)))
    sampling = ["--steps", "4", "--device", "cpu", "--batch", "4"]
    samples, extracted = tmp_path / "samples", tmp_path / "again.h5"
    encoding = ["--vae", "digits", "--resolution", "32", "--device", "cpu"]
    work = {
        "extract": ["extract", str(digits_folder), "--out", str(extracted), *encoding],
        "sample": ["sample", str(whole), "--out", str(samples), "--num", "16", *sampling],
        "eval": ["eval", str(whole), "--num", "16", "--out", str(tmp_path / "evals"), *sampling],
    }
    opened: dict[str, list[set[str]]] = {}
    for name, command in work.items():
        with nodes("torchrun", tmp_path, command, hook=tmp_path) as running:
            assert running.end() == [0, 0], running.log(0) + running.log(1)
        files = [Path(f"{log}{rank}") for rank in (0, 1)]
        opened[name] = [{Path(line).name for line in f.read_text().splitlines()} for f in files]
        for file in files:
            file.unlink()
    assert 0 < len([n for n in opened["extract"][1] if n.endswith("png")]) < 96
    assert len({n for n in opened["sample"][1] if re.search(r"\d{6}\.png", n)}) == 8
    assert len({n for n in opened["eval"][1] if re.match(r"\d{8}\.partial", n)}) == 2
    with h5py.File(extracted) as a, h5py.File(digits_store) as b:
        assert np.array_equal(a["moments"], b["moments"])
    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "sra2cli", *work["sample"]]
    command[command.index(str(samples))] = str(alone)
    assert finished(command).returncode == 0
    for file in alone.glob("0*.png"):
        assert file.read_bytes() == (samples / file.name).read_bytes()
    assert len(list((tmp_path / "evals").glob("*.json"))) == 2
