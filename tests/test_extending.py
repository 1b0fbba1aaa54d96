"""docs/architecture.md names one room and one row for each kind of new thing: here each is done
with a toy, in this file alone."""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from conftest import one_line
from PIL import Image
from torch import nn

from sra2cli.align.contract import Alignment, windowed
from sra2cli.config import methods, recipe
from sra2cli.config.checks import Count, settings
from sra2cli.config.methods import Method, MethodSettings
from sra2cli.core.errors import SetupError
from sra2cli.data import conditions, sources
from sra2cli.data.sources.layout import Source
from sra2cli.data.store import Store
from sra2cli.data.store_info import RowSet
from sra2cli.encoders import open as first_stages
from sra2cli.encoders.first_stage import FirstStage, to_uint8, unscaled
from sra2cli.evaluation import scores
from sra2cli.extraction import encode, makers
from sra2cli.models import build
from sra2cli.models.contract import Backbone, Condition, Shape
from sra2cli.models.layers import patchify, unpatchify
from sra2cli.tables import axes
from sra2cli.tables import methods as table
from sra2cli.training.counting import method_cost

SHORT = ["train.steps=4", "train.batch=8", "log.every=2", "log.save_every=2", "log.preview_every=0"]
SHORT += ["log.tensorboard=false"]


def sets(*overrides: str) -> list[str]:
    return [part for o in (*SHORT, *overrides) for part in ("--set", o)]


# An alignment method: its settings with a check of their own, its file, its row.


@settings
class Toy(MethodSettings):
    depths: tuple[int, int] = (1, 3)
    weight: float = 0.5
    power: Count = 2

    def __post_init__(self) -> None:
        if self.power > 4:
            raise ValueError("'power' is at most 4 for a toy")


class ToyAlignment(Alignment):
    """Two taps at once, and a head that is modulated by c."""

    def __init__(self, settings: Toy, shape: Shape, *, feature_width: int | None = None):
        super().__init__()
        self.settings = settings
        self.head = nn.Linear(2 * shape.width, shape.patch**2 * shape.channels)
        self.modulation = nn.Linear(shape.width, shape.patch**2 * shape.channels)

    @property
    def depths(self):
        return self.settings.depths

    def forward(self, taps, inputs):
        tokens = torch.cat([taps[depth] for depth in self.depths], dim=2)
        predicted = self.head(tokens) + self.modulation(inputs.c)[:, None]
        error = predicted.float() - patchify(inputs.z, 2)
        return windowed(error.abs().pow(self.settings.power).mean(dim=(1, 2)), inputs.t, (0, 1))


@pytest.fixture
def toy_method(monkeypatch):
    row = Method(Toy, ToyAlignment, "Toy", {"B": {"power": 3}})
    monkeypatch.setitem(methods.METHODS, "toy", row)


def test_a_method(toy_method, run_sra2, digits_store, monkeypatch):
    loaded = recipe.load("digits-sit", ["align.toy.power=3"])
    assert loaded.method == "toy" and loaded.align["toy"].power == 3
    for override, message in [
        ("align.toy.powr=3", "did you mean 'align.toy.power'?"),
        ("align.toy.power=0", "'align.toy.power' must be above 0"),
        ("align.toy.power=5", "'align.toy.power' is at most 4 for a toy"),
        ("align.toi.power=3", "did you mean 'align.toy.power'?"),
    ]:
        with pytest.raises(SetupError) as caught:
            recipe.load("digits-sit", [override])
        assert message in str(caught.value)
    assert recipe.load("digits-sra2", ["align.toy.weight=1"]).method == "sra2+toy"
    run = run_sra2(
        "train", "--recipe", "digits-sit", "--data", digits_store, "--out", "toy", "--json",
        *sets("align.toy.power=2"),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["last"]["toy"] > 0
    row = axes.rows("depth", recipe.load("digits-sra2"))[0]
    assert row.baseline
    (swept,) = [r for r in axes.rows("lambda", loaded, "0.25") if not r.baseline]
    assert swept.recipe.align["toy"].weight == 0.25
    cost = method_cost(recipe.load("digits-sit", ["align.toy.power=2"]))
    assert cost.heads["toy"].parameters > 0 and cost.heads["toy"].macs > 0
    assert "toy" in table.methods() and table.title("toy") == "Toy"
    assert table.method_recipe("B/2", "toy").align["toy"].power == 3
    depth = run_sra2(
        "train", "--recipe", "digits-sit", "--data", digits_store, "--out", "no",
        "--set", "align.toy.depths=[1, 9]",
    )  # fmt: skip
    assert "align.toy.depths is 9, but the network has blocks 1..4" in one_line(depth, 2)


def test_a_method_in_an_ablation(toy_method, run_sra2, digits_store):
    """Its cells are those of any other, and what they take is timed."""
    ablate = ["ablate", "lambda", "--recipe", "digits-sit", "--data", digits_store, "--dry-run"]
    process = run_sra2(*ablate, "--set", "align.toy.power=2", "--values", "0.5,1", "--json")
    assert process.returncode == 0, process.stderr
    cells = json.loads(process.stdout)["cells"]
    assert [c["cell"] for c in cells] == ["sit-seed0", "toy-seed0", "toy-weight1-seed0"]


# A backbone.


@dataclass(frozen=True)
class ToyConfig:
    depth: int
    width: int
    patch: int
    channels: int
    latent: int
    classes: int

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.depth, self.patch, self.channels, self.latent, self.classes)

    def to_dict(self):
        return asdict(self)


class ToyBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, stream, c):
        register, tokens = stream  # it carries more than patch tokens
        return register + tokens.mean(dim=1), tokens + self.linear(tokens + c[:, None])


class ToyBackbone(Backbone):
    kind = "toy"

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config = config
        self.enter = nn.Linear(config.patch**2 * config.channels, config.width)
        self.time, self.label = nn.Linear(1, config.width), nn.Embedding(11, config.width)
        self.blocks = nn.ModuleList(ToyBlock(config.width) for _ in range(config.depth))
        self.leave = nn.Linear(config.width, config.patch**2 * config.channels)

    @classmethod
    def configure(cls, model, data):
        size = (model.depth or 2, model.width or 32, model.patch or 2)
        return ToyConfig(*size, data.channels, data.latent, data.classes)

    @classmethod
    def from_config(cls, config):
        return cls(ToyConfig(**config))

    def embed(self, x_t, t, condition):
        tokens = self.enter(patchify(x_t, self.config.patch))
        c = self.time(t[:, None]) + self.label(condition.y)
        return (torch.zeros_like(c), tokens), c

    def velocity(self, stream, c):
        return unpatchify(self.leave(stream[1]), self.config.patch)

    def patch_tokens(self, stream):
        return stream[1]


def test_a_backbone(run_sra2, digits_store, monkeypatch):
    monkeypatch.setitem(build.BACKBONES, "toy", ToyBackbone)
    toy = ["model.kind=toy", "align.sra2.depth=2", "align.sra={depth: 1, teacher_depth: 2}"]
    train = ["train", "--recipe", "digits-sit", "--data", digits_store, "--out", "toy"]
    process = run_sra2(*train, *sets(*toy), "--json")
    assert process.returncode == 0, process.stderr
    assert {"sra2", "sra"} <= set(json.loads(process.stdout)["last"])
    again = run_sra2(*train, *sets(*toy, "train.steps=6"), "--json")
    assert json.loads(again.stdout)["step"] == 6
    drawn = run_sra2("sample", "toy", "--num", 4, "--steps", 3, "--cfg", 1.5, "--json")
    assert drawn.returncode == 0, drawn.stderr
    cost = method_cost(recipe.load("digits-sit", toy))
    assert cost.network.macs > 0 and cost.external["sra_teacher"].parameters > 0
    missing = run_sra2(*train, "--set", "model.kind=tou")
    assert "no backbone 'tou'; did you mean 'toy'?" in one_line(missing, 2)


# A first stage whose statistics are one number a channel.


class ToyStage(FirstStage):
    name, channels, factor, fingerprint = "toy", 3, 4, "t0y"
    scale, shift = (2.0, 0.5, 1.0), (0.0, 0.1, -0.2)

    def __init__(self, device):
        self.device = torch.device(device)

    @property
    def decoder(self):
        return "t0y"

    def encode(self, images):
        x = images.permute(0, 3, 1, 2).float().to(self.device) / 127.5 - 1
        mean = nn.functional.avg_pool2d(x, self.factor)
        return torch.cat([mean, torch.full_like(mean, 0.01)], dim=1)

    def decode(self, z, *, rounding="truncate"):
        x = unscaled(z.float(), scale=self.scale, shift=self.shift)
        return to_uint8(nn.functional.interpolate(x, scale_factor=self.factor), rounding)


@pytest.fixture
def toy_stage(monkeypatch):
    row = first_stages.Opener(
        lambda name: name == "toy", lambda name, *, device, offline, precision: ToyStage(device)
    )
    rows = {"toy": row, **first_stages.FIRST_STAGES}
    monkeypatch.setattr(first_stages, "FIRST_STAGES", rows)


