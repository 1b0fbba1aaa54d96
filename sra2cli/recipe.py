"""Recipes: what a run is, in one YAML file.

A recipe is read as: defaults (`settings`) → the YAML file → `--set a.b=c`.
Nothing here imports torch, so that a wrong recipe is refused at once.
"""

import contextlib
import difflib
import math
import types
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from sra2cli.errors import SetupError
from sra2cli.settings import Recipe


def folder() -> Path:
    """Where the packaged recipes lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """The names of the packaged recipes."""
    return sorted(p.stem for p in folder().glob("*.yaml"))


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a packaged recipe by name or any YAML file by path, then apply `key.sub=value`.

    Raises:
        SetupError: unknown recipe or key (with the nearest name), a wrong type or value.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = folder() / f"{name_or_path}.yaml"
        if not path.is_file():
            raise SetupError(f"unknown recipe '{name_or_path}'{_nearest(name_or_path, names())}")
    elif not path.is_file():
        raise SetupError(f"no recipe file {path}")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise SetupError(f"{path} is not a YAML file: {reason}") from None
    if not isinstance(tree, dict):
        raise SetupError(f"{path} holds no settings: expected 'key: value' lines")
    if "name" not in tree:
        tree["name"] = path.stem
    for override in overrides:
        apply_override(tree, override)
    return from_dict(tree)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in a tree of plain settings; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SetupError(f"--set takes key=value, not '{override}'")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SetupError(f"--set {key}: '{text}' is not a value") from None
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise SetupError(f"unknown key '{key}'{_nearest(key, _all_keys(Recipe))}")
    tree[last] = value


def from_dict(tree: dict[str, Any]) -> Recipe:
    """A checked recipe from plain settings; raises SetupError naming the key at fault."""
    recipe: Recipe = _build(Recipe, tree, "")
    _check(recipe)
    return recipe


def differing(a: Recipe, b: Recipe, *, ignore: Sequence[str] = ()) -> list[tuple[str, Any, Any]]:
    """(dotted key, value of a, value of b) where two recipes differ, but equal to or below
    `ignore`."""
    flat_a, flat_b = _flatten(a.to_dict()), _flatten(b.to_dict())
    keys = [k for k in sorted({*flat_a, *flat_b}) if flat_a.get(k) != flat_b.get(k)]
    keys = [k for k in keys if not any(k == i or k.startswith(i + ".") for i in ignore)]
    return [(k, flat_a.get(k), flat_b.get(k)) for k in keys]


def differences(a: Recipe, b: Recipe, *, ignore: Sequence[str] = ()) -> list[str]:
    """The keys alone."""
    return [key for key, _, _ in differing(a, b, ignore=ignore)]


def _build(cls: Any, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise SetupError(f"'{prefix.rstrip('.')}' takes settings, not {tree!r}")
    hints = get_type_hints(cls)
    for key in tree:
        if key not in hints:
            inner = next(iter(tree[key]), "") if isinstance(tree[key], dict) else ""
            word = f"{prefix}{key}" + (f".{inner}" if inner else "")  # optim.lr: train.lr?
            raise SetupError(f"unknown key '{word}'{_nearest(word, _all_keys(Recipe))}")
    values = {key: _convert(hints[key], value, f"{prefix}{key}") for key, value in tree.items()}
    return cls(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type `hint`, or a SetupError that names `key`."""
    if is_dataclass(hint):
        return _build(hint, {} if value is None else value, key + ".")
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):  # only `X | None` occurs
        inner = next(h for h in get_args(hint) if h is not type(None))
        return None if value is None else _convert(inner, value, key)
    if origin is Literal:
        if value not in get_args(hint):
            options = [str(o) for o in get_args(hint)]
            raise SetupError(f"'{key}' is one of {', '.join(options)}, not {value!r}")
        return value
    if origin is tuple:
        items = get_args(hint)
        if not isinstance(value, (list, tuple)) or len(value) != len(items):
            raise SetupError(f"'{key}' takes {len(items)} numbers, as [0, 1], not {value!r}")
        return tuple(_convert(h, v, key) for h, v in zip(items, value, strict=True))
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise SetupError(f"'{key}' takes a finite number, not {value!r}")
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise SetupError(f"'{key}' takes {kinds[hint]}, not {value!r}")
    return value


