"""Kinds of files that people edit or others write: recipes, records, statistics; and their letters.

A fault in one of them is one line, with the right exit code.
"""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line

from sra2cli.config import recipe
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data import npz
from sra2cli.evaluation.metrics import Statistics, frechet_distance
from sra2cli.runs.run import Run

ROOT = Path(__file__).parent.parent
SMALL = ["train.steps=2", "train.batch=8", "log.every=1", "log.preview_every=0"]
SMALL += ["log.tensorboard=false"]
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]


def bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefg", "bcdefgh")]  # noqa: B905
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lr: 1.0}\nalign: {}\ntrain: {steps: 3}", "line 3: 'train' stands twice"),
        ("train:\n  lr: 1e-4\n  'lr': 1e-3", "line 3: 'lr' stands twice"),
        ("align:\n  sra2: {depth: 1, depth: 2}", "line 2: 'depth' stands twice"),
        ("train: {batch: 010}", "'train.batch' takes a whole number, not '010'"),
        ("train: {batch: 1:30}", "'train.batch' takes a whole number, not '1:30'"),
        ("train: {lr: 010}", "'train.lr' takes a number, not '010'"),
        ("train: {lr: 1:30.5}", "'train.lr' takes a number, not '1:30.5'"),
        ("train: {lr: 2024-01-01}", "'train.lr' takes a number, not '2024-01-01'"),
        ("on: 1", "line 1: the key 'on' is not text"),
        ("train:\n  1: 2", "line 2: the key '1' is not text"),
        ("? [a]\n: b", "line 1: the key is not text"),
        ("seed: " + "1" * 5000, "Exceeds the limit"),
        ("seed: " + "1" * 4000, "'seed' lies in"),
        ("seed: !!timestamp x", "it is not a YAML file"),
        ("seed: !!int ''", "it is not a YAML file"),
        ("train: {mirror: !!bool maybe}", "it is not a YAML file"),
        ("train: !!set {a, b}", "it is not a YAML file"),
        ("train: " + "[" * 2000, "it is nested too deeply"),
        ("a: " + "{a: " * 900 + "}" * 900, "it is nested too deeply"),
        ("train: {lr: .nan}", "'train.lr' takes a finite number"),
        ("train: &a [*a]", "an alias stands inside what it names"),
        (bomb(), "it unfolds to more than 10,000 values"),
        ("# " + "x" * 200_000, "it is longer than"),
        ('name: "\\ud800"', "half of a surrogate pair"),
        ('name: "a\\0b"', "a character of code 0"),
        ("name: ../elsewhere", "'name' must be a file name"),
        ("false", "holds no settings"),
    ],
    ids=lambda text: text[:20],
)
def test_a_recipe_that_means_nothing_or_two_things_is_refused(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SetupError) as caught:
        recipe.load(str(file))
    assert message in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["010", "{lr: 1, lr: 2}", "[" * 2000, "1:30", "2024-01-01"])
def test_what_is_set_by_an_option_is_read_in_the_same_way(value):
    with pytest.raises(SetupError):
        recipe.load("digits-sit", [f"train.batch={value}"])


def test_what_is_clear_stays(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: 2024-01-01 üben\ndata: {vae: 0123456789012345, mirror: yes}\n"
        "train: {<<: &t {lr: 1e-4, steps: 3}, steps: 1_000, ema: .5, betas: [0.9, 0.95]}\n",
        encoding="utf-8",
    )
    loaded = recipe.load(str(file))
    assert (loaded.name, loaded.data.vae) == ("2024-01-01 üben", "0123456789012345")
    assert (loaded.train.lr, loaded.train.steps, loaded.train.ema) == (1e-4, 1000, 0.5)
    again = tmp_path / "again.yaml"
    again.write_text(recipe.text_of(loaded.to_dict()), encoding="utf-8")
    assert recipe.load(str(again)) == loaded


