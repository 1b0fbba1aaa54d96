"""sra2 cost: Table 5 of the paper, what each method adds to SiT.

Parameters and multiply-accumulates are counted from the modules, whatever the machine. Latency,
throughput and memory are measured here, each method in turns with SiT in one process.
"""

import datetime
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sra2cli.config.reading import TypedDict, read_json
from sra2cli.core import console
from sra2cli.core.environment import environment
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import write_json
from sra2cli.tables import paper
from sra2cli.tables.methods import (
    PLAIN,
    STORED,
    method_recipe,
    methods,
    text_share,
    title,
)
from sra2cli.tables.timing import Setting, measured
from sra2cli.training.counting import MethodCost, method_cost

PAPER = "paper, XL/2"
Table = tuple[str, list[str], list[list[str]]]  # title, header, rows
CPU_MODEL = "B/2"  # what a laptop can hold, in minutes
BATCH, ROUNDS = {"cpu": 4, "cuda": 256}, {"cpu": 7, "cuda": 20}


def counted(model: str, methods: Sequence[str], *, resolution: int = 256) -> list[dict[str, Any]]:
    """Parameters and MACs of each method, counted on the meta device; beside the paper's."""
    rows = []
    plain = method_cost(method_recipe(model, PLAIN, resolution=resolution)).macs
    for method in methods:
        wanted = method_recipe(model, method, resolution=resolution)
        cost = method_cost(wanted, stored_features=method.endswith(STORED))
        rows.append(
            {
                "method": method,
                "parameters": cost.network.parameters,
                "external_parameters": sum(c.parameters for c in cost.external.values()),
                "head_parameters": sum(c.parameters for c in cost.heads.values()),
                "gmacs": cost.macs / 1e9,
                "gmacs_percent": 100 * (cost.macs / plain - 1),
                "parts": parts_of(cost),
                "paper": paper.cost("none" if method == "sit" else method),
            }
        )
    return rows


def parts_of(cost: MethodCost) -> dict[str, float]:
    """GMACs by part."""
    parts = {"network": cost.network}
    parts |= {f"{name} head": c for name, c in cost.heads.items()} | cost.external
    return {name: c.macs / 1e9 for name, c in parts.items()}


