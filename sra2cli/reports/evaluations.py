"""Every evaluation of a run: while training, of `sra2 eval RUN`, of its folders of samples."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli.config.reading import checked
from sra2cli.evaluation.judge import Result
from sra2cli.evaluation.scores import BETTER, with_accuracy
from sra2cli.reports.curves import short
from sra2cli.reports.told import Told, part, shown

SOLVERS = {"em": "Euler-Maruyama", "euler": "Euler", "heun": "Heun", "edm": "EDM"}
SAID = ("solver", "steps", "last_step", "cfg", "interval", "labels", "seed", "rounding", "prompts")
LISTS = ("labels", "prompts", "sampling")  # of a record: an entry an image, or said apart


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one network, and all that they depend on.

    run: number of the run. values: metric → number. setting: what makes two numbers comparable,
    without the training step and the guidance scale. drawn: sampling settings.
    """

    run: int
    step: int | None
    cfg: float | None
    values: Mapping[str, float]
    drawn: Mapping[str, Any]
    setting: Mapping[str, Any]
    made: Mapping[str, str]
    warnings: Sequence[str] = ()

    @property
    def words(self) -> str:
        """How the images were drawn and how many, in a line."""
        return words({**self.drawn, "cfg": self.cfg}, self.setting)


def evaluations(
    runs: Sequence[Told], more: Mapping[Path, Sequence[Path]]
) -> tuple[list[Evaluation], list[str]]:
    """Those of all runs, by run and step; and files that hold none.

    more: run folder → results that lie elsewhere.
    """
    found, passed_over = [], []
    for number, told in enumerate(runs):
        own = [while_training(number, told, row) for row in told.judged]
        files = sorted(told.run.path.glob("evals/*.json"))
        files += sorted(told.run.path.glob("samples/eval-*.json"))
        files += sorted(told.run.path.glob("samples/*/eval-*.json"))
        for file in [*files, *more.get(told.run.path, ())]:
            try:
                value = json.loads(file.read_bytes())
                if not isinstance(value, list):  # the points of a sweep lie beside it, one by one
                    own.append(of_result(number, file, checked(Result, value)))
            except (OSError, ValueError, RecursionError) as error:
                passed_over.append(f"{file} is no result: {' '.join(str(error).split())[:200]}")
        found += sorted(own, key=lambda e: (e.step or 0, e.cfg or 0))
    return found, passed_over


def while_training(number: int, told: Told, row: Mapping[str, Any]) -> Evaluation:
    """A row of metrics.jsonl; the images were drawn from the EMA."""
    drawn = part(row, "sampling")
    told_apart = ("step", "count", "event")
    values = {
        k: float(v)
        for k, v in row.items()
        if k not in told_apart and isinstance(v, int | float) and not isinstance(v, bool)
    }
    log = told.recipe.log
    setting = {"images": row.get("count"), "reference": log.eval_ref, "by": "the training"}
    made = {
        "made by": "the training, of the EMA",
        **drawing(drawn),
        "images": shown(row.get("count")),
    }
    made |= {"reference": shown(log.eval_ref or "of the metric")}
    return Evaluation(number, row["step"], guidance(drawn), values, without(drawn), setting, made)


def of_result(number: int, file: Path, result: Mapping[str, Any]) -> Evaluation:
    """A file of `sra2 eval`; ValueError where a number is missing."""
    names = with_accuracy(result["settings"]["metrics"], [result])
    values = {name: float(checked(float, result.get(name))) for name in names}
    how, extractor, environment = (part(result, k) for k in ("how", "extractor", "environment"))
    drawn, step = part(how, "sampling"), how.get("step")
    setting = {
        "images": result["count"],
        "reference": result["reference"],
        "network": extractor.get("fingerprint"),
        "weights": how.get("weights"),
        "precision": how.get("precision"),
        "crop": result["settings"].get("crop"),
    }
    record = {k: v for k, v in how.items() if k not in LISTS and not isinstance(v, dict)}
    made = {
        "made by": shown(environment.get("command", "sra2 eval")),
        "result": str(file),
        **drawing(drawn),
        "images": shown(result["count"]),
        "reference": f"{shown(result['reference'])}, {shown(result.get('reference_count'))} images",
        "judged through": f"{shown(extractor.get('name'))} {extractor.get('fingerprint', '')}",
        **{k: shown(v) for k, v in record.items() if k not in ("num", "step") and v is not None},
        "first stage": shown(part(how, "vae").get("name")),
        "device": shown(environment["device"]),
        "versions": ", ".join(f"{k} {environment.get(k)}" for k in ("sra2", "torch", "git")),
    }
    step, cfg = step if isinstance(step, int) else None, guidance(drawn)
    return Evaluation(number, step, cfg, values, without(drawn), setting, made, result["warnings"])