@pytest.fixture(scope="module")
def trained(digits_store, tmp_path_factory) -> Path:
    """A run of two steps."""
    from sra2cli.training.train import train

    out = tmp_path_factory.mktemp("trained") / "run"
    train(recipe.load("digits-sit", SMALL), digits_store, out)
    return out


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def changed(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


@pytest.mark.parametrize(
    "values",
    [{"store": []}, {"store": {"info": 5, "checksums": {}, "path": ""}}, {"init": 5}, {"id": []}],
    ids=str,
)
def test_a_run_json_of_other_types_is_one_line(run, run_sra2, values, digits_store):
    changed(run / "run.json", **values)
    said = one_line(
        run_sra2(
            "train", "--recipe", "digits-sit", *SETTINGS, "--data", digits_store, "--out", run
        ),
        2,
    )
    assert "its run.json is damaged" in said


@pytest.mark.parametrize("key", ["scale", "channels", "class_names", "extra", "resolution"])
def test_a_run_json_with_another_store_is_one_line(run, key):
    about = json.loads((run / "run.json").read_text("utf-8"))
    about["store"]["info"][key] = {"a": -1}
    (run / "run.json").write_text(json.dumps(about), "utf-8")
    with pytest.raises(SetupError, match=key):
        Run(run).about["store"]


@pytest.mark.parametrize(
    "line", ["{", "[]", "5", '{"loss": 1}', '{"step": "x"}', '{"step": 1, "loss": []}', "[" * 9999]
)
def test_a_bad_row_of_metrics_is_named(run, run_sra2, digits_store, line):
    rows = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    (run / "metrics.jsonl").write_text("\n".join([rows[0], line, *rows[1:], "cut"]), "utf-8")
    command = ["--recipe", "digits-sit", *SETTINGS, "--data", digits_store, "--out", run]
    said = one_line(run_sra2("train", *command, "--device", "cpu"), 1)
    assert f"line 2 of {run}/metrics.jsonl is not a row of metrics" in said


def test_a_checkpoint_json_of_other_types_is_one_line(run, run_sra2):
    for values in ({"files": []}, {"step": "x"}, {"files": {"ema.safetensors": 5}}, {"step": -1}):
        changed(run / "checkpoints/step-00000002/checkpoint.json", **values)
        assert "is damaged" in one_line(run_sra2("sample", run, "--num", "1"), 1)


def samples(folder: Path, count: int = 3, **record: object) -> Path:
    from PIL import Image

    folder.mkdir()
    for i in range(count):
        pixels = np.full((32, 32, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.png")
    about = {"num": count, "complete": True, **record}
    (folder / "samples.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num": "3"}, "'num'"),
        ({"num": -3}, "'num'"),
        ({"num": 2.5}, "'num'"),
        ({"labels": [1]}, "1 labels of 3 images"),
        ({"labels": "abc"}, "'labels'"),
        ({"labels": [0, 1, "2"]}, "'labels.2'"),
        ({"vae": 5}, "'vae'"),
        ({"complete": "yes"}, "'complete'"),
        ({"num": 10**12}, "999999999997 of 1000000000000 samples are missing"),
    ],
    ids=str,
)
def test_a_samples_json_of_other_types_is_one_line(tmp_path, run_sra2, values, message):
    folder = samples(tmp_path / "smp", **values)
    assert message in one_line(run_sra2("eval", folder, "--metrics", "fd-digits"), 1)


def matrix(*rows: list[float]) -> dict[str, np.ndarray]:
    return {"mu": np.zeros(len(rows)), "sigma": np.array(rows)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (matrix([1.0, 2.0], [2.0, 1.0]), "sigma is not a covariance"),
        (matrix([0.0, 1.0], [1.0, 0.0]), "sigma is not a covariance"),
        (matrix([1.0, 0.5], [0.0, 1.0]), "sigma is not a covariance"),
        (matrix([1.0, np.nan], [np.nan, 1.0]), "sigma holds values that are not finite"),
        ({**matrix([1.0, 0.0], [0.0, 1.0]), "mu": np.array(["a", "b"])}, "mu must be float"),
        ({"mu": np.zeros(2), "sigma": np.array([{}], object)}, "sigma cannot be read"),
    ],
)
def test_statistics_that_cannot_be_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(DataError, match=message):
        npz.statistics(tmp_path / "ref.npz", "", 2)


def test_statistics_rounded_to_float32_or_of_few_images_are_taken(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 12))
    low = np.cov(rows.T)  # of rank 4, with eigenvalues a little below 0
    for sigma in (low, low.astype(np.float32), np.asfortranarray(low), np.zeros((12, 12))):
        np.savez(tmp_path / "ref.npz", mu=rows.mean(axis=0), sigma=sigma)
        _, found = npz.statistics(tmp_path / "ref.npz", "", 12)
        assert np.array_equal(found, sigma)


def test_a_distance_is_not_negative():
    rows = np.random.default_rng(0).normal(size=(5, 12))
    own = Statistics(rows.mean(axis=0), np.cov(rows.T), 5)
    assert 0 <= frechet_distance(own, own) < 1e-9
    impossible = Statistics(own.mean, np.eye(12) - 20 * np.ones((12, 12)), 5)
    with pytest.raises(DataError, match="cannot be"):
        frechet_distance(own, impossible)


