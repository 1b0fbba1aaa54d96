"""docs/json.md: the keys of its tables are those that commands print, with the types it says.

What takes long is held against the page where it is run anyway: `ablate`, `demo`, `suggest` and
measured `cost` in their own tests.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from documented import check, tables
from PIL import Image
from test_docs import pages

from sra2cli.cli import app
from sra2cli.config import recipe
from sra2cli.config.methods import METHODS
from sra2cli.core import console
from sra2cli.evaluation.scores import METRICS

SOURCE = "\n".join(
    file.read_text(encoding="utf-8")
    for file in (Path(__file__).parents[1] / "sra2cli").rglob("*.py")
)
TINY = ["train.steps=4", "train.batch=8", "log.every=2", "log.save_every=2", "log.keep_every=2"]
TINY += ["log.tensorboard=false", "log.preview_every=0"]
SETS = [part for setting in TINY for part in ("--set", setting)]


@pytest.fixture
def printed(run_sra2):
    """What a command with --json prints, which is one object and nothing else."""

    def run(*arguments: object) -> dict[str, Any]:
        done = run_sra2(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout, parse_constant=pytest.fail)
        assert isinstance(found, dict)
        return found

    return run


def all_of(title: str, *objects: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    """Together the objects have every key of the table.

    Args:
        but: keys that they cannot have here, by the last part of their names.
    """
    met = set().union(*(check(title, one) for one in objects))
    left = {path[-1] for path in tables()[title].keys() - met}
    assert left == set(but), title
    assert all(f'"{name}"' in SOURCE for name in but), title


def test_every_command_has_a_table():
    for name, command in pages.commands(app).items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options and name in tables(), name
        if "--dry-run" in options and name != "export":
            assert f"{name} --dry-run" in tables(), name


def test_machine_and_recipes(printed):
    all_of("doctor", printed("doctor"))
    known = printed("recipes")
    assert known == {name: recipe.headline(name) for name in recipe.names()}
    all_of("recipes", printed("recipes", "b-sra2"))


def test_images_and_stores(printed, digits_folder, tmp_path):
    own = ["--resolution", 16, "--widths", "8,8", "--channels", 2, "--batch", 4, "--steps", 4]
    stage = ["vae", digits_folder, "--out", "my-vae", *own, "--workers", 0]
    all_of("vae --dry-run", printed(*stage, "--dry-run"))
    all_of("vae", printed(*stage))
    told = tmp_path / "told"
    told.mkdir()
    for number, file in enumerate(sorted(digits_folder.rglob("*.png"))[:3]):
        with Image.open(file) as image:
            image.save(told / f"{number}.png")
        (told / f"{number}.txt").write_text("a digit")
    common = ["--vae", "my-vae", "--resolution", 16, "--workers", 0]
    words = ["--captions", "txt", "--text-encoder", "words"]
    plan = ["extract", told, "--out", "a.h5", *common, *words, "--precision", "bf16"]
    all_of("extract --dry-run", printed(*plan, "--dry-run"))
    stored = printed(*plan, "--preview")
    all_of("extract", stored, printed("extract", digits_folder, "--out", "b.h5", *common))
    all_of("extract --check", printed("extract", "--check", "a.h5", "--preview"))


def test_a_run_and_what_is_made_of_it(printed, digits_store, tmp_path):
    training = ["train", "--recipe", "digits-sra2", "--data", digits_store, *SETS, "--out", "run"]
    on_gpu = ("measured_gb", "measured_micro_batch")
    all_of("train --dry-run", printed(*training, "--dry-run"), but=(*on_gpu, "text_encoder_gmacs"))
    others = tuple(METHODS.keys() - {"sra2"})
    terms = ("cosine", "contrastive", "class", "mfu", "of_matrix_rate")
    all_of("train", printed(*training), but=(*others, *terms))

    draw = ["sample", "run", "--num", 12, "--steps", 2]
    drawn = printed(*draw, "--self-guidance", 1.5, "--labels", "balanced", "--out", "s")
    of_text = ("text_encoder", "crop", "latent_scale", "latent_shift")
    all_of("sample", drawn, but=of_text)
    guided = {"self_guidance", "self_interval"}
    assert {path[-1] for path in check("sampling", drawn["sampling"])} > guided
    all_of("sample --grid", printed("sample", "run", "run@2", "--grid", "--num", 2, "--steps", 2))

    judged = printed("eval", "s")
    check("eval", judged)
    all_of("environment", judged["environment"])
    names = {path[-1] for path in tables()["eval"]}
    assert names > METRICS.keys() and not judged["settings"]["metrics"] - METRICS.keys()
    sweep = printed("eval", "run", "--num", 12, "--steps", 2, "--cfg", "1,1.5")
    own = {path[-1] for path in tables()["eval RUN"]}
    rows = [{k: v for k, v in row.items() if k in own} for row in sweep["rows"]]
    all_of("eval RUN", {**sweep, "rows": rows})
    for row in sweep["rows"]:
        check("eval", {k: v for k, v in row.items() if k not in own})

    all_of("figures pca", printed("figures", "pca", "run", "--times", 0.5))
    beside = ("encoder", "encoder_r2", "encoder_cka", "encoder_cknna")
    probed = printed("figures", "probe", "run", "--num", 24, "--times", 0.5)
    check("figures probe", probed)
    assert {path[-1] for path in tables()["figures probe"]} > {*beside}
    all_of("report", printed("report", "run"))
    all_of("runs", printed("runs", "run"))
    all_of("export", printed("export", "run", "--to", "out", "--dry-run"))


def test_what_is_not_a_number_is_null(capsys):
    console.print_json({"a": [float("nan"), 1.5, -float("inf")], "b": (1, {"c": float("inf")})})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, None], "b": [1, {"c": None}]}
