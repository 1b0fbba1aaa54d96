"""The small good inputs that are damaged, made once: images, a store, a run, networks, a VAE."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from sra2cli.cli import app
from sra2cli.config import recipe
from sra2cli.data.digits import load_digits
from sra2cli.evaluation.evaluate import evaluate
from sra2cli.evaluation.judging import Judging
from sra2cli.extraction.extract import extract
from sra2cli.extraction.makers import Options
from sra2cli.models.sit import SiT, SiTConfig
from sra2cli.sampling import sample as sampling
from sra2cli.sampling.settings import Sampling
from sra2cli.training.train import train

from .damage import SWEEP

SETTINGS = """\
base: digits-sit
data: {classes: 2}
model: {size: custom, depth: 1, width: 16, heads: 2, patch: 4}
align: {sra2: {depth: 1}}
train: {steps: 2, batch: 4, lr: 1.0e-3}
log: {every: 1, save_every: 1, keep: 3, preview_every: 0, tensorboard: false}
"""
IMAGES = 8


def make(base: Path) -> None:
    """Fill a folder with all of them; called in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # results of commands
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = load_digits()[0][:IMAGES]
    for i, image in enumerate(images):
        file = base / "images" / f"class{i % 2}" / f"{i:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    extract(base / "images", base / "store.h5", Options(vae="digits", resolution=32, workers=0),
            device="cpu")  # fmt: skip
    _captioned(base)
    (base / "tiny.yaml").write_text(SETTINGS)
    train(recipe.load(str(base / "tiny.yaml")), base / "store.h5", base / "run")
    how = Sampling(solver="euler", steps=2)
    sampling.sample(base / "run", num=4, sampling=how, out=base / "samples",
                    options=sampling.Options(npz=True))  # fmt: skip
    evaluate(base / "images", Judging(metric="fd-digits"), save_stats=base / "ref.npz",
             out=base / "ref.json")  # fmt: skip
    evaluate(base / "samples", Judging(metric="fd-digits", ref=str(base / "ref.npz")),
             out=base / "clean.json")  # fmt: skip
    places = {"base": base, "out": base / "evals"}
    app([word.format_map(places) for word in SWEEP.split()], standalone_mode=False)
    _networks(base)
    _vae(base / "vae")
    Dinov2Model(
        Dinov2Config(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
        )
    ).save_pretrained(base / "encoder")
    _moments(base)
    _decoy(base / "bin")


def _captioned(base: Path) -> None:
    """Two of the images with captions, and their store with text features."""
    for file in sorted((base / "images").glob("*/*.png"))[:2]:
        copy(base, f"images/{file.parent.name}/{file.name}", base / "captioned" / file.name)
        (base / "captioned" / f"{file.stem}.txt").write_text("a digit\neine Ziffer 🖊")
    options = Options(
        vae="digits", resolution=32, workers=0, text_encoder="words", text_features=True
    )
    extract(base / "captioned", base / "captioned.h5", options, device="cpu")


def _networks(base: Path) -> None:
    """A checkpoint as SiT's training writes it, and one of ours by its tensors alone."""
    small = {"width": 16, "heads": 2, "patch": 4, "channels": 16, "latent": 8, "classes": 2}
    model = SiT(SiTConfig(depth=2, mlp_ratio=4.0, qk_norm=False, **small))  # type: ignore[arg-type]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    save_file(state, base / "ours.safetensors")
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        state[key] = torch.cat([state[key], torch.zeros_like(state[key])])
    args = {"model": "SiT-S/4", "path_type": "Linear", "prediction": "velocity"}
    content = {"model": state, "ema": state, "opt": {"state": {}, "param_groups": []}, "args": args}
    torch.save(content, base / "sit.pt")


def _vae(folder: Path) -> None:
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[4, 4, 4],
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=16,
        scaling_factor=0.3,
    ).save_pretrained(folder)


def _moments(base: Path) -> None:
    """Latents of others: arrays in a folder, with their labels."""
    folder = base / "latents"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"img-mean-std-{i:08d}.npy" for i in range(4)]
    for name in names:
        np.save(folder / name, np.abs(rng.normal(size=(32, 8, 8))).astype(np.float32))
    labels = [[name, i % 2] for i, name in enumerate(names)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def _decoy(folder: Path) -> None:
    """Programs that an image might start: they leave a file behind."""
    folder.mkdir()
    for name in ("gs", "gswin64c", "djpeg", "cwebp", "ffmpeg", "magick"):
        (folder / name).write_text('#!/bin/sh\ntouch "$RAN"\n')
        (folder / name).chmod(0o755)


def copy(base: Path, name: str, to: Path) -> Path:
    """A seed to be damaged; returns `to`."""
    to.parent.mkdir(parents=True, exist_ok=True)
    source = base / name
    if source.is_dir():
        shutil.copytree(source, to, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, to)
    return to


def programs(base: Path) -> str:
    """PATH with the decoys first."""
    return f"{base / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
