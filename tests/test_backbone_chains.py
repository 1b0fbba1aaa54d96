"""Every backbone through all rooms: extract, train, kill, resume, sample, eval; on the digits."""

import json
import random
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, finished, one_line
from test_encoders import WIDTH, dinov2  # noqa: F401  (a fixture)
from test_objective import digits, make_batch
from test_train import assert_same, command, killed_run, run

from sra2cli.config import recipe
from sra2cli.core import clock
from sra2cli.data import digits as images_of_digits
from sra2cli.data.store import Store
from sra2cli.models.ema import Ema, tokens_of
from sra2cli.runs.run import Run
from sra2cli.tables import ablate, paper
from sra2cli.training.objective import Objective

SMALL = {"size": "custom", "depth": 3, "width": 48, "heads": 3, "patch": 1}
LIGHTNING = {"path": {"times": "lognormal"}, "train": {"cosine_loss": 1.0, "grad_clip": None}}
BACKBONES = {  # name → what its recipe has beside the digits'
    "sit": {"model": {**SMALL, "kind": "sit"}},
    "lightningdit": {"model": {**SMALL, "kind": "lightningdit"}, **LIGHTNING},
    "reg": {"model": {**SMALL, "kind": "reg", "patch": 2, "class_width": WIDTH}},
}
PRESETS = {"sit": "sra2", "lightningdit": "lightningdit", "reg": "reg"}
FEW = ["--steps", "3", "--num", "9"]


def write_recipe(folder: Path, backbone: str, **align) -> Path:
    """A recipe file: the digits' with another backbone and other methods."""
    tree = recipe.load("digits-sit").to_dict()
    for key, value in BACKBONES[backbone].items():
        tree[key] = value if key == "model" else {**tree[key], **value}
    tree["align"] = align
    file = folder / f"{backbone}.yaml"  # JSON is YAML too
    file.write_text(json.dumps({**tree, "name": backbone}))
    return file


def align_of(backbone: str, encoder: Path) -> dict:
    """SRA 2; for REG beside its own alignment."""
    reg = {"reg": {"depth": 2, "hidden": 64, "encoder": str(encoder)}}
    return {"sra2": {"depth": 2}, **(reg if backbone == "reg" else {})}


def sra2(*arguments: object) -> str:
    done = finished([sys.executable, "-m", "sra2cli", *map(str, arguments)])
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def pictures(folder: Path) -> dict[str, bytes]:
    found = {p.name: p.read_bytes() for p in folder.glob("0*.png")}
    assert len(found) == 9
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """All digits, of which the tests below take the first."""
    folder = tmp_path_factory.mktemp("digits") / "digits"
    images_of_digits.write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def store(digits_folder, dinov2, tmp_path_factory) -> Path:  # noqa: F811
    """Latents, features and class features, by one command."""
    out = tmp_path_factory.mktemp("stores") / "digits.h5"
    made = ["--vae", "digits", "--resolution", 32, "--encoder", dinov2]
    sra2("extract", digits_folder, "--out", out, *made, "--device", "cpu")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_chain(backbone, digits_folder, dinov2, tmp_path):  # noqa: F811
    """From images to a number, with SRA 2; REG with its own alignment too."""
    out = tmp_path / "digits.h5"
    patch = BACKBONES[backbone]["model"]["patch"]
    more = ["--encoder", dinov2] if backbone == "reg" else []
    made = ["--vae", "digits", "--resolution", 32, "--feature-patch", patch, *more]
    sra2("extract", digits_folder, "--out", out, *made, "--device", "cpu")
    assert ("class_feature" in Store(out).info.sets) == (backbone == "reg")

    file = write_recipe(tmp_path, backbone, **align_of(backbone, dinov2))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = ["train.steps=12", "log.preview_every=6"]
    begun = [
        [str(file) if part == "digits-sit" else part for part in arguments]
        for arguments in (command(out, to, *settings, processes=2) for to in (whole, killed))
    ]
    run(begun[0])
    assert sum(p.numel() for p in trained(whole).values()) <= 1_000_000
    assert len(list((whole / "previews").glob("*.png"))) == 2
    killed_run(begun[1], killed, 2, random.Random(0))
    assert_same(whole, killed)

    drawn = {}
    for name, options in {
        "all": ["--batch", 9],
        "some": ["--batch", 2],
        "processes": ["--batch", 4, "--processes", 2],
    }.items():
        to = tmp_path / name
        preset = ["--preset", PRESETS[backbone]]
        sra2("sample", whole, *preset, *FEW, *options, "--out", to, "--device", "cpu")
        drawn[name] = pictures(to)
    assert drawn["all"] == drawn["some"] == drawn["processes"]
    judged = json.loads(sra2("eval", tmp_path / "all", "--metrics", "fd-digits", "--json"))
    straight = ["eval", whole, "--metrics", "fd-digits", *preset, *FEW, "--json"]
    (row,) = json.loads(sra2(*straight, "--device", "cpu", "--batch", 5))["rows"]
    assert row["fd-digits"] == pytest.approx(judged["fd-digits"], rel=1e-6)


