"""What training costs on this machine: each method in turns with SiT, in one process.

Medians over the rounds, of ratios taken within a round, so that a machine that drifts slows both
sides alike. Warm-up and compiling are kept out. So two engines are there at a time, SiT's and one
other; a method's memory is what it adds to SiT's, once the engine before it is gone.
"""

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sra2cli.config.recipe import from_dict
from sra2cli.config.settings import Recipe
from sra2cli.core import console
from sra2cli.data.batches import to_batch
from sra2cli.data.store import Store
from sra2cli.models.build import shape_of
from sra2cli.tables.methods import STORED, method_recipe, title
from sra2cli.training.engine import resolve_precision
from sra2cli.training.trial import make_store, trial


@dataclass(frozen=True)
class Setting:
    """What is measured. rounds: of each method and SiT in turns, after a warm-up."""

    model: str
    batch: int
    rounds: int
    device: str
    resolution: int = 256

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


def measured(methods: Sequence[str], setting: Setting) -> dict[str, Any]:
    """Forward latency, training throughput and peak memory of each method against SiT.

    A batch that does not fit the GPU is halved, for all methods alike.

    Returns:
        {"rows": one a method, "batch": as it fitted, ...}
    """
    batch = setting.batch
    while True:
        try:
            rows = _rows(methods, setting, batch)
            break
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        release()
        torch.compiler.reset()  # another batch would be compiled with a size that may change
        console.say(f"out of memory: measuring with batch {batch}")
    wanted = resolve_precision(recipe_at(setting, "sit", batch), None, torch.device(setting.device))
    return {
        "model": setting.model,
        "resolution": setting.resolution,
        "batch": batch,
        "rounds": setting.rounds,
        "precision": wanted.train.precision,
        "compiled": setting.cuda,
        "repa_encoder": f"DINOv2-B/14, {'' if setting.cuda else 'not '}compiled as the network, "
        "random weights (they cost the same)",
        "rows": rows,
    }


def release() -> None:
    """Give back the memory of networks that are gone: compiled blocks refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def recipe_at(setting: Setting, method: str, batch: int) -> Recipe:
    tree = method_recipe(setting.model, method, resolution=setting.resolution).to_dict()
    tree["train"] |= {"batch": batch, "group": math.gcd(batch, tree["train"]["group"])}
    return from_dict(tree)


def _rows(methods: Sequence[str], setting: Setting, batch: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    others = [method for method in methods if method != "sit"]
    with tempfile.TemporaryDirectory() as scratch:
        stored = any(method.endswith(STORED) for method in others)
        wide = max(shape_of(recipe_at(setting, name, batch)).class_width for name in methods)
        plain = recipe_at(setting, "sit", batch)
        store = make_store(Path(scratch), plain, max(64, batch), features=stored, class_width=wide)
        base, turns = Subject("sit", setting, batch, store), []
        total = (setting.rounds + 1) * len(others)
        with console.progress(f"measure {setting.model}", total, unit="rounds") as bar:
            for method in others:
                subject = Subject(method, setting, batch, store)
                rounds = []
                for number in range(setting.rounds + 1):
                    found = {"sit": base.times(), method: subject.times()}
                    if number:  # the first compiles, and warms up
                        rounds.append(found)
                    bar.advance(note=title(method))
                turns += [r["sit"] for r in rounds]
                rows.append(subject.row([r[method] for r in rounds], [r["sit"] for r in rounds]))
                del subject
                release()
        return [base.row(turns, turns), *rows]


class Subject:
    """One method that is timed: its engine, and data that are ready on the device."""

    def __init__(self, method: str, setting: Setting, batch: int, store: Store):
        self.method, self.setting, self.batch = method, setting, batch
        self.before = torch.cuda.memory_allocated() if setting.cuda else 0
        device = torch.device(setting.device)
        wanted = resolve_precision(recipe_at(setting, method, batch), None, device)
        live = wanted.encoder is not None and not method.endswith(STORED)
        training, self.engine = trial(wanted, store, setting.device, encoder=live)
        raw = training.batches(setting.device).raw(0, range(batch))
        self.raw = raw.map(lambda tensor: tensor.to(device))
        self.peak: int | None = None
        if setting.cuda:  # what is there before belongs to another method
            self._step()  # compiles, and makes the optimiser's state
            self._wait()
            torch.cuda.reset_peak_memory_stats()
            self._step()
            self.peak = torch.cuda.max_memory_allocated() - self.before

    def times(self) -> dict[str, float]:
        """Seconds of a forward pass of the training, and of a training step."""
        return {"forward": self._timed(self._forward), "step": self._timed(self._step)}

    @torch.no_grad()
    def _forward(self) -> None:
        """The network, its head, and what guides it: encoder or teacher."""
        engine = self.engine
        with engine.autocast():
            batch = to_batch(
                self.raw,
                engine.recipe,
                engine.store,
                engine.device,
                engine.encoder,
                engine.text_encoder,
            )
            engine.objective(batch, None, engine.teacher, engine.frozen_teacher(0))

    def _step(self) -> None:
        self.engine.update([self.raw])

    def _timed(self, work: Callable[[], None]) -> float:
        self._wait()
        begun = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.setting.cuda:
            torch.cuda.synchronize()

    def row(
        self, own: Sequence[dict[str, float]], base: Sequence[dict[str, float]]
    ) -> dict[str, Any]:
        """Medians; percentages against SiT's turns in the same rounds, with their middle half."""
        found: dict[str, Any] = {"method": self.method}
        pairs = list(zip(own, base, strict=True))
        latency = [100 * (a["forward"] / b["forward"] - 1) for a, b in pairs]
        speed = [100 * (b["step"] / a["step"] - 1) for a, b in pairs]
        found["latency_ms"] = 1e3 * statistics.median(a["forward"] for a in own)
        found["images_per_second"] = self.batch / statistics.median(a["step"] for a in own)
        for name, values in (("latency", latency), ("speed", speed)):
            found[f"{name}_percent"] = statistics.median(values)
            found[f"{name}_range"] = middle_half(values)
        found["peak_memory_gb"] = None if self.peak is None else self.peak / 1e9
        return found


def middle_half(values: Sequence[float]) -> list[float]:
    """First and third quartile: what one slow round does not move."""
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]