def declared(file: Path, key: str, shape: str, descr: str = "<f8") -> None:
    """An .npz whose array says that it is of a shape, and holds 64 bytes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    with zipfile.ZipFile(file, "w") as out:
        out.writestr(f"{key}.npy", data)


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(-8,)", "(3,)", "None", "'a'", "((((", "(10**12,)", "(8.5,)"]
)
def test_an_array_that_declares_what_it_does_not_hold_is_not_read(tmp_path, shape):
    for key in ("mu", "arr_0", "meta"):
        declared(tmp_path / "ref.npz", key, shape)
        with pytest.raises(DataError, match=r"ref\.npz"):
            if key == "arr_0":
                npz.image_shape(tmp_path / "ref.npz")
            elif key == "meta":
                npz.meta(tmp_path / "ref.npz")
            else:
                npz.statistics(tmp_path / "ref.npz", "", 8)


@pytest.mark.parametrize(
    "change", [{"count": -5}, {"count": "many"}, {"size": [-1, 2]}, {"extractor": 5}], ids=str
)
def test_what_statistics_say_of_themselves_is_checked(tmp_path, run_sra2, change):
    folder, ref = samples(tmp_path / "smp"), tmp_path / "ref.npz"
    judge = ["eval", folder, "--metrics", "fd-digits"]
    assert run_sra2(*judge, "--save-stats", ref).returncode == 0
    arrays = dict(np.load(ref))
    arrays["meta"] = np.array(json.dumps({**json.loads(str(arrays["meta"])), **change}))
    np.savez(ref, **arrays)
    said = one_line(run_sra2(*judge, "--ref", ref), 1)
    assert f"its meta is damaged: '{next(iter(change))}" in said


def test_text_is_utf8_whatever_the_locale():
    """Every file that is opened as text says so."""
    for file in (*ROOT.glob("sra2cli/**/*.py"), *ROOT.glob("tools/*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(
                node.func, ast.Attribute | ast.Name
            ):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
            text = name in ("read_text", "write_text") or (
                name == "open" and any(mode in ("r", "w", "a", "r+", "x") for mode in modes)
            )
            said = any(
                word.arg in ("encoding", "force_zip64") for word in node.keywords
            )  # or of a zip
            assert not text or said or "utf-8" in modes, f"{file}:{node.lineno}"


def test_a_recipe_with_umlauts_and_an_arrow_in_any_locale(tmp_path):
    """On streams and in a locale that know neither."""
    (tmp_path / "green.yaml").write_text("name: grün → blau\n# Größe\n", encoding="utf-8")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env |= {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sra2cli", "recipes", "green.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rb"gr\xfcn \u2192 blau" in done.stdout


def test_names_that_are_not_utf8_work_or_are_refused_by_name(
    tmp_path, run_sra2, digits_folder, digits_store, trained
):
    odd = tmp_path / os.fsdecode(b"od\xff")
    shutil.copytree(digits_folder / "0", odd / "img" / os.fsdecode(b"\xe4"))
    options = ["--vae", "digits", "--resolution", "32", "--device", "cpu"]
    assert run_sra2("extract", odd / "img", "--out", odd / "s.h5", *options).returncode == 0
    command = ["train", "--recipe", "digits-sit", *SETTINGS, "--data", digits_store]
    assert "is not UTF-8" in one_line(run_sra2(*command, "--out", odd / "run"), 2)
    assert not (odd / "run").exists()
    draw = ["--num", "2", "--steps", "2", "--device", "cpu"]
    assert run_sra2("sample", trained, *draw, "--out", odd / "smp").returncode == 0
    judge = ["--metrics", "fd-digits", "--ref", odd / "img"]
    assert run_sra2("eval", odd / "smp", *judge).returncode == 0
    shutil.copytree(trained, odd / "run")
    for name in ("sample", "eval"):
        more = [*draw, *(judge if name == "eval" else [])]
        assert "is not UTF-8" in one_line(run_sra2(name, odd / "run", *more), 2)


def test_a_zip_that_is_no_npz_is_one_line(tmp_path):
    for data in (b"", b"PK\x03\x04", os.urandom(500)):
        (tmp_path / "ref.npz").write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            npz.keys_of(tmp_path / "ref.npz")
    whole = io.BytesIO()
    np.savez(whole, mu=np.zeros(2), sigma=np.eye(2))
    for at in range(30, len(whole.getvalue()), 7):
        damaged = bytearray(whole.getvalue())
        damaged[at] ^= 0x55
        (tmp_path / "ref.npz").write_bytes(damaged)
        try:
            npz.statistics(tmp_path / "ref.npz", "", 2)
        except DataError as error:
            assert "ref.npz" in str(error)
