"""What the training benchmarks share: engines of packaged recipes on random data, results."""

import datetime
import json
from pathlib import Path
from typing import Any

from sra2cli.config import recipe
from sra2cli.core.environment import environment
from sra2cli.data.batches import Batches
from sra2cli.data.store import Store
from sra2cli.models.build import shape_of
from sra2cli.tables.methods import STORED, methods
from sra2cli.training import trial
from sra2cli.training.engine import Engine

METHODS = methods()
__all__ = ["METHODS", "RESULTS", "STORED", "make_engine", "make_store", "write"]
RESULTS = Path(__file__).parent / "results"


def make_store(folder: Path, count: int, *, features: bool) -> Store:
    """Random moments of 256 px images, with class features, and encoder features if asked for."""
    base = recipe.load("b-sit")
    wide = shape_of(recipe.load("b-reg")).class_width
    return trial.make_store(folder, base, count, features=features, class_width=wide)


def make_engine(
    size: str, method: str, store: Store, device: str, settings: list[str]
) -> tuple[Engine, Batches]:
    """What `sra2 train` puts together, and the batches it trains on."""
    wanted = recipe.load(f"{size}-{method.removesuffix(STORED)}", settings)
    live = wanted.encoder is not None and not method.endswith(STORED)
    training, engine = trial.trial(wanted, store, device, encoder=live)
    return engine, training.batches(device)


def write(name: str, result: dict[str, Any], device: str = "cpu") -> None:
    """benchmarks/results/NAME.json, with machine, versions and date."""
    RESULTS.mkdir(exist_ok=True)
    about = {"date": datetime.date.today().isoformat(), "environment": environment(device)}
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, **result}, indent=1) + "\n")
