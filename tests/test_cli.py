"""Bad input: one clear line on stderr, the right exit code, nothing half-written."""

import json
import resource
import shutil
import subprocess
import sys

import h5py
import pytest
from conftest import one_line
from PIL import Image

SMALL = ["--set", "train.steps=2", "--set", "train.batch=8"]


def test_help_is_instant():
    """Less than 0.3 s of a processor, the best of five: other tests run beside this one."""
    times = []
    for _ in range(5):
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "sra2cli", "--help"], check=True, capture_output=True)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
    assert min(times) < 0.3, times


def test_help_lists_what_exists(run_sra2):
    text = run_sra2("--help").stdout
    for command in ("extract", "train", "sample", "eval", "demo"):
        assert command in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "digit-sra2"], "unknown recipe 'digit-sra2'; did you mean 'digits-sra2'?"),
        (["--recipe", "digits-sit", "--set", "train.stepz=3"], "did you mean 'train.steps'?"),
        (["--recipe", "digits-sit", "--set", "train.steps=x"], "takes a whole number, not 'x'"),
        (["--recipe", "digits-sra2", "--set", "align.sra2.depth=9"], "blocks 1..4"),
        (["--recipe", "digits-sit"], "no latent store nothing.h5"),
        (["--recipe", "digits-sit", "--device", "tpu"], "unknown device 'tpu'"),
        (["--recipe", "digits-sit", "--device", "cuda:x"], "unknown device 'cuda:x'"),
        (["--recipe", "digits-sit", "--device", "cuda:99"], "no CUDA device here"),
    ],
)
def test_train_refuses_before_reading(run_sra2, tmp_path, arguments, message):
    assert message in one_line(run_sra2("train", "--data", "nothing.h5", *arguments), 2)
    assert not list(tmp_path.iterdir())


def test_train_refuses_a_store_that_does_not_fit(run_sra2, digits_store, tmp_path):
    for override, message in [
        ("data.classes=7", "has 10 classes, the recipe wants 7"),
        ("data.latent=16", "has 8x8 latents (32 px, VAE digits), the recipe wants 16"),
        ("data.vae=0123456789abcdef", "was made with another VAE ('digits', "),
        ("data.channels=4", "has 16 latent channels (VAE digits), the recipe wants 4"),
    ]:
        process = run_sra2(
            "train", "--recipe", "digits-sit", "--data", digits_store, "--set", override
        )
        assert message in one_line(process, 2)
    assert not list(tmp_path.iterdir())