def trained(out: Path) -> dict[str, torch.Tensor]:
    return Run(out).checkpoint().weights("ema")


def test_a_short_chain_of_lightningdit(run_sra2, digits_store, tmp_path):
    """Its losses are logged, its preset draws it, its exported weights open as another's do."""
    file = write_recipe(tmp_path, "lightningdit", sra2={"depth": 2})
    sets = ["--set", "train.batch=4", "--set", "log.every=1", "--set", "log.tensorboard=false"]
    train = ["train", "--recipe", file, "--data", digits_store, "--out", "run", *sets]
    assert run_sra2(*train, "--set", "train.steps=2", "--device", "cpu").returncode == 0
    row = Run(tmp_path / "run").metrics()[-1]
    total = row["denoise"] + row["cosine"] + row["sra2"]
    assert row["loss"] == pytest.approx(total, abs=1e-5)
    draw = ["sample", "run", "--preset", "lightningdit", *FEW, "--device", "cpu"]
    assert run_sra2(*draw, "--out", "samples").returncode == 0
    (tmp_path / "file").mkdir()
    weights = tmp_path / "run" / "checkpoints" / "step-00000002" / "ema.safetensors"
    (tmp_path / "file" / "lightning.safetensors").write_bytes(weights.read_bytes())
    from_file = ["sample", "file/lightning.safetensors", *draw[2:], "--vae", "digits"]
    assert run_sra2(*from_file, "--out", "again").returncode == 0
    assert pictures(tmp_path / "samples") == pictures(tmp_path / "again")
    judged = run_sra2("eval", "samples", "--metrics", "fd-digits", "--json")
    assert json.loads(judged.stdout)["fd-digits"] > 0


def test_reg_in_short(run_sra2, store, dinov2, tmp_path):  # noqa: F811
    """Class features from the store to figures; refusals are one line."""
    file = write_recipe(tmp_path, "reg", **align_of("reg", dinov2))
    sets = ["--set", "train.batch=4", "--set", "log.every=1", "--set", "log.tensorboard=false"]
    train = ["train", "--recipe", file, "--data", store, "--out", "run", *sets, "--device", "cpu"]
    wide = run_sra2(*train, "--set", "model.class_width=768", "--dry-run")
    assert "--set model.class_width=24" in one_line(wide, 2)
    assert run_sra2(*train, "--set", "train.steps=2").returncode == 0
    row = Run(tmp_path / "run").metrics()[-1]
    total = row["denoise"] + 0.03 * row["class"] + 0.5 * row["reg"] + row["sra2"]
    assert row["loss"] == pytest.approx(total, abs=1e-5)
    figure = run_sra2("figures", "pca", "run", "--times", "0.5", "--device", "cpu")
    assert figure.returncode == 0 and list((tmp_path / "run" / "figures").glob("pca*.png"))
    probed = run_sra2("figures", "probe", "run", "--times", "0.5", "--num", 16, "--json")
    assert json.loads(probed.stdout)["results"][0]["images"] == 16
    image = next((tmp_path / "run" / "figures").glob("*.png"))
    refused = run_sra2("figures", "pca", "run", "--image", image, "--device", "cpu")
    assert "--index" in one_line(refused, 2)


