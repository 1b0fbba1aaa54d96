"""The pipeline at full shapes, nothing shrunk: 256 px, SD-VAE's architecture, B/2, Inception."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_inception import accepted, random_weights  # noqa: F401  (fixtures)

from sra2cli.data.store import Store
from sra2cli.runs.run import Run

COUNT = 8


@pytest.mark.slow
def test_full_shapes(run_sra2, accepted, tmp_path):  # noqa: F811
    from diffusers import AutoencoderKL

    rng = np.random.default_rng(0)
    for i in range(COUNT):
        coarse = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((480, 400), Image.Resampling.BICUBIC)
        path = tmp_path / "images" / f"n{i % 2:08d}" / f"{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    ).save_pretrained(tmp_path / "vae")

    made = run_sra2("extract", "images", "--out", "in256.h5", "--vae", "vae", "--json")
    assert made.returncode == 0, made.stderr
    store = Store(tmp_path / "in256.h5")
    moments = store.moments(np.arange(COUNT))
    assert moments.shape == (COUNT, 8, 32, 32) and moments.isfinite().all()
    assert store.info.scale == 0.18215 and store.info.resolution == 256

    train = ["train", "--recipe", "b-sra2", "--data", "in256.h5", "--out", "run"]
    for setting in ("data.classes=2", "train.steps=3", "train.batch=8", "train.precision=fp32"):
        train += ["--set", setting]
    done = run_sra2(*train, "--set", "log.every=1", "--set", "log.tensorboard=false")
    assert done.returncode == 0, done.stderr
    rows = Run(tmp_path / "run").metrics()
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert {"denoise", "sra2", "grad_norm"} <= set(rows[0])

    draw = ["sample", "run", "--num", COUNT, "--steps", 4, "--cfg", 1.8, "--interval", "0:0.7"]
    assert run_sra2(*draw, "--labels", "balanced", "--out", "drawn", "--npz").returncode == 0
    with np.load(tmp_path / "drawn" / "samples.npz") as file:
        assert file["arr_0"].shape == (COUNT, 256, 256, 3) and file["arr_0"].dtype == np.uint8
        assert file["arr_0"].std() > 0

    metrics = ["--metrics", "fid,sfid,is,precision,recall", "--weights", accepted]
    judged = run_sra2("eval", "drawn", "--ref", "images", "--crop", 256, *metrics, "--json")
    assert judged.returncode == 0, judged.stderr
    result = json.loads(judged.stdout)
    for name in ("fid", "sfid", "is", "precision", "recall"):
        assert np.isfinite(result[name]), name
    assert result["count"] == result["reference_count"] == COUNT
