"""LightningDiT's shards of latents as a source: what the store holds, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import one_line
from safetensors.torch import save_file

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources import Choice, open_source
from sra2cli.data.store import Store

SHAPE = (16, 8, 8)  # of the digits' VAE at 32 px
ARGUMENTS = ("--vae", "digits", "--resolution", 32, "--device", "cpu", "--workers", 0)


def shard(count=3, *, seed=0, shape=SHAPE, **changed):
    """Tensors of a shard; None leaves one out."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "latents": torch.randn(count, *shape, generator=generator) * 3 + 1,
        "latents_flip": torch.randn(count, *shape, generator=generator) * 3 + 1,
        "labels": torch.arange(count) + seed,
    }
    return {name: t for name, t in (tensors | changed).items() if t is not None}


def written(folder, *shards):
    folder.mkdir(exist_ok=True)
    for k, tensors in enumerate(shards):
        save_file(tensors, folder / f"latents_rank00_shard{k:03d}.safetensors")
    return folder


@pytest.fixture
def two(tmp_path):
    """A folder of two shards, the second written first."""
    return written(tmp_path / "shards", shard(3), shard(4, seed=3))


@pytest.mark.parametrize("given", ["", "/*.safetensors"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_store_is_what_the_shards_hold(two, tmp_path, run_sra2, given, flip):
    done = run_sra2(
        "extract", f"{two}{given}", "--out", "a.h5", *ARGUMENTS, *["--flip"] * flip, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == 7
    store, (a, b) = Store(tmp_path / "a.h5"), (shard(3), shard(4, seed=3))
    rows = np.arange(7)
    for name, mirrored in (("latents", False), ("latents_flip", True))[: 1 + flip]:
        moments = store.moments(rows, np.full(7, mirrored))
        mean, std = moments.chunk(2, dim=1)
        assert torch.equal(mean, torch.cat([a[name], b[name]])) and not std.any()
    assert store.labels.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert store.names[3] == "latents_rank00_shard001.safetensors/00000003"
    assert store.info.mirrored == flip and store.info.crop == "imported"
    again = run_sra2("extract", f"{two}{given}", "--out", "a.h5", *ARGUMENTS, *["--flip"] * flip)
    assert again.returncode == 0 and "complete already" in again.stderr


def test_an_exchanged_mirrored_latent_is_seen(two, run_sra2):
    assert run_sra2("extract", two, "--out", "a.h5", *ARGUMENTS, "--flip").returncode == 0
    other = shard(3)
    other["latents_flip"][1] += 1
    written(two, other)
    line = one_line(run_sra2("extract", two, "--out", "a.h5", *ARGUMENTS, "--flip"), 2)
    assert "1 images have changed" in line


def test_other_floats_and_files_of_one_name(tmp_path):
    for name, dtype in (("a", torch.float16), ("b", torch.bfloat16)):
        written(tmp_path / name, shard(2, latents=torch.full((2, *SHAPE), 0.5, dtype=dtype)))
    source = open_source(tmp_path / "?" / "*.safetensors")
    assert len(set(source.names)) == 4 and source.classes == 2
    assert all((source.read(k)[:16] == 0.5).all() for k in range(4))


def test_statistics_beside_are_named_until_they_are_taken(two, run_sra2):
    stats = two / "latents_stats.pt"
    torch.save({"mean": torch.ones(1, 16, 1, 1), "std": torch.full((1, 16, 1, 1), 3.0)}, stats)
    plain = run_sra2("extract", two, "--out", "a.h5", *ARGUMENTS)
    assert f"--latent-stats {stats}" in " ".join(plain.stderr.split("\n"))
    assert "ignored" not in plain.stderr
    taken = run_sra2("extract", two, "--out", "b.h5", *ARGUMENTS, "--latent-stats", stats)
    assert taken.returncode == 0 and "is not used" not in taken.stderr
    checked = json.loads(run_sra2("extract", "--check", "b.h5", "--json").stdout)
    assert all(0.8 < std < 1.2 for std in checked["channel_std"])


@pytest.mark.parametrize(
    "tensors, said",
    [
        (shard(latents=None), "holds no latents"),
        (shard(labels=None), "--label none"),
        (shard(labels=torch.tensor([0, -1, 2])), "whole numbers from 0, not -1"),
        (shard(labels=torch.tensor([0.0, 1.0, 2.0])), "labels is F32"),
        (shard(labels=torch.tensor([0, 1])), "not a whole number for each of 3"),
        (shard(labels=torch.tensor([0, 1, 1 << 40])), "would make as many classes"),
        (shard(shape=(16, 4, 4)), "are not of one data set"),
        (shard(latents=torch.zeros(3, 16, 64)), "not (N, C, h, w)"),
        (shard(0), "not (N, C, h, w)"),
        (shard(latents=torch.zeros(3, *SHAPE, dtype=torch.int64)), "latents is I64"),
        (shard(latents_flip=torch.zeros(2, *SHAPE)), "latents_flip is F32 2x16x8x8"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, tensors, said):
    folder = written(tmp_path / "shards", shard(), tensors)
    with pytest.raises(SetupError) as caught:
        open_source(folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "shard001" in str(caught.value) or str(folder) in str(caught.value)


def test_labels_may_be_left_out(tmp_path):
    folder = written(tmp_path / "shards", shard(labels=None))
    assert open_source(folder, Choice(label="none")).labels is None
    with pytest.raises(SetupError, match="--label none alone"):
        open_source(folder, Choice(split="train"))


def test_a_damaged_shard_is_one_line(two):
    path = two / "latents_rank00_shard001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"shard001.* is damaged"):
        open_source(two)


def test_what_a_store_cannot_be_made_of_is_refused_before_data_are_read(two, tmp_path, run_sra2):
    def line(*arguments):
        return one_line(run_sra2("extract", two, "--out", "a.h5", *ARGUMENTS, *arguments), 2)

    assert "16x8x8, VAE 'digits' makes 16x16x16 of 64 px" in line("--resolution", 64)
    assert "no --logvar" in line("--logvar")
    assert "--flip and --encoder need the images" in line("--encoder", "dinov2")
    written(two, shard(latents_flip=None))
    assert "(or latents_flip in every shard)" in line("--flip")
    assert not (tmp_path / "a.h5").exists()


def test_latents_that_are_not_finite_are_listed(tmp_path, run_sra2):
    tensors = shard()
    tensors["latents_flip"][1, 0, 0, 0] = torch.nan
    folder = written(tmp_path / "shards", tensors)
    assert run_sra2("extract", folder, "--out", "a.h5", *ARGUMENTS).returncode == 0
    line = one_line(run_sra2("extract", folder, "--out", "b.h5", *ARGUMENTS, "--flip"), 1)
    assert "1 images could not be read" in line
    assert "not finite" in (tmp_path / "b.h5.rejects.txt").read_text()
    assert Store(tmp_path / "b.h5").labels.tolist() == [0, 2]


def test_shards_of_several_folders_are_no_one_data_set(two, tmp_path):
    shutil.copytree(two, tmp_path / "all" / "train")
    assert len(open_source(tmp_path / "all")) == 7
    shutil.copytree(two, tmp_path / "all" / "valid")
    with pytest.raises(SetupError, match="several folders"):
        open_source(tmp_path / "all")


def test_weights_beside_images_are_no_source(digits_folder, tmp_path):
    folder = shutil.copytree(digits_folder, tmp_path / "images")
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    source = open_source(folder)
    assert source.kind == "images" and len(source) == 96
    assert source.ignored == ["model.safetensors"]