def guidance(drawn: Mapping[str, Any]) -> float | None:
    cfg = drawn.get("cfg")
    return float(cfg) if isinstance(cfg, int | float) else None


def without(drawn: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in drawn.items() if k != "cfg"}


def drawing(drawn: Mapping[str, Any]) -> dict[str, str]:
    """Every setting of sampling."""
    return {f"drawn: {key}": shown(value) for key, value in drawn.items() if value is not None}


def words(drawn: Mapping[str, Any], setting: Mapping[str, Any], *, guided: bool = True) -> str:
    """Settings of sampling as people say them. guided: with the guidance scale."""
    parts = []
    if "solver" in drawn:
        solver = SOLVERS.get(str(drawn["solver"]), shown(drawn["solver"]))
        parts.append(f"{solver}, {shown(drawn.get('steps'))} steps")
    cfg, interval = drawn.get("cfg"), drawn.get("interval")
    if guided and cfg is not None:
        parts.append("no guidance" if cfg == 1 else f"guidance {cfg:g}")
    if interval not in (None, [0.0, 1.0]) and not (guided and cfg == 1):
        parts.append(f"guided for t in {shown(interval)}")
    for key in ("labels", "seed"):
        if drawn.get(key) is not None:
            parts.append(f"{key} {shown(drawn[key])}")
    if isinstance(drawn.get("prompts"), dict):
        parts.append(f"{shown(drawn['prompts'].get('count'))} prompts")
    others = {k: v for k, v in drawn.items() if k not in SAID and v is not None}
    parts += [f"{key} {shown(value)}" for key, value in others.items()]
    if setting.get("images") is not None:
        parts.append(f"{shown(setting['images'])} images")
    for key in ("precision", "weights", "crop"):
        if setting.get(key) not in (None, "fp32", "ema"):
            parts.append(f"{key} {shown(setting[key])}")
    if setting.get("by"):
        parts.append(f"by {setting['by']}")
    return ", ".join(parts) or "not said how"


def tables(found: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """A table for each choice of metrics: {"metrics": header, "rows": evaluations}."""
    groups: dict[tuple[str, ...], list[Evaluation]] = {}
    for evaluation in found:
        groups.setdefault(tuple(evaluation.values), []).append(evaluation)
    return [
        {"metrics": [(name, named(name)) for name in names], "rows": rows}
        for names, rows in groups.items()
    ]


def named(metric: str) -> str:
    """A metric, and which way is better."""
    return f"{metric} {BETTER[metric]}" if metric in BETTER else metric


def value(metric: str, number: float) -> str:
    return f"{number:.1%}" if metric == "accuracy" else f"{number:.4g}"


def charts(found: Sequence[Evaluation]) -> dict[str, list[dict[str, Any]]]:
    """Curves over training steps, and over guidance (of the last step first), for each choice of
    the other settings."""
    by_step = sorted(found, key=lambda one: -(one.step or 0))
    return {"steps": list(over(found, "step")), "guidance": list(over(by_step, "cfg"))}


def over(found: Sequence[Evaluation], axis: str) -> Iterator[dict[str, Any]]:
    """Groups of evaluations that differ in run and axis alone, where there are two points of it.

    Each: {"label", "charts": [{"title", "percent", "lines": [{"run", "x", "y"}]}]}.
    """
    groups: dict[str, list[Evaluation]] = {}
    for one in found:
        if one.step is None or one.cfg is None:
            continue
        other = one.cfg if axis == "step" else one.step
        key = json.dumps([one.drawn, one.setting, other, list(one.values)], sort_keys=True)
        groups.setdefault(key, []).append(one)
    for group in groups.values():
        first = group[0]
        xs = {getattr(one, axis) for one in group}
        if len(xs) < 2:
            continue
        label = first.words
        if axis == "cfg":
            label = f"{first.step:,} steps: {words(first.drawn, first.setting, guided=False)}"
        yield {
            "label": label,
            "charts": [
                {
                    "title": named(name),
                    "percent": name == "accuracy",
                    "lines": lines(group, axis, name),
                }
                for name in first.values
            ],
        }


def lines(group: Sequence[Evaluation], axis: str, metric: str) -> list[dict[str, Any]]:
    """A line a run, from left to right; of several numbers at one place, the last."""
    made = []
    for run in sorted({one.run for one in group}):
        points = {getattr(one, axis): one.values[metric] for one in group if one.run == run}
        xs = sorted(points)
        ys = short(np.array([points[x] for x in xs], np.float64))
        made.append({"run": run, "x": xs, "y": ys})
    return made
