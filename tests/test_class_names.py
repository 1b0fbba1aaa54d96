"""--labels by name, and names in pictures."""

import json
import shutil
import time

import numpy as np
import pytest
from conftest import one_line
from PIL import Image

from sra2cli.core.errors import SetupError
from sra2cli.core.pictures import captioned_grid
from sra2cli.data.class_names import numbered

NAMES = ["cat", "Dog", "dog", "tench, Tinca tinca", "crane", "crane", "Tabby Cat", "3"]


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ("balanced", "balanced"),
        ("random", "random"),
        ("0,7,2", "0,7,2"),
        ("cat", "0"),
        (" CAT , tabby cat,5", "0,6,5"),
        ("Dog,dog", "1,2"),  # two that differ in their case alone
        ("tench", "3"),
        ("cat,tench, Tinca tinca,cat", "0,3,0"),
        ("tinca tinca", "3"),
    ],
)
def test_names_are_numbers(labels, numbers):
    assert numbered(labels, NAMES, len(NAMES)) == numbers


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("cta", "no class 'cta'; did you mean 'cat'?"),
        ("cat,tenhc", "no class 'tenhc'; did you mean 'tench, Tinca tinca'?"),
        ("helicopter", "no class 'helicopter'; there are: cat, Dog, dog, tench"),
        ("", "no class ''; there are"),
        ("DOG", "'DOG' is the name of several classes (1 'Dog', 2 'dog'): give the number"),
        ("crane", "'crane' is the name of several classes (4 'crane', 5 'crane'): give the number"),
        ("8", "there is no class 8; classes are 0..7"),
        ("-1", "no class '-1'"),
        ("9" * 5000, "no class '999"),
    ],
)
def test_other_names_are_refused(labels, said):
    with pytest.raises(SetupError) as refused:
        numbered(labels, NAMES, len(NAMES))
    assert said in str(refused.value)


def test_a_number_is_a_number_where_a_class_is_named_so(capsys):
    assert numbered("3", NAMES, len(NAMES)) == "3"
    assert "3 is the number of a class, 'tench, Tinca tinca'; class 7 is named so" in (
        capsys.readouterr().err
    )


def test_a_network_without_names_takes_numbers():
    assert numbered("1,0", [], 2) == "1,0"
    with pytest.raises(SetupError, match="no names of classes are known of this network"):
        numbered("cat", [], 2)


def test_many_are_quick():
    names = [f"a{k}, b, {k} of it" for k in range(1000)]
    begun = time.process_time()
    text = ",".join(map(str, range(1000)))
    assert numbered(text, names, 1000) == text
    assert numbered(",".join(names), names, 1000) == text
    assert time.process_time() - begun < 1


def test_a_run_is_asked_by_name_and_its_pictures_say_them(run_sra2, digits_folder, tmp_path):
    for number, name in enumerate(("cat", "dog")):
        shutil.copytree(digits_folder / str(number), tmp_path / "animals" / name)
    made = ["--vae", "digits", "--resolution", 32]
    assert run_sra2("extract", "animals", "--out", "a.h5", *made).returncode == 0
    settings = ["train.steps=2", "train.batch=8", "log.preview_every=2", "data.classes=2"]
    sets = [part for s in settings for part in ("--set", s)]
    train = ["train", "--recipe", "digits-sit", "--data", "a.h5", "--out", "run", *sets]
    done = run_sra2(*train)
    assert done.returncode == 0, done.stderr
    ask = ["--num", 4, "--solver", "euler", "--steps", 2, "--json"]
    by_name = run_sra2("sample", "run", *ask, "--labels", "Dog,cat,cat", "--out", "a")
    by_number = run_sra2("sample", "run", *ask, "--labels", "1,0,0", "--out", "b")
    assert by_name.returncode == by_number.returncode == 0, by_name.stderr
    about = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert about["labels"] == [1, 0, 0, 1] and about["sampling"]["labels"] == "1,0,0"
    for index in range(4):
        name = f"{index:06d}.png"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    drawn = [np.asarray(Image.open(tmp_path / "a" / f"{i:06d}.png")) for i in range(4)]
    named = captioned_grid(drawn, ["dog", "cat", "cat", "dog"], columns=2)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / "grid.png")), np.asarray(named))
    with Image.open(tmp_path / "run" / "previews" / "step-00000002.png") as preview:
        assert preview.size == captioned_grid(drawn * 4, ["dog"] * 16, columns=4).size
    line = one_line(run_sra2("sample", "run", *ask, "--labels", "dgo"), 2)
    assert "no class 'dgo'; did you mean 'dog'?" in line
    judge = ["eval", "run", "--num", 2, "--metrics", "fd-digits", "--steps", 2]
    assert "did you mean 'cat'?" in one_line(run_sra2(*judge, "--labels", "caat"), 2)
