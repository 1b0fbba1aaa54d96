"""What the environment of a scheduler, a launcher or a shared machine does to a command: nothing,
or one line that names the variable."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import one_line

from sra2cli.core import files, processes
from sra2cli.core.errors import DataError

LEFTOVERS = {
    "LOCAL_RANK": "0",
    "RANK": "1",
    "WORLD_SIZE": "",
    "MASTER_ADDR": "nowhere.invalid",
    "PMI_SIZE": "2",
    "OMPI_COMM_WORLD_SIZE": "2",
    "MV2_COMM_WORLD_SIZE": "2",
    "SLURM_NTASKS": "2",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "three",
    "ACCELERATE_MIXED_PRECISION": "fp8",
    "ACCELERATE_DYNAMO_BACKEND": "nonsense",
    "ACCELERATE_DEBUG_MODE": "perhaps",
    "ACCELERATE_TORCH_DEVICE": "tpu",
    "ACCELERATE_USE_SAGEMAKER": "true",
}
ROOT = Path(__file__).parent.parent


def small(store: Path, *settings: str) -> list[str]:
    sets = ["train.steps=1", "train.batch=8", "log.every=1", "log.tensorboard=false", *settings]
    train = ["train", "--recipe", "digits-sit", "--data", str(store), "--out", "run"]
    return [*train, "--device", "cpu", *(part for s in sets for part in ("--set", s))]


def test_what_a_scheduler_left_does_not_touch_one_process(run_sra2, digits_store, monkeypatch):
    for name, value in LEFTOVERS.items():
        monkeypatch.setenv(name, value)
    done = run_sra2(*small(digits_store), "--processes", 1)
    assert done.returncode == 0, done.stderr
    assert "warning: PMI_SIZE is not read" in done.stderr


REFUSED = {
    "alone": ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 says", "RANK, MASTER_ADDR, MASTER_PORT are not"),
    "no address": (
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "29500"},
        "WORLD_SIZE=2 says",
        "MASTER_ADDR is not set",
    ),
    "no number": ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two", "`unset WORLD_SIZE`"),
    "below zero": ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1", "`unset WORLD_SIZE`"),
    "rank": ({"RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2", ""),
    "rank no number": ({"RANK": "x"}, "RANK=x", "`unset RANK`"),
    "local rank": ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x", "`unset LOCAL_RANK`"),
    "port": ({"MASTER_PORT": "x"}, "MASTER_PORT=x", ""),
    "sharded": ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP", "--multi_gpu"),
    "deepspeed": ({"ACCELERATE_USE_DEEPSPEED": "True"}, "ACCELERATE_USE_DEEPSPEED", "--multi_gpu"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("asked", [[], ["--processes", 2]])
def test_half_a_launcher_is_named(run_sra2, digits_store, monkeypatch, case, asked):
    given, *words = REFUSED[case]
    whole = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (given if "WORLD_SIZE" in given else whole | given).items():
        monkeypatch.setenv(name, value)
    line = one_line(run_sra2(*small(digits_store), *asked), 2)
    assert all(word in line for word in words), line


def test_processes_that_do_not_come_are_named(run_sra2, digits_store, monkeypatch):
    """As where a whole environment was left over: not a wait for ever."""
    left = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in {**left, "SRA2_TIMEOUT": "1"}.items():
        monkeypatch.setenv(name, value)
    line = one_line(run_sra2(*small(digits_store)), 1)
    assert "did not meet at 127.0.0.1:9" in line and "WORLD_SIZE" in line
    monkeypatch.setenv("SRA2_TIMEOUT", "soon")
    assert "SRA2_TIMEOUT=soon" in one_line(run_sra2(*small(digits_store)), 2)


def listening(pids: set[int]) -> set[str]:
    """Addresses, as the kernel writes them, on which these processes listen."""
    held = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                held.add(os.readlink(link))
            except FileNotFoundError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path("/proc/net", table).read_text().splitlines()[1:]:
            parts = row.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in held:
                found.add(parts[1].partition(":")[0])
    return found


def children(pid: int) -> set[int]:
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid}.union(*(children(int(child)) for child in below))


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks the kernel of Linux")
def test_two_processes_listen_to_this_machine_alone(digits_store, tmp_path):
    """And do not mind what a scheduler left, nor a file of accelerate's that it cannot read."""
    config = tmp_path / "hub" / "accelerate" / "default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("unknown_key: 1\ndistributed_type: DEEPSPEED\n")
    command = [sys.executable, "-m", "sra2cli", *small(digits_store, "train.steps=100000")]
    process = subprocess.Popen(
        [*command, "--processes", "2"],
        cwd=tmp_path,
        env={**os.environ, **LEFTOVERS, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        pids = children(process.pid)
        found = listening(pids)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and "Traceback" not in stderr, stderr
    assert len(pids) >= 3 and found and found <= {"0100007F", "0" * 24 + "01000000"}, found


def test_compiled_code_lies_where_nobody_else_can_write(tmp_path, monkeypatch):
    from sra2cli.models.sit import SiT, SiTConfig

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    folder = tmp_path / "sra2" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    torch.compiler.reset()  # as `sample` does; torch then sets the variable to its own place
    SiT(SiTConfig(depth=1, width=16, heads=2)).compile_blocks()
    from torch._inductor import config

    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert not config.cpp_cache_precompile_headers
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # it belongs to another
    other = files.private_folder("compiled")
    assert other != folder and stat.S_IMODE(other.stat().st_mode) == 0o700
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert stat.S_IMODE(files.private_folder("compiled").stat().st_mode) == 0o700


def test_an_error_is_recorded_as_one_line(tmp_path, monkeypatch):
    """A launcher prints what is recorded: a traceback would stand in its report."""
    record = tmp_path / "error.json"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(record))
    for local, said_elsewhere in (("0", False), ("1", True)):
        monkeypatch.setenv("LOCAL_RANK", local)
        try:
            raise DataError("no latents")
        except DataError as error:
            assert processes.leave_error(error) is said_elsewhere
        found = json.loads(record.read_text())["message"]
        assert found["message"] == found["extraInfo"]["py_callstack"] == "DataError: no latents"


def test_a_lost_process_is_one_short_line():
    text = (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:47: "
        "Connection reset by peer. This is typically caused by a remote worker.\nframe #0: x"
    )
    assert str(processes.peer_lost(RuntimeError(text))) == (
        "another process of this command ended or does not answer (Read error [127.0.0.1]:47: "
        "Connection reset by peer): run the same command again to go on"
    )
    assert processes.peer_lost(RuntimeError("Application timeout caused pair closure"))
    assert processes.peer_lost(RuntimeError("shape mismatch")) is None