def test_a_first_stage(toy_stage, run_sra2, digits_folder, tmp_path):
    made = run_sra2(
        "extract", digits_folder, "--out", "a.h5", "--vae", "toy", "--resolution", 32, "--preview"
    )
    assert made.returncode == 0, made.stderr
    store = Store(tmp_path / "a.h5")
    assert store.info.scale == ToyStage.scale and store.info.shift == ToyStage.shift
    own = ["data={classes: null, channels: null, latent: null, vae: null}", "model.patch=2"]
    train = ["train", "--recipe", "digits-sra2", "--data", "a.h5", "--out", "run"]
    process = run_sra2(*train, *sets(*own))
    assert process.returncode == 0, process.stderr
    assert "classes 10, channels 3, latent 8: taken from a.h5" in process.stderr
    drawn = run_sra2("sample", "run", "--num", 2, "--steps", 2, "--json")
    assert drawn.returncode == 0, drawn.stderr
    assert json.loads(drawn.stdout)["vae"]["fingerprint"] == "t0y"


# A row set of the store, and a condition made of it.


def brightness(options, info, group):
    rows = {"brightness": RowSet((1,), "float32", "the mean of the pixels", "v1")}

    def make(images):
        return {"brightness": images.float().mean(dim=(1, 2, 3))[:, None] / 255}

    return makers.Maker(rows, make)


class DimmerConfig(ToyConfig):
    @property
    def shape(self) -> Shape:
        return replace(super().shape, classes=0, condition="brightness")


class Dimmer(ToyBackbone):
    """Told how bright the digit is, and nothing else."""

    kind = "dimmer"

    @classmethod
    def configure(cls, model, data):
        return DimmerConfig(**super().configure(model, data).to_dict())

    @classmethod
    def from_config(cls, config):
        return cls(DimmerConfig(**config))

    def embed(self, x_t, t, condition):
        tokens = self.enter(patchify(x_t, self.config.patch))
        c = self.time(t[:, None]) + self.time(condition.pooled)
        return (torch.zeros_like(c), tokens), c

    def null(self, condition, drop=None):
        none = torch.zeros_like(condition.pooled)
        if drop is not None:
            none = torch.where(drop[:, None], none, condition.pooled)
        return Condition(pooled=none)


def test_a_row_set_and_a_condition(run_sra2, digits_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "MAKERS", [*encode.MAKERS, brightness])
    made = ["extract", digits_folder, "--out", "a.h5", "--vae", "digits", "--resolution", 32]
    assert run_sra2(*made, "--flip").returncode == 0
    store = Store(tmp_path / "a.h5")
    store.verify()
    assert store.info.sets["brightness"].made_by == "the mean of the pixels"
    rows = store.read("brightness", np.array([3, 0]), np.array([False, True]))
    pixels = np.asarray(Image.open(digits_folder / store.names[3])) / 255
    assert rows.shape == (2, 1) and rows[0, 0] == pytest.approx(pixels.mean(), abs=1e-6)

    def of_rows(store, rows, mirrored, scalars, shape):
        return Condition(pooled=store.read("brightness", rows, mirrored))

    def drawn(asked, shape):
        return Condition(pooled=torch.full((len(asked.indices), 1), 0.2))

    kind = conditions.ConditionKind(of_rows, drawn)
    monkeypatch.setitem(conditions.CONDITIONS, "brightness", kind)
    monkeypatch.setitem(build.BACKBONES, "dimmer", Dimmer)
    train = ["train", "--recipe", "digits-sit", "--data", "a.h5", "--out", "run"]
    process = run_sra2(*train, *sets("model.kind=dimmer"))
    assert process.returncode == 0, process.stderr
    guided = run_sra2("sample", "run", "--num", 4, "--steps", 3, "--cfg", 2)
    assert guided.returncode == 0, guided.stderr


# A metric.


def test_a_metric(run_sra2, digits_folder, monkeypatch):
    def spread(compared, feature):
        return float(compared.fake.rows[feature].std())

    row = scores.Metric("digits", "features", "rows", "↑", spread)
    monkeypatch.setitem(scores.METRICS, "spread", row)
    process = run_sra2(
        "eval", digits_folder, "--metrics", "fd-digits,spread", "--out", "e.json", "--json"
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["spread"] > 0


# A source of images.


def test_a_source(run_sra2, tmp_path, monkeypatch):
    def open_raw(root, files, choice):
        """Raw 8x8 greys, 64 bytes each."""
        data = files[0].read_bytes()

        def read(index):
            import io

            grey = np.frombuffer(data[64 * index : 64 * (index + 1)], np.uint8).reshape(8, 8)
            buffer = io.BytesIO()
            Image.fromarray(grey).save(buffer, "png")
            return buffer.getvalue()

        names = [f"{i}.png" for i in range(len(data) // 64)]
        return Source(root, names, None, [], read)

    monkeypatch.setitem(sources.OPENERS, ".raw", sources.Opener(open_raw))
    pixels = np.random.default_rng(0).integers(256, size=(5, 64), dtype=np.uint8)
    (tmp_path / "greys.raw").write_bytes(pixels.tobytes())
    made = ["extract", "greys.raw", "--out", "a.h5", "--vae", "digits", "--resolution", 32]
    process = run_sra2(*made, "--workers", 0, "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["images"] == 5
