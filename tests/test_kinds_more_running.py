"""More kinds of trouble: numbers and names that are none, memory that cannot be read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import one_line
from safetensors.torch import load_file, save_file

from sra2cli.config import recipe
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import file_digest
from sra2cli.models import checkpoints
from sra2cli.runs.run import Run
from sra2cli.training.train import train

ROOT = Path(__file__).parent.parent
SMALL = ["train.batch=8", "train.steps=1", "log.preview_every=0", "log.tensorboard=false"]


@pytest.mark.parametrize("kind", [torch.complex64, torch.float8_e4m3fn])
def test_weights_of_other_kinds_of_numbers_are_refused(digits_store, tmp_path, kind):
    train(recipe.load("digits-sit", SMALL), digits_store, tmp_path / "run")
    folder = Run(tmp_path / "run").checkpoints()[-1]
    about = json.loads((folder / "checkpoint.json").read_text())
    state = load_file(folder / "ema.safetensors")
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].to(kind)
    save_file(state, folder / "ema.safetensors")
    about["files"]["ema.safetensors"] = file_digest(folder / "ema.safetensors")
    (folder / "checkpoint.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"qkv.weight is torch\.\w+, not a float of 16 bits"):
        Run(tmp_path / "run").checkpoint().weights("ema")
    with pytest.raises(SetupError, match=r"qkv.weight is torch\.\w+, not a float of 16 bits"):
        checkpoints.load({"ema": state})


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_name_that_is_none_is_one_line(run_sra2, digits_folder, name):
    """As of a variable of a script that is empty."""
    extract = ("extract", digits_folder, "--vae", "digits", "--resolution", "32", "--out", name)
    one_line(run_sra2(*extract), 2)
    one_line(run_sra2("extract", "--check", name), 2)
    one_line(run_sra2("train", "--recipe", "digits-sit", "--data", name, "--out", "run"), 2)
    judge = ("eval", digits_folder, "--ref", digits_folder, "--metrics", "fd-digits")
    one_line(run_sra2(*judge, "--out", name), 2)


def test_a_size_that_no_memory_has_is_one_line(run_sra2, digits_store):
    command = ["train", "--recipe", "digits-sra2", "--data", digits_store, "--dry-run"]
    command += ["--set", "model.size=custom", "--set", "model.depth=2", "--set", "model.heads=2"]
    command += ["--set", "model.width=30000000000", "--set", "align={sra2: {depth: 1}}"]
    assert "cannot be built" in one_line(run_sra2(*command), 2)


def test_lost_memory_ends_the_process_where_nobody_can_be_told(tmp_path):
    code = (
        "import numpy, os; from sra2cli.core.processes import say_lost_memory; say_lost_memory();"
        "open('x', 'wb').write(bytes(1 << 20)); mapped = numpy.memmap('x', 'u1', 'r');"
        "os.truncate('x', 0); os.close(2); mapped.sum()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, timeout=30
    )
    assert done.returncode == 1
