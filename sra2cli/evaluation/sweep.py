"""sra2 eval RUN: sampling and judging in one, over guidance, intervals, solver steps, checkpoints.

Each point leaves an ordinary result: run again, what is there is kept.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sra2cli.core import console, hub, pictures, processes
from sra2cli.core.errors import SetupError
from sra2cli.core.files import write_json
from sra2cli.evaluation.judging import Judging
from sra2cli.evaluation.network_judge import NetworkJudge, digest_of
from sra2cli.evaluation.scores import with_accuracy
from sra2cli.models.build import shape_of
from sra2cli.runs.exported import store_known
from sra2cli.runs.naming import split_step
from sra2cli.runs.run import Run
from sra2cli.sampling.opening import Options, check_guide
from sra2cli.sampling.settings import SELF_INTERVAL, Sampling

NEWEST = "newest"
NUMBERS = (
    "training step",
    "guidance scale",
    "self-guidance",
    "solver steps",
)  # what can be an axis of a plot


@dataclass(frozen=True)
class Point:
    """One way to sample; name: what sets it apart from the other points."""

    name: str
    value: float  # of the swept setting, for the plot
    step: int | None
    sampling: Sampling


def points(
    sampling: Sampling,
    *,
    checkpoints: Sequence[int | None] = (),
    cfgs: Sequence[float] = (),
    intervals: Sequence[tuple[float, float]] = (),
    owns: Sequence[float] = (),
    own_intervals: Sequence[tuple[float, float]] = (),
    solver_steps: Sequence[int] = (),
) -> tuple[list[Point], str]:
    """Every combination, and the name of the setting that varies ("point" if several do).

    Args:
        sampling: what is not swept, (), is as there. checkpoints: () or None: the newest.

    Raises:
        SetupError: intervals of guidance that is nowhere asked for.
    """
    checkpoints, cfgs = checkpoints or [None], cfgs or [sampling.cfg]
    intervals, owns = intervals or [sampling.interval], owns or [sampling.self_guidance]
    if own_intervals and set(owns) == {1.0}:
        raise SetupError("--self-interval needs --self-guidance other than 1")
    own_intervals = own_intervals or [sampling.self_interval]
    solver_steps = solver_steps or [sampling.steps]
    lengths = {
        "training step": len(checkpoints),
        "guidance scale": len(cfgs),
        "guidance interval": len(intervals),
        "self-guidance": len(owns),
        "self-guidance interval": len(own_intervals),
        "solver steps": len(solver_steps),
    }
    swept = [name for name, length in lengths.items() if length > 1]
    found = []
    for number, (step, cfg, interval, own, own_interval, steps) in enumerate(
        itertools.product(checkpoints, cfgs, intervals, owns, own_intervals, solver_steps)
    ):
        shown: dict[str, tuple[str, float]] = {
            "training step": (NEWEST if step is None else f"{step:,}", step or 0),
            "guidance scale": (f"{cfg:g}", cfg),
            "guidance interval": (f"{interval[0]:g}:{interval[1]:g}", interval[1]),
            "self-guidance": (f"{own:g}", own),
            "self-guidance interval": (f"{own_interval[0]:g}:{own_interval[1]:g}", own_interval[1]),
            "solver steps": (str(steps), steps),
        }
        name = " ".join(shown[s][0] for s in swept) or shown["training step"][0]
        value = float(shown[swept[0]][1] if len(swept) == 1 else number)
        between = own_interval if own != 1.0 else SELF_INTERVAL
        chosen = replace(sampling, cfg=cfg, interval=interval, steps=steps)
        chosen = replace(chosen, self_guidance=own, self_interval=between)
        found.append(Point(name, value, step, chosen))
    return found, swept[0] if len(swept) == 1 else "point"


def judge(
    source: Path,
    wanted: Sequence[Point],
    *,
    swept: str,
    num: int,
    options: Options,
    judging: Judging,
    device: str,
    out: Path | None = None,
) -> dict[str, Any]:
    """Draw and judge each point; a table, and for several points a plot.

    Args:
        source: a run or a checkpoint. out: folder of the results; None: RUN/evals.

    Returns:
        {"rows": one result a point, "plot": a PNG or None, "file": results as JSON}.
    """
    judging.check()
    with processes.group(device) as group:
        source, step = split_step(source, options.step)
        source = hub.pinned(source, offline=options.offline)  # one state of it for all points
        options = replace(options, step=step)
        if options.step is not None and any(point.step is not None for point in wanted):
            raise SetupError("give the step once: RUN@STEP or --step")
        if options.step is None and any(point.step is None for point in wanted):
            newest = group.share(newest_step(source) if group.main else None)
            options = replace(options, step=newest)
        refuse_early(source, wanted, options)
        network_judge = NetworkJudge(judging, group, first_stage=first_stage_known(source))
        rows = []
        for point in wanted:
            step = options.step if point.step is None else point.step
            name = f"{step:,}" if point.name == NEWEST and step is not None else point.name
            console.say(f"{swept} {name}")
            row = network_judge.judge(
                source,
                num=num,
                sampling=point.sampling,
                options=replace(options, step=step),
                out=out,
            )
            rows.append({"point": name, "value": point.value, **row})
        out = Path(rows[0]["file"]).parent
        stem = f"{swept.replace(' ', '-')}-{digest_of({'files': [row['file'] for row in rows]})}"
        plot = out / f"{stem}.png" if len(rows) > 1 else None
        if group.main:
            if plot is not None:
                draw_plot(rows, swept, plot)
            write_json(out / f"{stem}.json", rows)
    return {"rows": rows, "plot": plot and str(plot), "file": str(out / f"{stem}.json")}


def refuse_early(source: Path, wanted: Sequence[Point], options: Options) -> None:
    """What a later point would stumble over, when the ones before it have taken hours."""
    guided: dict[int | None, list[Sampling]] = {}
    for point in wanted:
        if point.sampling.self_guidance != 1.0:
            step = options.step if point.step is None else point.step
            guided.setdefault(step, []).append(point.sampling)
    for step, samplings in guided.items():
        network = replace(options, step=step).open(source, verify=False, guide=True)
        for sampling in samplings:
            check_guide(network, sampling)
    if not (source / "recipe.yaml").is_file():
        return
    run = Run(source)
    for point in wanted:
        shape = shape_of(run.recipe)
        point.sampling.of_classes(run.store_info.class_names, shape).check(shape)
        step = options.step if point.step is None else point.step
        if step is not None:
            run.folder_of(step)


def first_stage_known(source: Path) -> str | None:
    """Fingerprint of the first stage of what a source was trained on; None: not known."""
    store = store_known(source)
    return None if store is None else store.vae_fingerprint


def newest_step(source: Path) -> int | None:
    """Of a run, that all points are of one checkpoint while it is still training."""
    if not (source / "recipe.yaml").is_file():
        return None
    return Run(source).checkpoint().step


def draw_plot(rows: Sequence[dict[str, Any]], swept: str, path: Path) -> None:
    """A panel a metric; points in the order of a swept number, or by their names."""
    names = with_accuracy(rows[0]["metric"].split(","), rows)
    if swept in NUMBERS:
        rows = sorted(rows, key=lambda row: float(row["value"]))
    xs = [row["value"] for row in rows] if swept in NUMBERS else None
    panels = [(name, [row[name] for row in rows]) for name in names]
    pictures.swept(panels, path, x=swept, labels=[row["point"] for row in rows], xs=xs)
