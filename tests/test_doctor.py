"""sra2 doctor: what is there, where to put the rest; it never touches the network."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants

from sra2cli.doctor import packages
from sra2cli.evaluation import inception


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Empty caches, and a network that must not be asked."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return tmp_path


def lines_of(run_sra2) -> dict[str, dict[str, str]]:
    done = run_sra2("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["torch_works"] is True
    return {line["name"]: line for line in found["lines"]}


def test_doctor_says_what_is_missing_and_where_to_put_it(run_sra2, bare):
    lines = lines_of(run_sra2)
    assert {lines[n]["state"] for n in ("python", "torch", "cores", "memory", "hub cache")} == {
        "ok"
    }
    assert str(bare) in lines["disk"]["said"] and str(bare / "hub") in lines["hub cache"]["said"]
    assert lines["torch"]["said"].startswith(torch.__version__)
    weights = lines["Inception"]
    place = bare / "torch" / "hub" / "checkpoints" / inception.WEIGHTS
    assert weights["state"] == "missing" and f"not at {place}" in weights["said"]
    assert inception.URL in weights["remedy"] and "--inception" in weights["remedy"]
    for name in ("VAE", "DINOv2 of REPA", "CLIP", "PickScore", "T5"):
        assert lines[name]["state"] == "missing" and "hf download" in lines[name]["remedy"]
    text = run_sra2("doctor").stdout
    assert all(f"{line['state']:<7}  {name}" in text for name, line in lines.items())


def test_doctor_finds_what_is_there(run_sra2, bare, monkeypatch):
    for name in ("stabilityai--sd-vae-ft-mse", "google--t5-v1_1-small", "facebook--dinov2-base"):
        folder = bare / "hub" / f"models--{name}"
        for part in ("refs", "snapshots/abc"):
            (folder / part).mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc" / "config.json").write_text("{}")
        weights = folder / "snapshots" / "abc" / "model.safetensors"
        if "dino" in name:
            weights.symlink_to("../../blobs/gone")  # a download that was stopped
        else:
            weights.write_bytes(b"x")
    file = bare / "torch" / "hub" / "checkpoints" / inception.WEIGHTS
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    lines = lines_of(run_sra2)
    assert lines["VAE"]["state"] == lines["T5"]["state"] == "ok"
    assert lines["T5"]["said"].startswith("google/t5-v1_1-small in the hub cache")
    assert lines["DINOv2 of REPA"]["state"] == lines["VAE of checkpoints"]["state"] == "missing"
    assert "is not" in lines["Inception"]["said"]  # another file of that name
    monkeypatch.setattr(inception, "SHA256", "2d711642")  # of what was written
    assert lines_of(run_sra2)["Inception"]["state"] == "ok"


def test_doctor_compares_versions_with_those_that_were_tested(run_sra2, bare, monkeypatch):
    there = packages.version("torch")
    monkeypatch.setattr(packages, "tested", lambda: {"torch": "0.1", "nothing-of-this-name": "1"})
    line = lines_of(run_sra2)["versions"]
    assert line["state"] == "note" and line["said"].startswith(f"torch {there} (0.1): tested with")
    monkeypatch.setattr(packages, "tested", lambda: {"torch": there})
    assert lines_of(run_sra2)["versions"]["said"] == "1 packages, as they were tested"


def test_doctor_reads_the_pinned_versions():
    assert packages.tested()["torch"].count(".") == 2


def test_doctor_knows_of_apples_gpu(run_sra2, bare, monkeypatch):
    assert "mps" not in lines_of(run_sra2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "--device mps" in lines_of(run_sra2)["mps"]["remedy"]


def test_doctor_says_that_torch_is_broken(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: no file')")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "sra2cli", "doctor"],
        cwd=tmp_path,
        env=here,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    rows = done.stdout.splitlines()
    assert any(r.startswith("missing  torch") and "libcudart.so.12" in r for r in rows)
    assert any(r.startswith("ok       memory") for r in rows)
