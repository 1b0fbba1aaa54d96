"""Kinds of trouble while a command runs: two at once, what vanishes, what is full, Ctrl-C.

Each is one line with the right exit code.
"""

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import one_line

from sra2cli.cli.app import told as told_of
from sra2cli.cli.app import user_errors
from sra2cli.config import recipe
from sra2cli.core import pictures
from sra2cli.core.files import hold
from sra2cli.data.store_writer import StoreWriter
from sra2cli.extraction import extract as extraction
from sra2cli.runs.writer import RunWriter

ROOT = Path(__file__).parent.parent
SMALL = ["train.batch=8", "log.every=1", "log.preview_every=0", "log.tensorboard=false"]
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]
DRAW = ("--num", "4", "--steps", "2", "--device", "cpu")
EXTRACT = ("--vae", "digits", "--resolution", "32", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(digits_store, tmp_path_factory) -> Path:
    """A run of two steps."""
    from sra2cli.training.train import train

    out = tmp_path_factory.mktemp("trained") / "run"
    train(recipe.load("digits-sit", [*SMALL, "train.steps=2"]), digits_store, out)
    return out


def test_a_second_sample_into_a_folder_is_refused(run_sra2, trained, tmp_path):
    out = tmp_path / "smp"
    with hold(out / ".lock", ""):  # as another process does
        said = one_line(run_sra2("sample", trained, *DRAW, "--out", out), 2)
        assert "another sample is drawing into" in said and not list(out.glob("*.png"))
    assert run_sra2("sample", trained, *DRAW, "--out", out).returncode == 0
    assert run_sra2("sample", trained, *DRAW, "--out", out).returncode == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    said = one_line(run_sra2("sample", trained, *DRAW, "--out", tmp_path / "other"), 2)
    assert "is not empty" in said and not (tmp_path / "other" / ".lock").exists()


def vanishing(monkeypatch, thing: object, name: str, folder: Path) -> None:
    """Have a folder or file removed just before a call."""
    call = getattr(thing, name)

    def first(*args: object, **named: object) -> object:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
        return call(*args, **named)

    monkeypatch.setattr(thing, name, first)


def test_a_folder_of_samples_that_vanishes(run_sra2, trained, tmp_path, monkeypatch):
    vanishing(monkeypatch, pictures, "save", tmp_path / "smp")
    said = one_line(run_sra2("sample", trained, *DRAW, "--out", tmp_path / "smp"), 1)
    assert "is gone" in said and str(tmp_path / "smp") in said


@pytest.mark.parametrize("name", ["save", "_write", "start_metrics"])
def test_a_run_folder_that_vanishes(run_sra2, digits_store, tmp_path, monkeypatch, name):
    vanishing(monkeypatch, RunWriter, name, tmp_path / "run")
    command = ["train", "--recipe", "digits-sit", *SETTINGS, "--set", "train.steps=2"]
    command += ["--data", digits_store, "--out", tmp_path / "run", "--device", "cpu"]
    assert "gone" in one_line(run_sra2(*command), 1)


@pytest.mark.parametrize("name", ["write", "finish"])
def test_a_partial_store_that_vanishes(run_sra2, digits_folder, tmp_path, monkeypatch, name):
    vanishing(monkeypatch, StoreWriter, name, tmp_path / "s.h5.partial")
    one_line(run_sra2("extract", digits_folder, "--out", tmp_path / "s.h5", *EXTRACT), 1)
    assert not (tmp_path / "s.h5").exists()


@contextmanager
def files_no_larger_than(size: int):
    """As on a disk that fills, or under a batch system's limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 5_000, 100_000])
def test_what_does_not_fit_is_one_line(
    run_sra2, trained, digits_folder, digits_store, tmp_path, size
):
    command = ["train", "--recipe", "digits-sit", *SETTINGS, "--set", "train.steps=1"]
    command += ["--data", digits_store, "--out", tmp_path / "run", "--device", "cpu"]
    with files_no_larger_than(size):
        found = [
            run_sra2(*command),
            run_sra2("extract", digits_folder, "--out", tmp_path / "s.h5", *EXTRACT),
        ]
        if size == 100:
            found.append(run_sra2("sample", trained, *DRAW, "--out", tmp_path / "smp"))
    for done in found:
        assert len(one_line(done, 1)) < 300


@pytest.mark.parametrize("command", ["extract", "train", "sample", "eval"])
def test_a_folder_that_cannot_be_written_to(
    run_sra2, trained, digits_folder, digits_store, monkeypatch, command
):
    """Where not even root may make a file."""
    monkeypatch.setattr(extraction, "free_space", lambda out: 10**12)
    arguments = {
        "extract": [digits_folder, *EXTRACT],
        "train": ["--recipe", "digits-sit", *SETTINGS, "--data", digits_store],
        "sample": [trained, *DRAW],
        "eval": [digits_folder, "--metrics", "fd-digits"],
    }[command]
    done = run_sra2(command, *arguments, "--out", "/sys/sra2-cannot-be")
    assert "/sys" in one_line(done, 2)


def test_what_the_system_refuses_is_said_with_the_right_code():
    def told(number: int, file: str | None = "a/b") -> tuple[str, int]:
        found = told_of(OSError(number, os.strerror(number), file))
        assert found is not None
        return str(found), found.exit_code

    assert told(errno.ENOSPC)[1] == 1 and "disk is full" in told(errno.ENOSPC, None)[0]
    assert told(errno.EFBIG, None) == ("cannot use a file: File too large", 1)
    assert told(errno.ENOENT)[1] == 1 and "a/b is gone" in told(errno.ENOENT)[0]
    assert told(errno.EROFS) == ("cannot use a/b: Read-only file system", 2)
    assert told_of(BrokenPipeError(errno.EPIPE, "")) is None  # nobody reads on
    assert told_of(KeyError("a bug")) is None


def test_ctrl_c_while_a_library_is_imported(capsys):
    """Libraries in C make another error of it."""
    with pytest.raises(SystemExit) as left, user_errors():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None
    assert left.value.code == 130 and "stopped" in capsys.readouterr().err


def python(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_ctrl_c_while_the_command_is_imported():
    done = python(
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import sra2cli.cli\n"
    )
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_a_store_truncated_while_it_is_mapped_is_one_line():
    done = python(
        "import mmap, os, tempfile\n"
        "from sra2cli.cli.app import user_errors\n"
        "with user_errors(), tempfile.TemporaryFile() as file:\n"
        "    file.truncate(1 << 20)\n"
        "    mapped = mmap.mmap(file.fileno(), 1 << 20, access=mmap.ACCESS_READ)\n"
        "    file.truncate(1)\n"
        "    mapped[1 << 19]\n"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: a store or checkpoint in use was truncated")
    assert len(done.stderr.splitlines()) == 1


def test_a_librarys_thread_that_cannot_write_says_nothing_of_its_own(capsys):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with user_errors():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert not capsys.readouterr().err
