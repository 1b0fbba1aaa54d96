"""Our training step and sampling beside REPA's and SRA's own code: medians of paired ratios.

    git clone https://github.com/sihyun-yu/REPA; git clone https://github.com/vvvvvjdy/SRA
    pip install timm                                        # their networks are made of its layers
    python benchmarks/peers.py --repa REPA --sra SRA        # CPU: B/2, batch 8; CUDA: XL/2, 32

Both take turns in one process, and the order changes from round to round, so that a machine that
drifts slows both alike. A ratio above 1 says that ours is faster. Our step is what `sra2 train`
runs, data from a store included; theirs (`peer_code.py`) finds its batch on the device. REPA's
encoder runs on neither side: its features are ready. Sampling is of latents. A mode with "/" is
ours over theirs as released, in fp32: what a user of theirs would see. "floor" is our step over its
matrix products at the rate that products reach in the same run. Prints a table and writes
benchmarks/results/peers-DEVICE.json as it goes; what is there of the same shape and commits is not
measured again, unless --again.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, make_engine, write
from peer_code import Mode, Peer, PeerStep

from sra2cli.config import recipe
from sra2cli.core import console
from sra2cli.core.errors import SetupError
from sra2cli.data.store import Store
from sra2cli.encoders.first_stage import float32
from sra2cli.sampling.draw import cast_once, draw_latents, in_parts, unit
from sra2cli.sampling.settings import Sampling
from sra2cli.tables.timing import middle_half, release
from sra2cli.training.counting import flops_per_image
from sra2cli.training.engine import Engine
from sra2cli.training.rates import matrix_rate, wait
from sra2cli.training.trial import make_store

PAIRS = {"sra": "sra", "sra2": "sra", "repa-stored": "repa"}  # our method, and whose code
FP32, COMPILED = Mode("fp32"), Mode("fp32 compiled", compiled=True)
BF16, FASTEST = Mode("bf16", half=True), Mode("bf16 compiled", half=True, compiled=True)
MODES = {  # ours, theirs
    "fp32": (FP32, FP32),
    "bf16": (BF16, BF16),
    "bf16 compiled": (FASTEST, FASTEST),
    "fp32 compiled / fp32": (COMPILED, FP32),
    "bf16 / fp32": (BF16, FP32),
    "bf16 compiled / fp32": (FASTEST, FP32),
}
OF_CPU = ("fp32", "fp32 compiled / fp32", "bf16 / fp32")
GUIDED = {"scale": 1.8, "interval": (0.0, 0.7)}
DRAWN = {  # solver, steps, guidance
    "Euler": ("euler", 50, {"scale": 1.0, "interval": (0.0, 1.0)}),
    "SDE": ("em", 250, {"scale": 1.0, "interval": (0.0, 1.0)}),
    "SDE guided": ("em", 250, GUIDED),
}


class Ours:
    """Our step, and our samplers on the EMA's network."""

    def __init__(
        self,
        method: str,
        size: str,
        mode: Mode,
        batch: int,
        store: Store,
        device: str,
        together: int | None,
    ):
        settings = [f"model.size={size}", f"train.batch={batch}", "train.micro_batch=null"]
        settings.append(f"train.precision={'bf16' if mode.half else 'fp32'}")
        settings.append(f"train.compile={str(mode.compiled).lower()}")
        settings.append(f"train.tf32={str(device.startswith('cuda')).lower()}")
        kind = size.partition("/")[0].lower()
        self.mode, self.batch, self.device = mode, batch, device
        self.together = together
        self.engine, batches = make_engine(kind, method, store, device, settings)
        self.batches = batches
        self.steps = self.engine.steps_from(batches.from_step(0, 10**6))
        self.frozen: torch.nn.Module | None = None

    def step(self) -> None:
        next(self.steps)

    def sample(self, solver: str, steps: int, scale: float, interval: tuple[float, float]) -> None:
        if self.frozen is None:
            self.frozen = copy.deepcopy(self.engine.ema.model)
            if self.mode.half:
                cast_once(self.frozen, torch.bfloat16)
            if self.mode.compiled:
                self.frozen.compile_blocks()  # type: ignore[operator]
        sampling = Sampling(solver=solver, steps=steps, cfg=scale, interval=interval)  # type: ignore[arg-type]
        device, shape = torch.device(self.device), self.engine.ema.model.shape
        usual = unit(shape) if device.type == "cpu" else self.batch
        together = self.together or usual
        with float32(tf32=device.type == "cuda"), self.mode.autocast(self.device):
            for part, _ in in_parts(range(self.batch), together):
                draw_latents(self.frozen, part, sampling, kind="linear", device=device)  # type: ignore[arg-type]