def cost(
    rows: list[dict[str, Any]],
    model: str,
    *,
    resolution: int = 256,
    measure: bool = True,
    measured_model: str | None = None,
    batch: int | None = None,
    rounds: int | None = None,
    device: str = "cpu",
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure what was counted; the result is also written to `out`, by default in runs/cost if
    there is anything measured.

    Args:
        rows: of `counted`.
        measured_model: None: `model` on a GPU, a smaller one on a CPU.

    Raises:
        SetupError: no such model or resolution.
    """
    names = [row["method"] for row in rows]
    result: dict[str, Any] = {
        "model": model,
        "resolution": resolution,
        "counted": rows,
        "text_encoder": text_share(model, resolution=resolution),
        "measured": None,
        "date": datetime.date.today().isoformat(),
        "environment": environment(device),
    }
    if measure:
        kind = "cuda" if device.startswith("cuda") else "cpu"
        setting = Setting(
            measured_model or (CPU_MODEL if kind == "cpu" else model),
            batch or BATCH[kind],
            rounds or ROUNDS[kind],
            device,
            resolution,
        )
        console.say(
            f"measuring {setting.model} on {result['environment']['device']}, batch {setting.batch}"
        )
        before = clocks(device)
        found = measured(names, setting)
        shares = {r["method"]: r for r in counted(setting.model, names, resolution=resolution)}
        for row in found["rows"]:
            row["gmacs_percent"] = shares[row["method"]]["gmacs_percent"]
        found["order"] = orders(found["rows"])
        found["clocks"] = {"before": before, "after": clocks(device)}
        result["measured"] = found
    file = out or (Path("runs") / "cost" / default_name(result, device) if measure else None)
    result["file"] = file and str(file)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, result)
    return result


def default_name(result: dict[str, Any], device: str) -> str:
    """Of a result's file: what was measured, where."""
    found, rows = result["measured"], result["counted"]
    named = "all" if len(rows) == len(methods()) else rows[-1]["method"]
    model = found["model"].replace("/", "").replace("-", "")
    return f"{model}-{found['resolution']}px-{named}-{device.partition(':')[0]}.json"


def orders(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Pairs of methods whose forward latencies are not in the order of their MACs, a line each."""
    found = []
    by_macs = sorted(rows, key=lambda row: float(row["gmacs_percent"]))
    for i, less in enumerate(by_macs):
        for more in by_macs[i + 1 :]:
            if less["latency_percent"] <= more["latency_percent"]:
                continue
            spread = less["latency_range"][0] <= more["latency_range"][1]
            why = "within the spread" if spread else "beyond the spread"
            found.append(
                f"{title(less['method'])} took longer than {title(more['method'])}, which has "
                f"more MACs ({why})"
            )
    return found


def clocks(device: str) -> dict[str, Any]:
    """What decides how fast the machine is just now."""
    if device.startswith("cuda"):
        fields = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        query = ["nvidia-smi", "-i", f"GPU-{uuid.removeprefix('GPU-')}"]
        query += [f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            run = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return {"nvidia-smi": None}
        row = run.stdout.strip().splitlines()[0].split(", ")
        return dict(zip(fields.split(","), row, strict=True))
    return {"load_average": os.getloadavg()[0], "cpus": os.cpu_count()}


class Counted(TypedDict):
    """A method's row of what was counted."""

    method: str
    external_parameters: int
    head_parameters: int
    gmacs: float
    gmacs_percent: float
    paper: dict[str, Any]


class Timed(TypedDict):
    """A method's row of what was measured."""

    method: str
    latency_ms: float
    latency_percent: float
    latency_range: list[float]
    images_per_second: float
    peak_memory_gb: float | None
    gmacs_percent: float


class Measured(TypedDict):
    """What was measured, and how."""

    rows: list[Timed]
    model: str
    resolution: int
    batch: int
    precision: str
    compiled: bool
    rounds: int


class Result(TypedDict):
    """What `cost` wrote, as far as it is read."""

    model: str
    counted: list[Counted]
    measured: Measured | None
    environment: dict[str, Any]


def load_result(file: Path) -> dict[str, Any]:
    """A result that `cost` wrote, here or elsewhere."""
    try:
        result: dict[str, Any] = read_json(file, Result)
    except FileNotFoundError:
        raise SetupError(f"no file {file}") from None
    except ValueError as error:
        raise DataError(f"{file} is not a result of sra2 cost: {error}") from None
    return result


def counted_table(rows: Sequence[dict[str, Any]], model: str, resolution: int) -> Table:
    """Parameters in millions, GMACs (the paper's GFLOPs); the paper's column where it counted."""
    papers = (model, resolution) == ("XL/2", 256)
    cells = []
    for row in rows:
        sizes = [millions(row[f"{part}_parameters"]) for part in ("external", "head")]
        cells.append([title(row["method"], model), *sizes, f"{row['gmacs']:.2f}", more_macs(row)])
        if papers:
            theirs = percent(row["paper"].get("gflops_percent"))
            cells[-1].append("" if row["method"] == "sit" else theirs)
    name = f"counted: {model}, {resolution} px, GMACs of a forward pass (the paper's GFLOPs)"
    header = [
        "method",
        "external",
        "head",
        "GMACs",
        f"over {title(PLAIN, model)}",
        *([PAPER] if papers else []),
    ]
    return name, header, cells


def measured_tables(result: dict[str, Any]) -> list[Table]:
    """Forward latencies beside the MACs; throughput, and peak memory where it was measured."""
    rows, forward, training = result["measured"]["rows"], [], []
    model = result["measured"]["model"]
    for row in rows:
        name, latency = title(row["method"], model), f"{row['latency_ms']:,.0f} ms"
        forward.append([name, latency, *spread(row, "latency"), more_macs(row)])
        training.append([name, f"{row['images_per_second']:,.2f}", *spread(row, "speed")])
        if row["peak_memory_gb"] is not None:
            training[-1].append(f"{row['peak_memory_gb']:.1f} GB")
    against = [f"over {title(PLAIN, model)}", "middle half", PAPER]
    memory = ["peak memory"] if any(row["peak_memory_gb"] is not None for row in rows) else []
    where = f"forward pass of training, {measured_title(result)}"
    return [
        (where, ["method", "forward", *against, "MACs"], forward),
        ("training steps, the same", ["method", "images/s", *against, *memory], training),
    ]


def measured_title(result: dict[str, Any]) -> str:
    """Where and how it was measured."""
    found = result["measured"]
    compiled = "compiled" if found["compiled"] else "eager"
    return (
        f"measured: {found['model']}, {found['resolution']} px, batch {found['batch']}, "
        f"{found['precision']}, {compiled}, {result['environment']['device']}, "
        f"median of {found['rounds']} rounds"
    )


def millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count else "0"


def more_macs(row: dict[str, Any]) -> str:
    return "" if row["method"] == "sit" else f"{row['gmacs_percent']:+.1f}%"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+g}%"


def spread(row: dict[str, Any], name: str) -> tuple[str, str, str]:
    """A percentage, the middle half of its rounds, and the paper's."""
    if row["method"] == "sit":
        return ("", "", "")
    theirs = percent(paper.cost(row["method"]).get(f"{name}_percent"))
    low, high = row[f"{name}_range"]
    return (f"{row[f'{name}_percent']:+.1f}%", f"{low:+.0f} to {high:+.0f}", theirs)