def _check(recipe: Recipe) -> None:
    """What types cannot say."""
    model, train, log = recipe.model, recipe.train, recipe.log
    custom = {k: getattr(model, k) for k in ("depth", "width", "heads", "patch")}
    missing = [k for k, v in custom.items() if v is None]
    given = [k for k, v in custom.items() if v is not None]
    if model.size == "custom" and missing:
        raise SetupError(f"'model.size' is custom: give 'model.{missing[0]}' too")
    if model.size != "custom" and given:
        raise SetupError(
            f"'model.{given[0]}' is fixed by size {model.size}; "
            "for your own numbers: model.size=custom"
        )
    positive = {
        "train.steps": train.steps,
        "train.batch": train.batch,
        "train.lr": train.lr,
        "train.grad_clip": train.grad_clip,
        "data.channels": recipe.data.channels,
        "data.latent": recipe.data.latent,
        "log.every": log.every,
        "log.save_every": log.save_every,
        "log.keep_every": log.keep_every,
        "log.keep": log.keep,
        "log.eval_num": log.eval_num,
        "log.eval_steps": log.eval_steps,
        **{f"model.{k}": v for k, v in custom.items() if v is not None},
    }
    if train.micro_batch is not None:
        positive["train.micro_batch"] = train.micro_batch
    for key, number in positive.items():
        if number <= 0:
            raise SetupError(f"'{key}' must be above 0, not {number}")
    if log.preview_every < 0 or log.eval_every < 0:
        raise SetupError("'log.preview_every' and 'log.eval_every' must not be negative")
    if recipe.data.classes < 0 or train.weight_decay < 0:
        raise SetupError("'data.classes' and 'train.weight_decay' must not be negative")
    if not 0 <= recipe.seed < 2**63:
        raise SetupError(f"'seed' lies in [0, 2^63), not {recipe.seed}")
    if recipe.align.repa is not None and recipe.align.repa.hidden < 1:
        raise SetupError("'align.repa.hidden' must be above 0")
    fractions = {"train.label_dropout": train.label_dropout, "train.ema": train.ema}
    fractions |= {"train.betas": max(train.betas), "train.betas[0]": min(train.betas)}
    for key, number in fractions.items():
        if not 0 <= number < 1:
            raise SetupError(f"'{key}' lies in [0, 1), not {number}")
    for name in ("sra2", "repa", "sra"):
        settings = getattr(recipe.align, name)
        if settings is not None and not 0 <= settings.window[0] < settings.window[1] <= 1:
            raise SetupError(f"'align.{name}.window' is [a, b] with 0 <= a < b <= 1")
        if settings is not None and settings.weight < 0:
            raise SetupError(f"'align.{name}.weight' must not be negative")
        if settings is not None and settings.depth < 1:
            raise SetupError(f"'align.{name}.depth' counts blocks from 1")
        if settings is not None and getattr(settings, "layers", 1) < 1:
            raise SetupError(f"'align.{name}.layers' must be above 0")


def _nearest(word: str, options: Sequence[str]) -> str:
    """ "; did you mean ...?" for the option nearest to a misspelt word, or the options if few."""
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if not close:  # right last name in the wrong place: 'train.depth' → 'align.sra2.depth'
        last = word.rpartition(".")[2]
        lasts = [o.rpartition(".")[2] for o in options]
        near = difflib.get_close_matches(last, lasts, n=1, cutoff=0.7)
        close = [options[lasts.index(near[0])]] if near else []
    return f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(options)}"


def _all_keys(cls: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in get_type_hints(cls).items():
        inner = next((h for h in (hint, *get_args(hint)) if is_dataclass(h)), None)
        keys += _all_keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return keys


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