def test_figures_of_reg_need_class_features(run_sra2, digits_store, store, dinov2, tmp_path):  # noqa: F811
    file = write_recipe(tmp_path, "reg")
    train = ["train", "--recipe", file, "--out", "run", "--device", "cpu", "--data"]
    refused = run_sra2(*train, digits_store, "--dry-run")
    assert "no class features" in one_line(refused, 2)
    assert run_sra2(*train, store, "--set", "train.steps=1").returncode == 0
    figure = run_sra2("figures", "pca", "run", "--data", digits_store, "--device", "cpu")
    assert "no class features" in one_line(figure, 2)


def test_edm_is_for_the_linear_path(run_sra2, digits_store):
    sets = ["--set", "path.kind=cosine", "--set", "train.steps=1", "--device", "cpu"]
    train = ["train", "--recipe", "digits-sit", "--data", digits_store, "--out", "run", *sets]
    assert run_sra2(*train).returncode == 0
    assert "linear path" in one_line(run_sra2("sample", "run", "--solver", "edm", "--num", 1), 2)


SIX_STEPS = GOLDEN / "six_steps_backbones.json"
METHODS = {
    "none": {},
    "repa": {"repa": {"depth": 2, "hidden": 64}},
    "sra": {"sra": {"depth": 1, "teacher_depth": 3}},
    "sra2": {"sra2": {"depth": 2}},
    "reg": {"reg": {"depth": 2, "hidden": 64}},
    "reg+sra2": {"reg": {"depth": 2, "hidden": 64}, "sra2": {"depth": 1}},
    "repa+sra2": {"repa": {"depth": 3, "hidden": 64}, "sra2": {"depth": 2}},
}
COMBINATIONS = [
    (backbone, method)
    for backbone in BACKBONES
    for method in METHODS
    if backbone == "reg" or "reg" not in method
]


