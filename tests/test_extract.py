"""Extraction as a user runs it: damage, kills, imports, checks, previews."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import finished, one_line
from PIL import Image

from sra2cli.core.errors import DataError
from sra2cli.data import digits
from sra2cli.data.images import center_crop, read_image, refuse_damaged_jpeg, to_rgb
from sra2cli.data.store import Store
from sra2cli.encoders.vae import layout, load_vae
from sra2cli.extraction.encode import Leaving, unit

ROOT = Path(__file__).parent.parent
SMALL = ["--vae", "digits", "--resolution", 32]


def command(images: Path, out: Path, *options: object) -> list[str]:
    arguments = ["extract", images, "--out", out, *SMALL, *options]
    return [sys.executable, "-m", "sra2cli", *map(str, arguments)]


def kind_of_image(kind: str, dice: random.Random) -> bytes:
    """A valid image of an unusual kind."""
    ramp = np.arange(60 * 50, dtype=np.uint16).reshape(60, 50) * 20
    grey = Image.fromarray((ramp // 257).astype(np.uint8))
    buffer = io.BytesIO()
    if kind == "cmyk":
        grey.convert("CMYK").save(buffer, "jpeg")
    elif kind == "palette":
        grey.convert("P").save(buffer, "png", transparency=0)
    elif kind == "16-bit":
        Image.fromarray(ramp).save(buffer, "png")
    elif kind == "alpha":
        grey.convert("RGBA").save(buffer, "png")
    elif kind == "exif":
        exif = grey.getexif()
        exif[0x0112] = 6
        grey.save(buffer, "jpeg", exif=exif)
    elif kind == "animated":
        grey.save(buffer, "gif", save_all=True, append_images=[grey.rotate(90)])
    elif kind == "1x1":
        Image.new("RGB", (1, 1), "red").save(buffer, "png")
    elif kind == "elongated":
        Image.new("RGB", (1, 700), "red").save(buffer, "png")
    elif kind == "large":
        Image.new("L", (6000, 4000)).save(buffer, "png")
    else:
        grey.convert("RGB").save(buffer, dice.choice(["png", "jpeg", "webp", "bmp", "tiff"]))
    return buffer.getvalue()


KINDS = ["cmyk", "palette", "16-bit", "alpha", "exif", "animated", "1x1", "elongated", "large"]


def damaged(kind: str, dice: random.Random) -> bytes:
    data = bytearray(kind_of_image("", dice))
    if kind == "truncated":
        return bytes(data[: dice.randrange(len(data))])
    if kind == "flipped":
        for _ in range(dice.randrange(1, 30)):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return bytes(data)
    return dice.choice(
        [b"", b"hello", os.urandom(500), b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%PDF-1.4"]
    )


def test_300_damaged_files_among_good_ones(digits_folder, tmp_path):
    """No crash; each file is either in the store, as the image library reads it, or listed."""
    dice = random.Random(0)
    images = tmp_path / "images"
    shutil.copytree(digits_folder, images)
    suffixes = [".png", ".jpg", ".JPEG", ".webp", ".bmp", ".tif", ".gif"]
    for i in range(300):
        kind = dice.choice(["truncated", "flipped", "wrong", "unusual"])
        data = kind_of_image(dice.choice(KINDS), dice) if kind == "unusual" else damaged(kind, dice)
        folder = images / str(dice.randrange(10))
        (folder / f"x{i:03d}-{kind}{dice.choice(suffixes)}").write_bytes(data)
    huge = Image.new("1", (15000, 13000))
    huge.save(images / "0" / "huge.png")
    process = finished(command(images, tmp_path / "a.h5", "--json", "--batch", 16))
    line = one_line(process, 1)
    lines = (tmp_path / "a.h5.rejects.txt").read_text().splitlines()
    rejects = dict(entry.split("\t") for entry in lines)
    assert f"{len(rejects)} images could not be read" in line
    assert all(reason.strip() for reason in rejects.values())
    assert "too large" in rejects["0/huge.png"]
    store = Store(tmp_path / "a.h5")
    store.verify()
    files = {p.relative_to(images).as_posix() for p in images.rglob("*") if p.is_file()}
    assert set(store.names) | set(rejects) == files and not set(store.names) & set(rejects)
    for name in files:
        try:
            read_image(images / name, 32)
            refuse_damaged_jpeg((images / name).read_bytes())
        except DataError as error:
            assert rejects[name] == str(error)
        else:
            assert name in store.names
    good = {p.relative_to(digits_folder).as_posix() for p in digits_folder.rglob("*.png")}
    assert good <= set(store.names)
    assert not [n for n in rejects if "unusual" in n and "huge" not in n]
    reference = load_vae("digits")
    for name in [*sorted(good)[:3], *[n for n in store.names if "unusual" in n][:5]]:
        with Image.open(images / name) as image:
            pixels = center_crop(to_rgb(image), 32)
        together = torch.from_numpy(np.stack([pixels] * 16))  # as many as were encoded together
        expected = reference.encode(together)[0]
        assert torch.equal(store.moments(np.array([store.names.index(name)]))[0], expected), name
    allowed = finished(command(images, tmp_path / "a.h5", "--allow-rejects"))
    assert allowed.returncode == 0


@pytest.fixture(scope="module")
def many_digits(tmp_path_factory) -> Path:
    """2,000 digits: 1,797, and some again under other names."""
    root = tmp_path_factory.mktemp("many") / "digits"
    digits.write_folder(root)
    files = sorted(root.rglob("*.png"))
    for i in range(2000 - len(files)):
        shutil.copy(files[i], files[i].with_name(f"again{i}.png"))
    victim = root / "3" / "again-bad.png"
    victim.write_bytes(b"no image")
    return root


def kill_and_resume(images: Path, folder: Path, processes: int, kills: int) -> tuple[bytes, bytes]:
    """A store made under kills, and one made without."""
    options = ["--processes", processes, "--allow-rejects"]
    whole = folder / "whole.h5"
    assert finished(command(images, whole, *options)).returncode == 0
    dice, out, partial = (
        random.Random(processes),
        folder / "killed.h5",
        folder / "killed.h5.partial",
    )
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            command(images, out, *options),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if dice.random() < 0.8:  # most kills while rows are written or it ends, some anywhere
            before = partial.stat().st_mtime_ns if partial.exists() else 0
            while process.poll() is None and not out.exists():
                if partial.exists() and partial.stat().st_mtime_ns > before:
                    break
                time.sleep(0.001)
            time.sleep(dice.random() * 0.6)
        else:
            time.sleep(dice.random() * 6)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        if out.exists():
            assert out.read_bytes() == whole.read_bytes()
            out.unlink()
    for _ in range(50):  # processes that the kernel is still ending hold the lock
        last = finished(command(images, out, *options))
        if "another extraction is writing" not in last.stderr:
            break
        time.sleep(0.2)
    assert last.returncode == 0, last.stderr
    rejects = [(folder / f"{name}.h5.rejects.txt").read_text() for name in ("whole", "killed")]
    assert rejects[0] == rejects[1] == "3/again-bad.png\tnot an image\n"
    assert not list(folder.glob("*.partial*"))
    return out.read_bytes(), whole.read_bytes()


def test_kill_and_resume(digits_folder, many_digits, tmp_path):
    killed, whole = kill_and_resume(many_digits, tmp_path, processes=1, kills=2)
    assert killed == whole


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_20_kills(many_digits, tmp_path, processes):
    killed, whole = kill_and_resume(many_digits, tmp_path, processes=processes, kills=20)
    assert killed == whole


def test_processes_workers_and_batches_do_not_change_the_bytes(digits_folder, tmp_path):
    variants = [
        ["--workers", 0, "--batch", 16],
        ["--workers", 2, "--batch", 128],
        ["--processes", 2, "--batch", 1],
    ]
    contents = []
    for i, options in enumerate(variants):
        out = tmp_path / f"{i}.h5"
        run = finished(command(digits_folder, out, *options))
        assert run.returncode == 0, run.stderr
        contents.append(out.read_bytes())
    assert all(content == contents[0] for content in contents)


def test_an_error_of_several_processes_is_one_line(tmp_path):
    process = subprocess.run(
        command(tmp_path / "nothing", tmp_path / "a.h5", "--processes", 2),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "no image folder" in one_line(process, 2)


def test_dry_run_says_what_it_takes_and_writes_nothing(run_sra2, digits_folder, tmp_path):
    run = run_sra2("extract", digits_folder, "--out", "a.h5", *SMALL, "--dry-run", "--json")
    result = json.loads(run.stdout)
    assert result["images"] == 96 and result["seconds"] > 0 and result["images_per_second"] > 1
    assert not list(tmp_path.iterdir())
    run_sra2("extract", digits_folder, "--out", "a.h5", *SMALL)
    real = (tmp_path / "a.h5").stat().st_size
    assert 0.9 * real < result["bytes"] < 1.5 * real + 40_000


def test_a_disk_that_cannot_hold_it_is_refused(run_sra2, digits_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sra2cli.extraction.extract.free_space", lambda out: 1000)
    for more in ([], ["--dry-run"]):
        line = one_line(run_sra2("extract", digits_folder, "--out", "a.h5", *SMALL, *more), 2)
        assert "GB more, but its disk has" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_stops_with_one_line_and_leaves_nothing(digits_folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        filler = disk / "filler"
        filler.write_bytes(b"x" * 1_000_000)  # free space changes after it was looked at
        code = (
            "import sra2cli.extraction.extract as e; e.free_space = lambda out: 10**9; import sys;"
            "from sra2cli.cli import app; app()"
        )
        arguments = command(digits_folder, disk / "a.h5")[3:]
        run = [sys.executable, "-c", code, *arguments]
        process = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
        assert "the disk is full" in one_line(process, 1)
        assert [p.name for p in disk.iterdir()] == ["filler"]
        filler.unlink()
        assert subprocess.run(run, capture_output=True, cwd=ROOT).returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_source_that_vanishes_stops_and_resumes(digits_folder, tmp_path, run_sra2):
    images = tmp_path / "images"
    shutil.copytree(digits_folder, images)
    encode = ["extract", images, "--out", "a.h5", *SMALL, "--workers", 0, "--batch", 16]
    from sra2cli.extraction import decode as decoding

    read, calls = decoding.decode_image, [0]

    def vanish(*arguments):
        calls[0] += 1
        if calls[0] == 40:
            images.rename(tmp_path / "away")
        return read(*arguments)

    decoding.decode_image = vanish
    try:
        line = one_line(run_sra2(*encode), 1)
    finally:
        decoding.decode_image = read
    assert "is gone from" in line and "run the same command again" in line
    (tmp_path / "away").rename(images)
    assert run_sra2(*encode).returncode == 0
    assert run_sra2("extract", images, "--out", "b.h5", *SMALL).returncode == 0
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("batch", [[], ["--batch", 16]])
def test_killed_at_each_point_of_the_end(run_sra2, digits_folder, tmp_path, monkeypatch, batch):
    """Before the attributes, after them, and before the rename: it ends with the same bytes."""
    from sra2cli.data import store_writer

    encode = ["extract", digits_folder, *SMALL, *batch]
    assert run_sra2(*encode, "--out", "whole.h5").returncode == 0
    replace = os.replace

    def interrupted(*arguments):
        raise KeyboardInterrupt

    def at_the_rename(source, target):
        if str(target).endswith(".h5"):
            raise KeyboardInterrupt
        replace(source, target)

    points = [("checksums", interrupted), ("sync", interrupted)]
    for number, (name, instead) in enumerate(points):
        with monkeypatch.context() as patch:
            patch.setattr(store_writer, name, instead)
            assert run_sra2(*encode, "--out", f"{number}.h5").returncode == 130
        assert (tmp_path / f"{number}.h5.partial").exists()
    with monkeypatch.context() as patch:
        patch.setattr(store_writer.os, "replace", at_the_rename)
        assert run_sra2(*encode, "--out", "2.h5").returncode == 130
    for number in range(3):
        assert run_sra2(*encode, "--out", f"{number}.h5").returncode == 0
        assert (tmp_path / f"{number}.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_an_error_of_one_process_is_one_line(digits_folder, tmp_path):
    """The others wait for it and leave without a word."""
    first = command(digits_folder, tmp_path / "a.h5", "--workers", 0)
    code = "import sra2cli.data.store_writer as w; w.StoreWriter.finish = lambda self: 1 / 0;"
    code += "from sra2cli.cli import app; app()"
    subprocess.run([sys.executable, "-c", code, *first[3:]], cwd=ROOT, capture_output=True)
    assert (tmp_path / "a.h5.partial").exists()
    other = command(digits_folder, tmp_path / "a.h5", "--dtype", "float16", "--processes", 2)
    process = subprocess.run(other, cwd=ROOT, capture_output=True, text=True)
    assert "begun with other settings (dtype)" in one_line(process, 2)


def test_a_killed_worker_is_one_line(run_sra2, digits_folder, tmp_path, monkeypatch):
    from sra2cli.extraction import decode as decoding

    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(decoding, "decode_image", killed)
    encode = ["extract", digits_folder, "--out", "a.h5", *SMALL, "--batch", 16, "--workers", 1]
    assert "a decoding process was killed" in one_line(run_sra2(*encode), 1)


def test_changed_labels_and_conventions_are_another_store(run_sra2, digits_store, tmp_path):
    store = Store(digits_store)
    folder = latents_folder(tmp_path / "latents", store)
    encode = ["extract", folder, "--out", "a.h5", *SMALL]
    assert run_sra2(*encode).returncode == 0
    assert "differs in crop" in one_line(run_sra2(*encode, "--logvar"), 2)
    tree = json.loads((folder / "dataset.json").read_text())
    tree["labels"][0][1], tree["labels"][-1][1] = tree["labels"][-1][1], tree["labels"][0][1]
    (folder / "dataset.json").write_text(json.dumps(tree))
    assert "differs in labels" in one_line(run_sra2(*encode), 2)


def test_check_finds_changed_attributes(run_sra2, digits_store, tmp_path):
    copy = shutil.copy(digits_store, tmp_path / "a.h5")
    with h5py.File(copy, "r+") as f:
        f.attrs["scale"] = 2.0
    assert "checksum of 'attributes' is wrong" in one_line(run_sra2("extract", "--check", copy), 1)


def test_two_extractions_into_one_store(digits_folder, tmp_path, run_sra2):
    from sra2cli.core.processes import Group
    from sra2cli.data.store_writer import StoreWriter
    from sra2cli.extraction.encode import prepare
    from sra2cli.extraction.makers import Options

    job = prepare(digits_folder, Options(vae="digits", resolution=32), Group())
    writer = StoreWriter(tmp_path / "a.h5", job.info, job.source.names, job.source.labels)
    line = one_line(run_sra2("extract", digits_folder, "--out", "a.h5", *SMALL), 2)
    assert "another extraction is writing" in line
    writer.close()
    assert run_sra2("extract", digits_folder, "--out", "a.h5", *SMALL).returncode == 0


def test_check_describes_and_finds_damage(run_sra2, digits_store, tmp_path):
    result = json.loads(run_sra2("extract", "--check", digits_store, "--json").stdout)
    assert result["verified"] and result["images"] == 96 and result["classes"] == 10
    assert result["vae_fingerprint"] == load_vae("digits").fingerprint
    assert 0.8 < result["latent_std"] < 1.2  # scale and moments fit together
    whole = bytearray(digits_store.read_bytes())
    with h5py.File(digits_store) as f:
        at = f["moments"].id.get_offset() + f["moments"].nbytes // 2
    whole[at] ^= 1
    (tmp_path / "bad.h5").write_bytes(whole)
    line = one_line(run_sra2("extract", "--check", "bad.h5"), 1)
    assert "checksum of 'moments' is wrong" in line
    assert "--check STORE takes no images" in one_line(
        run_sra2("extract", "a", "--check", "bad.h5"), 2
    )
    assert "give IMAGES and --out" in one_line(run_sra2("extract"), 2)


def test_preview_shows_the_images(run_sra2, digits_store, tmp_path):
    copy = shutil.copy(digits_store, tmp_path / "a.h5")
    result = json.loads(run_sra2("extract", "--check", copy, "--preview", "--json").stdout)
    with Image.open(result["preview"]) as picture:
        assert picture.width == 6 * (128 + 6) + 6  # four times as large, with its class below each
        assert picture.height > picture.width
        assert np.asarray(picture).std() > 30


def latents_folder(root: Path, store: Store, *, logvar: bool = False) -> Path:
    """The moments of a store as REPA keeps them."""
    pairs = []
    for i in range(len(store)):
        name = f"00000/img-mean-std-{i:08d}.npy"
        moments = store.moments(np.array([i]))[0].numpy()
        if logvar:
            mean, std = np.split(moments, 2)
            moments = np.concatenate([mean, 2 * np.log(std)])
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, moments)
        pairs.append([name, int(store.labels[i])])
    (root / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return root


def test_latents_of_others_are_imported(run_sra2, digits_store, tmp_path):
    store = Store(digits_store)
    encode = ["extract", latents_folder(tmp_path / "vae-sd", store), "--out", "a.h5", *SMALL]
    assert run_sra2(*encode).returncode == 0
    imported = Store(tmp_path / "a.h5")
    rows = np.arange(96)
    assert np.array_equal(imported.moments(rows), store.moments(rows))
    assert imported.labels.tolist() == store.labels.tolist()
    assert imported.info.scale == store.info.scale and imported.info.crop == "imported"
    train = ["train", "--recipe", "digits-sra2", "--data", "a.h5", "--out", "run"]
    assert run_sra2(*train, "--set", "train.steps=1", "--set", "train.batch=4").returncode == 0
    for option in (["--flip"], ["--encoder", "x"]):
        line = one_line(run_sra2(*encode[:2], "--out", "b.h5", *SMALL, *option), 2)
        assert "need the images themselves" in line


def test_logvar_is_not_taken_for_std(run_sra2, digits_store, tmp_path):
    store = Store(digits_store)
    folder = latents_folder(tmp_path / "latents", store, logvar=True)
    encode = ["extract", folder, "--out", "a.h5", *SMALL]
    assert "no image could be read" in one_line(run_sra2(*encode), 1)
    assert "mean and logvar? (--logvar)" in (tmp_path / "a.h5.rejects.txt").read_text()
    assert run_sra2(*encode, "--logvar").returncode == 0
    found = Store(tmp_path / "a.h5").moments(np.arange(96))
    assert np.allclose(found, store.moments(np.arange(96)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_and_dtype_are_recorded(
    run_sra2, digits_folder, digits_store, tmp_path, precision
):
    encode = ["extract", digits_folder, "--out", "a.h5", *SMALL]
    options = ["--precision", precision, "--dtype", "float16"]
    done = run_sra2(*encode, *options)
    assert done.returncode == 0
    error = float(re.search(r"latents of the first 4 images are off by (\S+)%", done.stderr)[1])
    assert 0 < error < 2
    store, exact = Store(tmp_path / "a.h5"), Store(digits_store)
    assert store.info.encode_precision == precision and store.info.dtype == "float16"
    found, expected = (s.moments(np.arange(96)).float().numpy() for s in (store, exact))
    assert 0 < np.abs(found - expected).mean() < 0.02
    train = ["train", "--recipe", "digits-sra2", "--data", "a.h5", "--out", "run"]
    assert run_sra2(*train, "--set", "train.steps=1", "--set", "train.batch=4").returncode == 0
    line = one_line(run_sra2(*encode), 2)
    assert "differs in dtype, encode_precision" in line


def test_how_many_run_at_once_follows_from_their_size_alone():
    assert [unit(side) for side in (32, 48, 64, 128, 256, 512)] == [64, 16, 16, 4, 1, 1]


def test_on_a_gpu_float32_lies_channel_by_channel():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert layout(gpu, torch.float32) is torch.contiguous_format
    assert layout(gpu, torch.bfloat16) is torch.channels_last
    assert layout(cpu, torch.float32) is torch.channels_last


def test_values_leave_a_gpu_before_the_next_are_made(monkeypatch):
    """The copy is queued at once, and waited for only when it is needed: a stub for a GPU."""
    said = []

    class Event:
        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("wait")

    class OnGpu:
        is_cuda = True

        def to(self, where, *, non_blocking):
            said.append((where, non_blocking))
            return torch.ones(2)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    leaving = Leaving({"moments": OnGpu()})
    assert said == [("cpu", True), "record"]
    assert leaving.arrived()["moments"].tolist() == [1, 1] and said[-1] == "wait"
    assert Leaving({"moments": torch.zeros(1)}).arrived()["moments"].tolist() == [0]
    assert said.count("wait") == 1