def paired(
    ours: Callable[[], None], theirs: Callable[[], None], rounds: int, device: str
) -> dict[str, Any]:
    """Seconds of both in turns, and how many times as fast ours is; a first round warms up."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds + 1):
        turns = [("ours", ours), ("theirs", theirs)]
        for name, work in turns if number % 2 else reversed(turns):
            wait(device)
            begun = time.perf_counter()
            work()
            wait(device)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "middle_half": middle_half(ratios),
        "of_best": min(seconds["theirs"]) / min(seconds["ours"]),
        "ours_ms": 1e3 * statistics.median(seconds["ours"]),
        "theirs_ms": 1e3 * statistics.median(seconds["theirs"]),
        "rounds": rounds,
    }


def depths(engine: Engine) -> dict[str, int]:
    """Of the blocks that our recipe aligns, for their code."""
    settings: Any = next(iter(engine.recipe.align.values()))
    depth = int(settings.depth)
    return {"depth": depth, "teacher_depth": int(getattr(settings, "teacher_depth", depth))}


class Sides:
    """Ours and theirs of one method in one mode, on the same images."""

    def __init__(self, method: str, peer: Peer, mode: str, store: Store, how: argparse.Namespace):
        mine, other = MODES[mode]
        self.ours = Ours(method, how.model, mine, how.batch, store, how.device, how.together)
        raw = self.ours.batches.raw(0, range(how.batch)).map(lambda tensor: tensor.to(how.device))
        self.theirs = PeerStep(
            peer,
            how.model,
            **depths(self.ours.engine),
            mode=other,
            device=how.device,
            moments=raw.moments.float(),
            labels=raw.condition.y,
            features=None if raw.features is None else raw.features.float(),
        )
        self.how = how
        self.names = {"ours": method, "theirs": peer.name, "mode": mode}

    def training(self, rate: float) -> list[dict[str, Any]]:
        """rate: of matrix products, FLOP/s."""
        how, engine = self.how, self.ours.engine
        row = paired(self.ours.step, self.theirs.step, how.rounds, how.device)
        engine.check("this benchmark")
        products = how.batch * flops_per_image(engine.recipe, encoder=False) / rate
        floor = row["ours_ms"] / 1e3 / products
        return [{**self.names, "what": "training", **row, "floor": floor}]

    def sampling(self) -> list[dict[str, Any]]:
        how, rows = self.how, []
        for name in how.draw:
            solver, usual, guidance = DRAWN[name]
            steps = how.steps or usual
            work = [
                partial(side.sample, solver, steps, **guidance) for side in (self.ours, self.theirs)
            ]
            row = paired(*work, how.draw_rounds, how.device)
            rows.append({**self.names, "what": f"{name} {steps}", **row})
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--repa", type=Path, help="a checkout of sihyun-yu/REPA")
    parser.add_argument("--sra", type=Path, help="a checkout of vvvvvjdy/SRA")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--model", default="XL/2" if cuda else "B/2")
    parser.add_argument("--batch", type=int, default=32 if cuda else 8)
    parser.add_argument("--rounds", type=int, default=12, help="of training steps; 0: none")
    parser.add_argument("--methods", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    usual = ["fp32", "bf16", "bf16 compiled", "bf16 compiled / fp32"] if cuda else list(OF_CPU)
    parser.add_argument("--modes", nargs="+", default=usual, choices=list(MODES))
    parser.add_argument("--draw", nargs="*", default=list(DRAWN), choices=list(DRAWN))
    parser.add_argument("--draw-rounds", type=int, default=3 if cuda else 12)
    few = None if cuda else 5
    parser.add_argument("--steps", type=int, default=few, help="of samplers; CUDA: 50 and 250")
    parser.add_argument(
        "--together", type=int, help="images of our pass; else as sra2 sample has it"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after that")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    how = parser.parse_args()
    begun, roots = time.perf_counter(), {"repa": how.repa, "sra": how.sra}
    try:
        peers = {name: Peer.at(name, root) for name, root in roots.items() if root is not None}
    except SetupError as error:
        parser.error(str(error))
    if not peers:
        parser.error("give --repa DIR, --sra DIR or both")
    rate = {m: matrix_rate(how.device, 8192 if cuda else 1024, dtype_of(m)) for m in how.modes}
    rows = [] if how.again else measured_before(how, peers)
    done = {(row["ours"], row["mode"], row["what"] == "training") for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        base = recipe.load("b-sit", [f"model.size={how.model}"])
        store = make_store(Path(scratch), base, max(64, how.batch), features=True)
        for trains, method, mode in turns(how):
            late = time.perf_counter() - begun > how.seconds
            if PAIRS[method] not in peers or late or (method, mode, trains) in done:
                continue
            doing = "training" if trains else "sampling"
            console.say(f"{doing}: {method} beside {PAIRS[method].upper()}'s code, {mode}")
            sides = Sides(method, peers[PAIRS[method]], mode, store, how)
            rows += sides.training(rate[mode]) if trains else sides.sampling()
            del sides
            release()
            torch.compiler.reset()
            keep(how, peers, rate, rows)
    show(rows, how)


def turns(how: argparse.Namespace) -> list[tuple[bool, str, str]]:
    """(whether it trains, method, mode). Sampling first: what training leaves of a process's memory
    would slow it. SRA 2's network is SRA's: it is not drawn from twice."""
    pairs = [(method, mode) for method in how.methods for mode in how.modes]
    drawn = [(False, *pair) for pair in pairs if pair[0] != "sra2" and how.draw]
    return drawn + [(True, *pair) for pair in pairs if how.rounds]


def dtype_of(mode: str) -> torch.dtype:
    return torch.bfloat16 if MODES[mode][0].half else torch.float32


def shape_of(how: argparse.Namespace) -> str:
    passes = f", our passes of {how.together}" if how.together else ""
    return f"{how.model}, batch {how.batch}, 256 px, {torch.get_num_threads()} threads{passes}"


def result_file(how: argparse.Namespace) -> Path:
    cuda = how.device.startswith("cuda")
    name = torch.cuda.get_device_name(how.device).replace(" ", "-").lower() if cuda else "cpu"
    return RESULTS / f"peers-{name}.json"


def commits(peers: dict[str, Peer]) -> dict[str, str]:
    return {peer.name: peer.commit for peer in peers.values()}


def measured_before(how: argparse.Namespace, peers: dict[str, Peer]) -> list[dict[str, Any]]:
    """Rows of an earlier call, of the same shape and commits."""
    file = result_file(how)
    shapes = json.loads(file.read_text())["shapes"] if file.exists() else {}
    found = shapes.get(shape_of(how), {})
    rows: list[dict[str, Any]] = found.get("rows", [])
    known = found.get("commits", {})
    return [row for row in rows if known.get(row["theirs"]) == commits(peers).get(row["theirs"])]


def keep(
    how: argparse.Namespace, peers: dict[str, Peer], rate: dict[str, float], rows: list[Any]
) -> None:
    """Write what there is so far."""
    file = result_file(how)
    found = {"commits": commits(peers), "matrix_rate": rate, "rows": rows}
    before = json.loads(file.read_text())["shapes"] if file.exists() else {}
    write(file.stem, {"shapes": {**before, shape_of(how): found}}, how.device)


def show(rows: list[dict[str, Any]], how: argparse.Namespace) -> None:
    """How many times as fast ours is."""
    cells = []
    for row in rows:
        low, high = row["middle_half"]
        floor = f"{row['floor']:.2f}" if "floor" in row else ""
        names = f"{row['ours']} / {row['theirs'].upper()}"
        spread = f"{low:.2f} – {high:.2f}"
        cells.append((names, row["what"], row["mode"], f"{row['ratio']:.2f}", spread, floor))
    title = f"ours over theirs, {how.model}, batch {how.batch}, {how.device}"
    header = ("method / whose code", "", "precision", "times as fast", "middle half", "floor")
    console.print_table(title, header, cells)


if __name__ == "__main__":
    main()