def six_steps(backbone: str, method: str) -> list[dict[str, float]]:
    """Losses of six steps in fp32, on Gaussian data, as its recipe trains."""
    tree = digits(METHODS[method]).to_dict()
    for key, value in BACKBONES[backbone].items():
        tree[key] = value if key == "model" else {**tree[key], **value}
    settings = recipe.from_dict(tree)
    objective, train = Objective(settings, feature_width=WIDTH), settings.train
    shape = objective.network.shape
    ema = Ema(objective.network, train.ema)
    optimizer = torch.optim.AdamW(
        objective.parameters(), lr=train.lr, betas=train.betas, weight_decay=0
    )
    rows = []
    for step in range(6):
        batch = make_batch(step, 8)
        draw = lambda index, shape, step=step: torch.from_numpy(  # noqa: E731
            clock.normals(0, clock.Purpose(index), step, range(8), shape)
        )
        batch = replace(batch, features=draw(5, (shape.tokens, WIDTH)), noise=draw(4, shape.state))
        if shape.class_width:
            batch = replace(batch, class_feature=draw(2, (WIDTH,)))
        losses = objective(batch, None, partial(tokens_of, ema.model))
        losses["loss"].backward()
        if train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(objective.parameters(), train.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(objective.network)
        rows.append({name: loss.item() for name, loss in losses.items()})
    return rows


@pytest.mark.parametrize(("backbone", "method"), COMBINATIONS)
def test_recorded_losses(backbone, method):
    """Recorded with `python tests/test_backbone_chains.py`."""
    recorded = json.loads(SIX_STEPS.read_text())[backbone][method]
    for found, expected in zip(six_steps(backbone, method), recorded, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def here(cells, judged, *, common, slots):
    """Cells' commands, in this process."""
    for cell in cells:
        for arguments in cell.commands(judged, common):
            sra2(*arguments)
    return {}


def test_systems_compares_runs_and_checkpoints(
    run_sra2,
    digits_store,
    store,
    dinov2,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    """Table 3: each by its method's preset, in results that are kept, beside the paper's rows."""
    sets = ["--set", "train.steps=1", "--set", "log.tensorboard=false", "--device", "cpu"]
    for backbone, data in (("lightningdit", digits_store), ("reg", store)):
        file = write_recipe(tmp_path, backbone, **align_of(backbone, dinov2))
        train = ["train", "--recipe", file, "--data", data, "--out", backbone, *sets]
        assert run_sra2(*train).returncode == 0
    weights = tmp_path / "lightningdit" / "checkpoints" / "step-00000001" / "ema.safetensors"
    (tmp_path / "their.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.setattr(ablate, "run_cells", here)
    how = ["--steps", 2, "--num", 8, "--metrics", "fd-digits", "--vae", "digits", "--out", "out"]
    compare = ["ablate", "systems", "lightningdit@1", "reg", "their.safetensors", *how]
    compare += ["--device", "cpu", "--jobs", 1, "--json"]
    done = run_sra2(*compare)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["label"]: row for row in found["tables"]["systems"]["rows"]}
    ours = {label: row for label, row in rows.items() if row["metrics"]}
    assert list(ours) == [
        "lightningdit@1 (lightningdit)",
        "reg (reg)",
        "their.safetensors (lightningdit)",
    ]
    values = [row["metrics"]["fd-digits"]["mean"] for row in ours.values()]
    assert values[0] == values[2] != values[1]  # a run's EMA, and its file alone
    assert rows["paper: SiT-XL/2 + SRA 2, 800 epochs"]["paper"] == {"fid": 1.52, "is": 316.2}
    sampling = {}
    for file in (tmp_path / "out" / "results").glob("*/*.json"):
        row = json.loads(file.read_text())
        if isinstance(row, dict):
            sampling[file.parent.name.split(".")[0]] = row["how"]["sampling"]
    assert sampling["reg"]["cfg"] == 2.3 and sampling["lightningdit@1"]["shift"] == 1 / 0.3
    text = (tmp_path / "out" / "systems.md").read_text()
    assert "steps: 2 (preset reg: 250)" in text
    assert (tmp_path / "out" / "systems.csv").exists()
    again = json.loads(run_sra2(*compare, "--dry-run").stdout)
    assert [cell["done"] for cell in again["cells"]] == [True, True, True]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give some"),
        (["no-such-run"], "no-such-run"),
        (["a", "--step", "3"], "RUN@STEP"),
        (["a", "--seeds", "2"], "--seeds"),
    ],
)
def test_systems_that_cannot_be_compared_are_one_line(run_sra2, arguments, says):
    assert says in one_line(run_sra2("ablate", "systems", *arguments), 2)


def test_systems_open_files_that_do_not_say_all(run_sra2, golden, tmp_path):
    torch.save({"ema": golden("sit_official.npz").state_dict()}, tmp_path / "their.pt")
    compare = ["ablate", "systems", "their.pt", "--metrics", "is", "--vae", "digits", "--dry-run"]
    assert "num_heads" in one_line(run_sra2(*compare), 2)
    wrong = run_sra2(*compare, "--num-heads", 4, "--kind", "lightningdit")
    assert "--kind" in one_line(wrong, 2)
    refused = run_sra2("ablate", "depth", "--num-heads", 4)
    assert "checkpoints of others" in one_line(refused, 2)


def test_vavae_rows_of_table_2():
    at = 400_000
    assert paper.fid_after("XL/1", "none", at, channels=32) == 4.9
    assert paper.fid_after("XL/1", "sra2", at, channels=32) == 4.4
    assert paper.fid_after("XL/1", "none", at, channels=4) is None


if __name__ == "__main__":
    found: dict[str, dict] = {backbone: {} for backbone in BACKBONES}
    for backbone, method in COMBINATIONS:
        found[backbone][method] = six_steps(backbone, method)
    SIX_STEPS.write_text(json.dumps(found, indent=1) + "\n")