def test_train_refuses_a_damaged_store(run_sra2, digits_store, tmp_path):
    copy = tmp_path / "copy.h5"
    whole = bytearray(digits_store.read_bytes())
    whole[len(whole) // 2] ^= 1
    copy.write_bytes(whole)
    line = one_line(run_sra2("train", "--recipe", "digits-sit", "--data", copy), 1)
    assert "is damaged: the checksum of 'moments' is wrong" in line
    assert [p.name for p in tmp_path.iterdir()] == ["copy.h5"]


def test_train_refuses_stores_by_what_is_wrong(run_sra2, digits_store, tmp_path):
    """Truncated, of another VAE, incomplete: each by its name."""
    train = ["train", "--recipe", "digits-sit", "--data", "a.h5"]
    whole = digits_store.read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: len(whole) // 2])
    assert "is truncated" in one_line(run_sra2(*train), 1)
    (tmp_path / "a.h5").write_bytes(whole)
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f.attrs["complete"] = False
    assert "is incomplete: run extract again" in one_line(run_sra2(*train), 1)
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f.attrs["complete"] = True
        f.attrs["vae_fingerprint"] = "0123456789abcdef"
    assert "was made with another VAE" in one_line(run_sra2(*train), 2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_a_run_folder_of_another_recipe_or_store_is_refused(
    run_sra2, digits_store, digits_folder, tmp_path
):
    train = ["train", "--data", digits_store, "--out", "run", *SMALL]
    assert run_sra2(*train, "--recipe", "digits-sit").returncode == 0
    files = [p for p in (tmp_path / "run").rglob("*.*") if p.is_file() and p.name != ".lock"]
    before = {p: p.read_bytes() for p in files}
    line = one_line(run_sra2(*train, "--recipe", "digits-sra2"), 2)
    assert "run belongs to another recipe (differs in align.sra2" in line
    line = one_line(run_sra2(*train, "--recipe", "digits-sit", "--set", "train.lr=1"), 2)
    assert "differs in train.lr" in line
    fewer = tmp_path / "fewer"
    shutil.copytree(digits_folder, fewer)
    next(fewer.rglob("*.png")).unlink()
    run_sra2("extract", fewer, "--out", "b.h5", "--vae", "digits", "--resolution", 32)
    line = one_line(
        run_sra2("train", "--recipe", "digits-sit", "--data", "b.h5", "--out", "run", *SMALL), 2
    )
    assert "was trained on another store" in line
    for path, content in before.items():
        assert path.read_bytes() == content


def test_a_folder_of_other_files_is_not_made_a_run(run_sra2, digits_store, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "x.txt").write_text("mine")
    process = run_sra2("train", "--recipe", "digits-sit", "--data", digits_store, "--out", "docs")
    assert "holds other files" in one_line(process, 2)
    assert [p.name for p in (tmp_path / "docs").iterdir()] == ["x.txt"]


def test_paths_that_cannot_be_used(run_sra2, digits_store, digits_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    train = ["train", "--recipe", "digits-sit", "--data", digits_store, *SMALL]
    assert "file/sub" in one_line(run_sra2(*train, "--out", "file/sub"), 2)
    assert "is a file, not a run folder" in one_line(run_sra2(*train, "--out", "file"), 2)
    encode = ["extract", digits_folder, "--vae", "digits", "--resolution", 32]
    assert "cannot use" in one_line(run_sra2(*encode, "--out", "file/a.h5"), 2)
    assert (tmp_path / "file").read_text() == "mine"


def test_extract_refuses(run_sra2, digits_folder, tmp_path):
    def refused(*arguments):
        line = one_line(run_sra2("extract", *arguments, "--out", "a.h5", "--offline"), 2)
        assert not list(tmp_path.glob("a.h5*"))
        return line

    vae = ["--vae", "digits"]
    assert "no image folder" in refused("nothing", *vae)
    (tmp_path / "empty").mkdir()
    assert "no images in empty" in refused("empty", *vae)
    assert "not a multiple of 4" in refused(digits_folder, *vae, "--resolution", 30)
    assert "cannot load the VAE 'nobody/x'" in refused(digits_folder, "--vae", "nobody/x")


def test_extract_lists_unreadable_images_and_goes_on(run_sra2, digits_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(digits_folder, images)
    victims = sorted(images.rglob("*.png"))[:2]
    victims[0].write_text("not an image")
    victims[1].write_bytes(victims[1].read_bytes()[:100])
    arguments = ["extract", images, "--out", "a.h5", "--vae", "digits", "--resolution", 32]
    process = run_sra2(*arguments, "--json")
    line = one_line(process, 1)
    assert "2 images could not be read and were skipped: see a.h5.rejects.txt" in line
    assert json.loads(process.stdout)["images"] == 94
    listed = (tmp_path / "a.h5.rejects.txt").read_text().splitlines()
    assert [entry.split("\t")[0] for entry in listed] == [
        v.relative_to(images).as_posix() for v in victims
    ]
    assert "not an image" in listed[0] and "truncated" in listed[1].lower()
    again = run_sra2(*arguments)  # a finished store does not forget what it lacks
    assert "2 images could not be read" in one_line(again, 1)
    Image.new("RGB", (32, 32)).save(images / "0" / "new.png")
    assert "exists and differs in images" in one_line(run_sra2(*arguments), 2)
    assert not list(tmp_path.glob("*.partial*"))


def test_extract_again_with_other_settings_is_refused(run_sra2, digits_folder):
    arguments = ["extract", digits_folder, "--out", "a.h5", "--vae", "digits", "--resolution"]
    assert run_sra2(*arguments, 32).returncode == 0
    again = run_sra2(*arguments, 32)
    assert again.returncode == 0 and "complete already" in again.stderr
    assert "differs in latent, resolution" in one_line(run_sra2(*arguments, 64), 2)


def test_sample_refuses(run_sra2, digits_store, tmp_path):
    assert "is not a run folder" in one_line(run_sra2("sample", "nothing"), 2)
    run_sra2("train", "--recipe", "digits-sit", "--data", digits_store, "--out", "run", *SMALL)
    for arguments, message in [
        (["--solver", "rk4"], "--solver is one of em, euler, heun"),
        (["--interval", "0.7"], "--interval is a:b"),
        (["--interval", "0.7:0.1"], "--interval is a:b"),
        (["--labels", "11"], "there is no class 11; classes are 0..9"),
        (["--labels", "cat"], "--labels: no class 'cat'; there are: 0, 1, 2, 3"),
        (["--step", 7], "has no checkpoint of step 7 (there are: 2)"),
        (["--steps", 1], "--steps 1 is too few"),
        (["--num", 0], "must be above 0"),
        (["--cfg", "nan"], "--cfg is a number from 0, not nan"),
        (["--cfg-channels", 0], "--cfg-channels must be above 0"),
    ]:
        assert message in one_line(run_sra2("sample", "run", *arguments), 2)
    assert not (tmp_path / "run" / "samples").exists()
    draw = ["sample", "run", "--num", 2, "--steps", 2, "--out", "s"]
    assert run_sra2(*draw).returncode == 0
    assert "holds other samples (differs in sampling)" in one_line(run_sra2(*draw, "--seed", 1), 2)


def test_eval_refuses(run_sra2, tmp_path):
    assert "no run, checkpoint or samples at nothing" in one_line(run_sra2("eval", "nothing"), 2)
    (tmp_path / "s").mkdir()
    assert "no images in s" in one_line(run_sra2("eval", "s"), 2)
    assert "unknown metric 'fid2'" in one_line(run_sra2("eval", "s", "--metric", "fid2"), 2)
    Image.new("RGB", (8, 8)).save(tmp_path / "s" / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "s" / "b.png")
    mixed = run_sra2("eval", "s", "--metrics", "fd-digits")
    assert "samples of one size are needed" in one_line(mixed, 1)
    assert "compared with what? Give --ref" in one_line(run_sra2("eval", "s"), 2)
    (tmp_path / "s" / "samples.json").write_text('{"complete": false, "num": 2}')
    assert "is unfinished" in one_line(run_sra2("eval", "s"), 2)
