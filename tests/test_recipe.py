import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from sra2cli.config import recipe
from sra2cli.core.errors import SetupError
from sra2cli.models.build import config_of

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", recipe.names())
def test_packaged_recipes_load_build_and_come_back(name):
    loaded = recipe.load(name)
    assert loaded.name == name
    assert recipe.from_dict(yaml.safe_load(yaml.safe_dump(loaded.to_dict()))) == loaded
    config = config_of(loaded)
    assert all(settings.depth <= config.depth for settings in loaded.align.values())
    method = loaded.method.replace("none", "sit").replace("+", "-")
    about = {"digits", "emoji", "coco", "b", "l", "xl", "xl1", "vavae", "512", "cosine"}
    about |= {"lightningdit", "mmdit"}
    named = [part for part in name.split("-") if part not in about]  # of the methods
    assert ("-".join(named) or "sit") == method
    assert (loaded.data.latent == 64) == name.endswith("-512")


def test_digits_recipes_differ_in_alignment_alone():
    sit, sra2 = recipe.load("digits-sit"), recipe.load("digits-sra2")
    assert {k.split(".")[0] for k in recipe.differences(sit, sra2)} == {"align", "name"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.wieght=2", "unknown key 'align.wieght'; did you mean 'align.sra.weight'?"),
        (
            "align.sra2.wieght=2",
            "unknown key 'align.sra2.wieght'; did you mean 'align.sra2.weight'",
        ),
        ("train.stepz=2", "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        ("train.steps=many", "'train.steps' takes a whole number, not 'many'"),
        ("train.steps=1.5", "'train.steps' takes a whole number, not 1.5"),
        ("train.steps=true", "'train.steps' takes a whole number, not True"),
        ("train.lr=fast", "'train.lr' takes a number, not 'fast'"),
        ("train=3", "'train' takes settings, not 3"),
        ("train.betas=[0.9]", "'train.betas' takes 2 numbers"),
        ("align.sra2.objective=huber", "'align.sra2.objective' is one of smooth-l1"),
        ("align.sra2.window=[0.5, 0.5]", "'align.sra2.window' is [a, b] with"),
        ("train.batch=0", "'train.batch' must be above 0, not 0"),
        ("train.ema=1", "'train.ema' lies in [0, 1), not 1.0"),
        ("train.betas=[-0.5, 0.9]", "'train.betas[0]' lies in [0, 1)"),
        ("train.lr=.nan", "'train.lr' takes a finite number"),
        ("train.lr=1e999", "'train.lr' takes a finite number"),
        ("train.weight_decay=-1", "must not be negative"),
        ("seed=99999999999999999999", "'seed' lies in [0, 2^63)"),
        ("align.repa.hidden=0", "'align.repa.hidden' must be above 0"),
        ("model.size=B/2", "'model.depth' is fixed by size B/2"),
        ("nonsense", "--set takes key=value, not 'nonsense'"),
        ("train.lr=[", "--set train.lr: '[' is not a value"),
        ("seed.x=1", "'seed' takes a whole number, not {'x': 1}"),
    ],
)
def test_bad_settings_name_the_key_and_the_fix(override, message):
    with pytest.raises(SetupError) as caught:
        recipe.load("digits-sra2", [override])
    assert message in str(caught.value)


def test_overrides_are_typed_and_may_add_a_method():
    loaded = recipe.load(
        "digits-sit", ["train.lr=1e-4", "align.sra.teacher_depth=3", "align.sra.depth=1", "seed=5"]
    )
    assert (loaded.train.lr, loaded.seed, loaded.method) == (1e-4, 5, "sra")


def test_unknown_recipe_offers_the_nearest():
    with pytest.raises(
        SetupError, match="unknown recipe 'digitz-sra2'; did you mean 'digits-sra2'"
    ):
        recipe.load("digitz-sra2")


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    with pytest.raises(SetupError, match="no recipe file"):
        recipe.load(str(file))
    file.write_text("model: {size: S/2}\n")
    assert recipe.load(str(file)).name == "mine"
    file.write_text("a: [")
    with pytest.raises(SetupError, match="is not a YAML file"):
        recipe.load(str(file))
    file.write_text("just text")
    with pytest.raises(SetupError, match="holds no settings"):
        recipe.load(str(file))


def test_impossible_networks_are_refused():
    for override in ("model.size=B/3", "data.latent=33"):
        with pytest.raises(SetupError, match="model: "):
            config_of(recipe.load("digits-sit", ["model={size: B/2}", override]))


@pytest.mark.slow
def test_recipes_travel_in_the_wheel(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "from sra2cli.config import recipe; print(recipe.folder(), recipe.load('digits-sra2').name)"
    )
    found = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {[str(tmp_path / 'site'), *sys.path]!r}; {code}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.split() == [str(tmp_path / "site" / "sra2cli" / "recipes"), "digits-sra2"]
