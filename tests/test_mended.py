"""What was mended: each of these failed, or could not be asked for, before."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import pytest
import torch
from conftest import one_line
from PIL import Image
from safetensors.torch import load_file
from test_encoders import dinov2  # noqa: F401  (a fixture)

from sra2cli.config import recipe
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources import VanishedError, open_source
from sra2cli.data.sources.parquet import ParquetReader
from sra2cli.data.store import Store
from sra2cli.encoders.image import Encoder
from sra2cli.models.checkpoints import load
from sra2cli.runs import run as reading
from sra2cli.runs import writer
from sra2cli.runs.network import open_network
from sra2cli.runs.run import Run
from sra2cli.training import store_check
from sra2cli.training.train import train

ROOT = Path(__file__).parent.parent
TINY = ["model.depth=2", "model.width=24", "train.batch=8", "log.tensorboard=false"]
TINY += ["log.preview_every=0"]


def sets(*settings: str) -> list[str]:
    return [part for setting in [*TINY, *settings] for part in ("--set", setting)]


def damage(path: Path, at: int | None = None) -> Path:
    """Change one bit of a file, by default in its middle."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 if at is None else at] ^= 1
    path.write_bytes(whole)
    return path


def noted(monkeypatch, cls, name, note=lambda self, *arguments, **options: None) -> list:
    """What `note` makes of each call of a method, in turn; the method does what it did."""
    calls, method = [], getattr(cls, name)

    def instead(self, *arguments, **options):
        calls.append(note(self, *arguments, **options))
        return method(self, *arguments, **options)

    monkeypatch.setattr(cls, name, instead)
    return calls


# Images in parquet files.

ROWS, GROUP = 60, 10


def write_parquet(path: Path, contents: list[bytes]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)]
    labels = [i % 3 for i in range(len(cells))]
    pq.write_table(arrow.table({"image": cells, "label": labels}), path, row_group_size=GROUP)
    return path


def contents(indices) -> list[bytes]:
    return [f"image {i}".encode() for i in indices]


@pytest.fixture
def parquet(tmp_path):
    """Sixty short texts in place of images, in row groups of ten."""
    return open_source(write_parquet(tmp_path / "a.parquet", contents(range(ROWS))))


def test_rows_at_random_open_each_row_group_once(parquet, monkeypatch):
    opened = noted(monkeypatch, ParquetReader, "_column", lambda self, at: at)
    dice = random.Random(0)
    for count in (1, 7, 40):
        indices = [dice.randrange(ROWS) for _ in range(count)]  # some of them twice
        opened.clear()
        assert parquet.read_many(indices) == contents(indices)
        assert sorted(opened) == sorted({i // GROUP for i in indices})
    opened.clear()
    assert [parquet.read(i) for i in range(ROWS)] == contents(range(ROWS))
    assert opened == list(range(ROWS // GROUP))  # so do rows in turn


def test_many_threads_read_rows_at_random(parquet):
    """Of more row groups than are kept: what one is about to use, no other may throw out."""
    dice, before = random.Random(1), sys.getswitchinterval()
    indices = [dice.randrange(ROWS) for _ in range(400)]
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(parquet.read, indices)) == contents(indices)
    finally:
        sys.setswitchinterval(before)


def test_rows_that_cannot_be_read_are_said_as_those_of_other_sources(parquet):
    """Damage names the image, and a file that is gone is a reason to stop, not a traceback."""
    whole = parquet.root.read_bytes()
    parquet.root.write_bytes(whole[:4] + bytes(400) + whole[404:])
    with pytest.raises(DataError, match=r"a\.parquet"):
        parquet.read_many([3, 1])
    parquet.root.unlink()
    with pytest.raises(VanishedError, match="is gone from"):
        parquet.read_many([3, 1])


# An image encoder, in the store or while training.


@pytest.fixture(scope="module")
def seen(digits_folder, dinov2, tmp_path_factory):  # noqa: F811
    """24 digits: a parquet file, and its store with an encoder's features."""
    from sra2cli.extraction.extract import extract
    from sra2cli.extraction.makers import Options

    folder = tmp_path_factory.mktemp("seen")
    images = [p.read_bytes() for p in sorted(digits_folder.rglob("*.png"))[:24]]
    source = write_parquet(folder / "a.parquet", images)
    options = Options(vae="digits", resolution=32, encoder=str(dinov2))
    extract(source, folder / "a.h5", options, device="cpu")
    return source, folder / "a.h5"


def repa(encoder: Path) -> list[str]:
    found = ["data.classes=3", "align.repa.depth=2", "align.repa.hidden=8"]
    return [*found, f"align.repa.encoder={encoder}"]


@pytest.mark.parametrize("live", [True, False])
def test_images_and_features_are_read_until_then_alone(
    seen,
    dinov2,  # noqa: F811
    tmp_path,
    monkeypatch,
    live,
):
    images = noted(monkeypatch, ParquetReader, "many")
    features = noted(monkeypatch, Store, "features")
    encoded = noted(monkeypatch, Encoder, "tokens", lambda self, images: len(images))
    settings = [*TINY, *repa(dinov2), "align.repa.until=2", "train.steps=5", "log.every=1"]
    wanted = recipe.load("digits-sit", settings)
    train(wanted, seen[1], tmp_path / "run", images=seen[0] if live else None)
    rows = Run(tmp_path / "run").metrics()
    assert len(rows) == 5 and [row["step"] for row in rows if "repa" in row] == [1, 2]
    assert (len(images), len(features)) == ((2, 0) if live else (0, 2))
    assert encoded == ([1, 8, 8] if live else [])  # one image tells whether it works


def test_a_dry_run_times_steps_with_the_encoder_that_will_run(
    run_sra2,
    seen,
    dinov2,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    encoded = noted(monkeypatch, Encoder, "tokens", lambda self, images: len(images))
    command = ["train", "--recipe", "digits-sit", "--data", seen[1], "--dry-run", "--json"]
    command += sets(*repa(dinov2))
    live = run_sra2(*command, "--images", seen[0])
    assert live.returncode == 0, live.stderr
    assert len([count for count in encoded if count == 8]) >= 3  # a step to warm up, and two
    encoded.clear()
    stored = run_sra2(*command)
    assert stored.returncode == 0 and not encoded
    with_it, without = (json.loads(done.stdout) for done in (live, stored))
    assert with_it["gmacs"] == without["gmacs"] and not list(tmp_path.iterdir())


# Checkpoints.

KEPT = ["checkpoint.json", "ema.safetensors", "ema_heads.safetensors"]
ALL = [*KEPT, "heads.safetensors", "model.safetensors", "training.pt"]
SAVES = ["log.save_every=2", "log.keep_every=2", "log.keep=1"]


def held(run: Path) -> dict[int, list[str]]:
    """The files of each checkpoint, by its step."""
    folders = sorted((run / "checkpoints").iterdir())
    return {int(f.name[5:]): sorted(p.name for p in f.iterdir()) for f in folders}


@pytest.fixture(scope="module")
def finished(digits_store, tmp_path_factory) -> Path:
    """A run of eight steps that keeps an EMA every two."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(recipe.load("digits-sra2", [*TINY, *SAVES, "train.steps=8"]), digits_store, out)
    return out


@pytest.fixture
def kept(finished, run_sra2, tmp_path) -> Path:
    """A copy of it, called run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def go_on(store: Path, *settings: str) -> list:
    command = ["train", "--recipe", "digits-sra2", "--data", store, "--out", "run"]
    return [*command, *sets(*SAVES, "train.steps=10", *settings)]


def test_those_kept_for_good_hold_the_ema_alone(run_sra2, kept, tmp_path):
    assert held(kept) == {2: KEPT, 4: KEPT, 6: KEPT, 8: ALL}
    draw = ["sample", "run@2", "--num", 2, "--steps", 2, "--json"]
    drawn = run_sra2(*draw, "--out", "s")
    assert drawn.returncode == 0 and json.loads(drawn.stdout)["step"] == 2, drawn.stderr
    line = one_line(run_sra2(*draw, "--weights", "model", "--out", "x"), 2)
    assert "has no model.safetensors" in line and "--weights ema" in line
    newest = ["sample", "run", "--num", 2, "--steps", 2, "--weights", "model", "--out", "m"]
    assert run_sra2(*newest).returncode == 0


def test_a_training_goes_on_from_the_newest(run_sra2, kept, digits_store):
    more = run_sra2(*go_on(digits_store))
    assert more.returncode == 0 and "resuming run at step 8" in more.stderr, more.stderr
    assert held(kept) == {2: KEPT, 4: KEPT, 6: KEPT, 8: KEPT, 10: ALL}


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_training_does_not_begin_again_where_only_those_are_left(
    run_sra2, kept, digits_store, how
):
    newest = kept / "checkpoints" / "step-00000008"
    if how == "damaged":
        damage(newest / "model.safetensors")
    else:
        shutil.rmtree(newest)
    files, metrics = held(kept), (kept / "metrics.jsonl").read_bytes()
    line = one_line(run_sra2(*go_on(digits_store)), 1)
    assert "no checkpoint in run is whole" in line and "remove the folder" in line
    assert ("model.safetensors" in line) == (how == "damaged")
    assert held(kept) == files and (kept / "metrics.jsonl").read_bytes() == metrics


def test_a_kill_while_one_is_made_smaller(run_sra2, digits_store, tmp_path, monkeypatch):
    """Its record names the EMAs alone, the other files are still there: the next start ends it."""

    def killed(folder, listed):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_remove_unlisted", killed)
        assert run_sra2(*go_on(digits_store)).returncode == 130
    run = tmp_path / "run"
    assert held(run) == {2: ALL, 4: ALL}
    about = json.loads((run / "checkpoints" / "step-00000002" / "checkpoint.json").read_text())
    assert list(about["files"]) == KEPT[1:]
    assert run_sra2("sample", "run@2", "--num", 1, "--steps", 2).returncode == 0
    again = run_sra2(*go_on(digits_store))
    assert again.returncode == 0 and "resuming run at step 4" in again.stderr
    assert held(run) == {2: KEPT, 4: KEPT, 6: KEPT, 8: KEPT, 10: ALL}


def test_a_file_is_hashed_once_when_it_is_read(kept, monkeypatch):
    hashed, digest = [], reading.file_digest

    def counted(path):
        hashed.append(path.name)
        return digest(path)

    monkeypatch.setattr(reading, "file_digest", counted)
    monkeypatch.setattr(reading, "_seen", set())
    open_network(kept)
    assert hashed == ["ema.safetensors"]
    open_network(kept)
    open_network(kept / "checkpoints" / "step-00000008")
    assert hashed[1:] in ([], ["ema.safetensors"])  # by another path: at most once again
    hashed.clear()
    open_network(kept, weights="model")
    open_network(kept, weights="model")
    assert hashed == ["model.safetensors"]
    damage(kept / "checkpoints" / "step-00000008" / "ema.safetensors")
    with pytest.raises(DataError, match=r"damaged: ema\.safetensors is not what was saved"):
        open_network(kept)
    open_network(kept, weights="model")  # which is whole


# The check of the store.


@pytest.fixture
def large(monkeypatch):
    """Any store is large: it is checked while the run trains."""
    monkeypatch.setattr(store_check, "SMALL", 0)


@pytest.fixture
def copied(digits_store, tmp_path) -> Path:
    return Path(shutil.copy(digits_store, tmp_path / "a.h5"))


def train_on(store: Path, *settings: str) -> list:
    command = ["train", "--recipe", "digits-sra2", "--data", store, "--out", "run"]
    return [*command, *sets("train.steps=4", "log.save_every=2", *settings)]


def test_damage_found_while_training_leaves_no_checkpoint(
    run_sra2, large, copied, tmp_path, monkeypatch
):
    """However late: the first checkpoint waits for the end of the check."""
    verify, rows = Store.verify, tmp_path / "run" / "metrics.jsonl"
    checked = []

    def late(self, **options):
        checked.append(threading.current_thread())
        while not rows.exists() or rows.read_text().count("\n") < 2:  # until it wants to save
            time.sleep(0.01)
        time.sleep(0.2)
        verify(self, **options)

    monkeypatch.setattr(Store, "verify", late)
    damage(copied)
    line = one_line(run_sra2(*train_on(copied, "log.every=1")), 1)
    assert "a.h5 is damaged: the checksum of 'moments' is wrong" in line
    assert len(checked) == 1 and checked[0] is not threading.main_thread()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_check_that_fails_is_not_taken_for_passed(run_sra2, large, copied, tmp_path, monkeypatch):
    """Whatever it was that ended it."""

    def broken(self, **options):
        raise ValueError("bad header")

    monkeypatch.setattr(Store, "verify", broken)
    monkeypatch.setattr(threading, "excepthook", lambda caught: None)
    assert "bad header" in one_line(run_sra2(*train_on(copied)), 1)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_store_is_checked_once_for_a_run(run_sra2, copied, monkeypatch, size):
    if size == "large":
        monkeypatch.setattr(store_check, "SMALL", 0)
    checked = noted(monkeypatch, Store, "verify")
    assert run_sra2(*train_on(copied)).returncode == 0 and len(checked) == 1
    more = run_sra2(*train_on(copied, "train.steps=6"))
    assert more.returncode == 0 and "at step 4" in more.stderr and len(checked) == 1
    os.utime(copied, ns=(1, 1))  # perhaps another file
    assert run_sra2(*train_on(copied, "train.steps=8")).returncode == 0 and len(checked) == 2


def test_what_a_store_says_of_itself_is_looked_at_at_each_start(run_sra2, copied):
    assert run_sra2(*train_on(copied)).returncode == 0
    before = copied.stat()
    with h5py.File(copied, "r+") as f:
        f.attrs.modify("scale", 2.0)  # in place
    os.utime(copied, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert copied.stat().st_size == before.st_size
    line = one_line(run_sra2(*train_on(copied, "train.steps=6")), 1)
    assert "the checksum of 'attributes' is wrong" in line


# Two processes.

TOGETHER = """
import hashlib, json, sys
import torch.distributed.elastic.multiprocessing as api
from pathlib import Path
from sra2cli.core import launcher, processes

start = api.start_processes  # as ever, but of this file


def of_this_file(name, python, *, args, **more):
    return start(name, python, args={k: (__file__, *a[2:]) for k, a in args.items()}, **more)


api.start_processes = of_this_file
here, asked = Path(__file__).parent, json.loads(Path(__file__).with_name("asked.json").read_text())


def runs(rank):
    from sra2cli.config import recipe
    from sra2cli.training import store_check
    from sra2cli.training.engine import Engine
    from sra2cli.training.train import train

    update, scaled = Engine.update, []

    def weights(engine):
        found = hashlib.sha256()
        for parameter in engine.objective.parameters():
            found.update(parameter.detach().numpy().tobytes())
        return found.hexdigest()

    def overflowing(self, raws):
        if not self.scaler.is_enabled():
            return update(self, raws)
        if rank == 1 and self.step == 2:
            raws[0].noise[:] = float("inf")
        before = weights(self)
        update(self, raws)
        scaled.append([self.step, self.scaler.get_scale(), before, weights(self)])

    Engine.update = overflowing
    said = {}
    for name, settings in asked["runs"].items():
        wanted = recipe.load("digits-sit", settings)
        try:
            said[name] = train(wanted, Path(asked["store"]), here / name)["step"]
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    (here / f"{rank}.json").write_text(json.dumps({"said": said, "scaled": scaled}))
    store_check.SMALL = 0  # for what the command itself asks for


from sra2cli.cli import app

if launcher.launched():
    with processes.group("cpu") as group:
        runs(group.rank)
        app()
else:
    app()
"""
BOTH = [*TINY, "train.steps=6", "log.every=1", "align.sra.depth=1", "align.sra.teacher_depth=2"]
# Adam divides by the size of a gradient: where that is next to nothing, the last digit of a sum
# over processes moves a weight by a share of lr.
UNTIL = [*BOTH, "align.sra2.until=3", "align.sra.until=2", "train.lr=1e-4"]


@pytest.fixture(scope="module")
def together(digits_store, tmp_path_factory):
    """Three trainings of the same two processes, as starting them takes long: `until`, `fp16`,
    and by the command itself one on a damaged store, which ends it."""
    folder = tmp_path_factory.mktemp("together")
    damaged = damage(Path(shutil.copy(digits_store, folder / "damaged.h5")))
    fp16 = [*BOTH, "align.sra2.depth=2", "train.precision=fp16"]
    asked = {"store": str(digits_store), "runs": {"until": UNTIL, "fp16": fp16}}
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "together.py").write_text(TOGETHER)
    command = ["train", "--processes", "2", "--device", "cpu", "--recipe", "digits-sra2"]
    command += ["--data", str(damaged), "--out", str(folder / "damaged")]
    command += sets("train.steps=50", "log.save_every=10")
    done = subprocess.run(
        [sys.executable, str(folder / "together.py"), *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return folder, ranks, done


def saved(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-00000006" / f"{name}.safetensors")


def test_two_processes_train_on_when_methods_are_off(together, digits_store, tmp_path):
    folder, ranks, _ = together
    assert [rank["said"]["until"] for rank in ranks] == [6, 6]
    train(recipe.load("digits-sit", UNTIL), digits_store, tmp_path / "one")
    for name in ("model", "ema", "heads"):
        one, two = saved(tmp_path / "one", name), saved(folder / "until", name)
        assert one.keys() == two.keys() and one
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=1e-6)


def test_an_overflow_in_one_process_skips_the_step_in_both(together):
    folder, ranks, _ = together
    assert [rank["said"]["fp16"] for rank in ranks] == [6, 6]
    first, second = (rank["scaled"] for rank in ranks)
    assert first == second and [row[0] for row in first] == [1, 2, 3, 4, 5, 6]
    scales = [row[1] for row in first]
    _, scale, before, after = first[2]
    assert before == after and scale == scales[1] / 2
    assert any(row[2] != row[3] for row in first[:2]) and first[5][2] != first[5][3]
    run = folder / "fp16"
    path = run / "checkpoints" / "step-00000006" / "training.pt"
    assert torch.load(path, weights_only=True)["scaler"]["scale"] == scales[-1]
    for name in ("model", "ema", "heads"):
        assert all(tensor.isfinite().all() for tensor in saved(run, name).values())


def test_damage_that_one_process_finds_stops_both_with_one_line(together):
    folder, _, done = together
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the checksum of 'moments' is wrong" in errors[0], done.stderr
    assert "Traceback" not in done.stderr
    assert not list((folder / "damaged" / "checkpoints").iterdir())


# Recipes on recipes.


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_recipe_changes_one_nested_setting_of_its_base(tmp_path):
    mine = write(tmp_path / "mine.yaml", "base: digits-sra2\nalign: {sra2: {layers: 2}}\n")
    wanted = recipe.load("digits-sra2", ["align.sra2.layers=2", "name=mine"])
    assert recipe.load(mine) == wanted and wanted.align["sra2"].weight == 4
    none = write(tmp_path / "none.yaml", "base: mine\nalign: {sra2: null}\nname: digits-sit\n")
    assert recipe.load(none) == recipe.load("digits-sit")


def test_a_base_lies_beside_the_file_or_on_a_path_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "shared" / "low.yaml", "base: digits-sit\ntrain: {lr: 0.5, steps: 7}\n")
    for base in ("../shared/low.yaml", tmp_path / "shared" / "low.yaml"):
        write(tmp_path / "mine" / "middle.yaml", f"base: {base}\ntrain: {{steps: 8}}\nseed: 3\n")
        write(tmp_path / "mine" / "top.yaml", "base: middle\ntrain: {lr: 0.25}\n")
        found = recipe.load("mine/top.yaml", ["seed=4"])
        assert (found.train.lr, found.train.steps, found.seed) == (0.25, 8, 4)
        assert found.name == "top" and found.model == recipe.load("digits-sit").model
    write(tmp_path / "digits-sit.yaml", "base: digits-sit\nseed: 5\n")  # the packaged one
    assert recipe.load("digits-sit.yaml") == recipe.load("digits-sit", ["seed=5"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: a.yaml"}, "is its own base"),
        ({"a": "base: b", "b": "base: c", "c": "base: a.yaml"}, "is its own base: a → b → c"),
        ({"a": "base: ../x/a.yaml"}, "is its own base"),
        ({"a": "base: digitz-sra2"}, "unknown recipe 'digitz-sra2'; did you mean 'digits-sra2'?"),
        ({"a": "base: b.yaml"}, "no recipe file"),
        ({"a": "base: [digits-sit]"}, "'base' is the name or path of a recipe"),
        ({"a": "base: b", "b": "just text"}, "b.yaml holds no settings"),
    ],
)
def test_bases_that_cannot_be(tmp_path, files, message):
    for name, text in files.items():
        write(tmp_path / "x" / f"{name}.yaml", text)
    with pytest.raises(SetupError) as caught:
        recipe.load(str(tmp_path / "x" / "a.yaml"))
    assert message in str(caught.value)


def test_a_base_cannot_be_set_by_an_option(tmp_path):
    """It would come too late; what is said must not send in a circle."""
    with pytest.raises(SetupError) as caught:
        recipe.load("digits-sit", ["base=digits-sra2"])
    assert "did you mean 'base'" not in str(caught.value)


def test_all_faults_are_said_at_once(run_sra2, tmp_path):
    text = "base: digits-sra2\ntrain: {stepz: 1, lr: -1}\nalign: {sra2: {wieght: 2}, srb: {}}\n"
    train_ = ["train", "--data", "a.h5", "--recipe", write(tmp_path / "a.yaml", text)]
    line = one_line(run_sra2(*train_, "--set", "seed=x"), 2)
    for fault in (
        "unknown key 'train.stepz'; did you mean 'train.steps'?",
        "'train.lr' must be above 0, not -1.0",
        "unknown key 'align.sra2.wieght'; did you mean 'align.sra2.weight'?",
        "unknown key 'align.srb'",
        "'seed' takes a whole number, not 'x'",
    ):
        assert line.count(fault) == 1, (fault, line)


def test_what_a_recipe_leaves_open_the_store_says(run_sra2, digits_store, tmp_path):
    text = "base: digits-sra2\ndata: {classes: null, channels: null, latent: null, vae: null}\n"
    command = ["train", "--recipe", write(tmp_path / "open.yaml", text), "--data", digits_store]
    command += ["--out", "run", *sets("train.steps=2")]
    for steps in (2, 3):
        done = run_sra2(*command, "--set", f"train.steps={steps}")
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stderr.splitlines() if "taken from" in line]
        assert said == [f"classes 10, channels 16, latent 8: taken from {digits_store}"]
    data = Run(tmp_path / "run").recipe.data
    assert (data.classes, data.channels, data.latent) == (10, 16, 8)
    part = run_sra2("train", "--recipe", "digits-sit", "--data", digits_store, "--dry-run",
                    *sets("data.latent=null"))  # fmt: skip
    assert part.returncode == 0 and "latent 8: taken from" in part.stderr


def test_all_that_does_not_fit_the_store_is_said_with_what_accepts_it(run_sra2, digits_store):
    command = ["train", "--recipe", "digits-sit", "--data", digits_store, "--dry-run"]
    wrong = ["data.classes=7", "data.channels=4", "data.latent=16", "data.vae=f00d"]
    line = one_line(run_sra2(*command, *sets(*wrong)), 2)
    for what in (
        "10 classes, 16 latent channels (VAE digits), 8x8 latents",
        "the recipe wants 7, 4, 16",
        "another VAE",
        "(f00d)",
    ):
        assert what in line
    accept = re.findall(r"--set (\S+)", line)
    assert [option.partition("=")[0] for option in accept] == [w.partition("=")[0] for w in wrong]
    assert run_sra2(*command, *sets(*wrong, *accept)).returncode == 0


def test_recipes_are_listed_with_a_line_each(run_sra2):
    listed = run_sra2("recipes")
    assert listed.returncode == 0
    for name in recipe.names():
        lines = [line for line in listed.stdout.splitlines() if name in re.split(r"[│\s]+", line)]
        assert any(recipe.headline(name) in line for line in lines), name
    found = json.loads(run_sra2("recipes", "--json").stdout)
    assert found == {name: recipe.headline(name) for name in recipe.names()}


def test_a_recipe_is_shown_with_all_it_inherits(run_sra2, tmp_path):
    tree = json.loads(run_sra2("recipes", "xl-sra2", "--json").stdout)
    assert "base" not in tree and recipe.from_dict(tree) == recipe.load("xl-sra2")
    assert tree["data"]["classes"] == 1000 and tree["model"]["size"] == "XL/2"
    assert tree["align"]["sra2"]["depth"] == 8 and tree["train"]["batch"] == 256
    shown = run_sra2("recipes", "xl-sra2", "--set", "train.lr=1e-3").stdout
    write(tmp_path / "shown.yaml", shown)
    assert recipe.load("shown.yaml") == recipe.load("xl-sra2", ["train.lr=1e-3"])
    line = one_line(run_sra2("recipes", "xl-sra3"), 2)
    assert "unknown recipe 'xl-sra3'; did you mean" in line


# Files that may be a DiT's.


@pytest.fixture
def official(golden) -> dict[str, torch.Tensor]:
    return golden("sit_official.npz").state_dict()


@pytest.mark.parametrize("name", ["DiT-XL-2-256x256.pt", "fast-DiT-B.pt", "DiT_x.pt"])
def test_a_dit_is_refused_by_its_name(run_sra2, official, tmp_path, digits_store, name):
    torch.save({"ema": official}, tmp_path / name)
    line = one_line(run_sra2("sample", name, "--num-heads", 4, "--num", 1), 2)
    assert f"{name} is a DiT by its name" in line and "--kind sit" in line
    start = ["train", "--recipe", "digits-sit", "--data", digits_store, "--init", name]
    assert "--kind sit" in one_line(run_sra2(*start, "--num-heads", 4), 2)
    assert load(name, num_heads=4, kind="sit").kind == "SiT"
    with pytest.raises(SetupError, match="--kind is one of sit, lightningdit, repa, not 'dit'"):
        load(name, num_heads=4, kind="dit")


@pytest.mark.parametrize(
    "name", ["LightningDiT-x.pt", "MaskDiT-x.pt", "MMDiT.pt", "DiT-runs/sit.pt", "a-DiT-x.pt"]
)
def test_other_names_are_opened(official, tmp_path, capsys, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    torch.save(official, tmp_path / name)
    assert open_network(tmp_path / name, num_heads=4).about["kind"] == "SiT"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(str(tmp_path / name))
    assert "taken for a SiT as SiT trains them: linear path, velocity; DiT files" in said


@pytest.mark.parametrize("args", [Namespace(model="DiT-XL/2"), {"model": "DiT-XL/2"}])
def test_what_a_file_says_of_itself_is_not_overridden(run_sra2, official, tmp_path, args):
    torch.save({"ema": official, "args": args}, tmp_path / "sit.pt")
    draw = ["sample", "sit.pt", "--num-heads", 4, "--num", 1]
    for options in ([], ["--kind", "sit"]):
        line = one_line(run_sra2(*draw, *options), 2)
        assert "sit.pt was trained as a DiT-XL/2 (its args say so)" in line
    torch.save({"ema": official, "args": Namespace(model="SiT-XL/2")}, tmp_path / "sit.pt")
    assert load(tmp_path / "sit.pt", num_heads=4).kind == "SiT"


def test_nothing_is_assumed_of_our_own_files(kept, capsys):
    file = kept / "checkpoints" / "step-00000008" / "ema.safetensors"
    name = shutil.copy(file, kept.parent / "DiT-by-name.safetensors")
    assert open_network(Path(name)).about["kind"] == "sra2"
    assert "taken for" not in capsys.readouterr().err


# Judging what the digits' network does not know.


@pytest.fixture
def undrawn(monkeypatch):
    def drawn(*_, **__):
        raise AssertionError("images were drawn")

    monkeypatch.setattr("sra2cli.sampling.sample.draw", drawn)


@pytest.mark.parametrize("options", [[], ["--metrics", "fd-digits"]])
@pytest.mark.parametrize("source", ["run", "run@8", "run/checkpoints/step-00000008"])
def test_a_run_on_other_images_is_not_judged_by_the_digits(
    run_sra2, kept, undrawn, options, source
):
    about = json.loads((kept / "run.json").read_text())
    about["store"]["info"]["vae_fingerprint"] = "0123456789abcdef"
    (kept / "run.json").write_text(json.dumps(about))
    line = one_line(run_sra2("eval", source, "--num", 4, *options), 2)
    assert "--ref" in line and ("fd-digits knows the digits alone" in line) == bool(options)
    assert not (kept / "evals").exists()


@pytest.mark.parametrize("options", [[], ["--metrics", "fd-digits"]])
def test_samples_of_other_images_are_not_judged_by_the_digits(run_sra2, tmp_path, options):
    (tmp_path / "s").mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32)).save(tmp_path / "s" / f"{i:06d}.png")
    vae = {"name": "other", "fingerprint": "0123456789abcdef", "decoder": "f00d"}
    about = {"complete": True, "num": 2, "labels": None, "vae": vae}
    (tmp_path / "s" / "samples.json").write_text(json.dumps(about))
    assert "--ref" in one_line(run_sra2("eval", "s", *options), 2)
    about["vae"] |= {"name": "digits", "fingerprint": "cace73639a0a5d76"}
    (tmp_path / "s" / "samples.json").write_text(json.dumps(about))
    judged = run_sra2("eval", "s", *options, "--json")
    assert judged.returncode == 0 and json.loads(judged.stdout)["fd-digits"] > 0
