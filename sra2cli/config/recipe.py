"""Recipes: what a run is, in one YAML file.

A recipe is read as: defaults (`settings`) → its `base:` → the YAML file → `--set a.b=c`. Types and
ranges are checked by pydantic; here its errors become lines that name the key and the fix.
Nothing here imports torch, so that a wrong recipe is refused at once.
"""

import difflib
import os
import reprlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import ValidationError

from sra2cli.config.methods import METHODS, MethodSettings
from sra2cli.config.reading import adapter, read_yaml, yaml_of
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import SetupError


def folder() -> Path:
    """Where the packaged recipes lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """The names of the packaged recipes."""
    return sorted(p.stem for p in folder().glob("*.yaml"))


def headline(name: str) -> str:
    """The first line of a packaged recipe's head."""
    first = (folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def text_of(tree: dict[str, Any]) -> str:
    """Settings as YAML."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a packaged recipe by name or any YAML file by path, then apply `key.sub=value`.

    Raises:
        SetupError: unknown recipe or key (with the nearest name), wrong types or values: all that
            are wrong, in one message.
    """
    path = find(name_or_path)
    tree = read(path)
    tree.setdefault("name", os.fsencode(path.stem).decode(errors="replace"))
    for override in overrides:
        apply_override(tree, override)
    return from_dict(tree)


def find(name_or_path: str, *, beside: Path | None = None, heir: str = "") -> Path:
    """The file of a packaged recipe, or of a path; as a base of `heir`, also one beside it."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        own = None if beside is None else beside / f"{name_or_path}.yaml"
        packaged = folder() / f"{name_or_path}.yaml"
        path = own if own and own.is_file() and own.stem != heir else packaged
        if not path.is_file():
            raise SetupError(f"unknown recipe '{name_or_path}'{nearest(name_or_path, names())}")
        return path
    if beside is not None and not path.is_absolute():
        path = (beside / path).resolve()
    if not path.is_file():
        raise SetupError(f"no recipe file {path}")
    return path


def read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a file over those of its `base:`, which may have one too."""
    try:
        tree = read_yaml(path)
    except ValueError as error:
        raise SetupError(f"{path}: {error}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise SetupError(f"{path} holds no settings: expected 'key: value' lines")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise SetupError(f"{path}: 'base' is the name or path of a recipe, not {SHORT.repr(base)}")
    below = find(base, beside=path.parent, heir=path.stem)
    heirs = (*above, path.resolve())
    if below.resolve() in heirs:
        raise SetupError(f"{path} is its own base: {' → '.join(p.stem for p in heirs)}")
    inherited = read(below, heirs)
    inherited.pop("name", None)
    return merged(inherited, tree)


def merged(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; settings inside settings are merged."""
    out = dict(below)
    for key, value in over.items():
        inner = out.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        out[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return out


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in a tree of plain settings; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SetupError(f"--set takes key=value, not '{override}'")
    if key == "base":
        raise SetupError("--set base: a base is named in a file, as a line 'base: NAME'")
    try:
        value = yaml_of(text)
    except ValueError as error:
        raise SetupError(f"--set {key}: '{text[:80]}' is not a value: {error}") from None
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise SetupError(f"unknown key '{key}'{nearest(key, _all_keys())}")
    tree[last] = value


def from_dict(tree: dict[str, Any]) -> Recipe:
    """A checked recipe from plain settings; raises SetupError naming every key at fault."""
    tree = {key: value for key, value in tree.items() if value is not None}  # "log:" alone
    given = tree.pop("align", None)
    given = {} if given is None else given
    faults: list[str] = []
    align: dict[str, MethodSettings] = {}
    if not isinstance(given, dict):
        faults.append(f"'align' takes settings, not {SHORT.repr(given)}")
        given = {}
    for name, settings in given.items():
        if name not in METHODS:
            inner = next(iter(settings), "") if isinstance(settings, dict) else ""
            faults.append(unknown(f"align.{name}" + (f".{inner}" if inner else "")))
        elif settings is not None:
            align[name] = _validated(METHODS[name].settings, settings, ("align", name), faults)
    recipe = _validated(Recipe, tree, (), faults)
    if faults:
        raise SetupError("; ".join(faults))
    recipe = replace(recipe, align={name: align[name] for name in METHODS if name in align})
    if recipe.grouped and recipe.train.group < 2:
        raise SetupError(
            "'train.group' is at least 2 with train.contrastive and methods as align.dispersive: "
            "a sample alone has no other to be compared with"
        )
    encoders = {getattr(s, "encoder", None) for s in align.values() if "features" in s.needs}
    if len(encoders) > 1:
        raise SetupError(f"one image encoder in a run, not {' and '.join(map(str, encoders))}")
    return recipe


T = TypeVar("T")


def _validated(cls: type[T], tree: Any, at: tuple[str, ...], faults: list[str]) -> T:
    """`tree` as an object of `cls`; what is wrong with it goes to `faults`."""
    try:
        checked: T = adapter(cls).validate_python(tree)
        return checked
    except ValidationError as error:
        faults += [_fault((*at, *found["loc"]), found) for found in error.errors()]
        return cls()


SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = 80
KINDS = {  # what a setting takes, by pydantic's names of what is wrong
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "dataclass": "settings",
    "finite": "a finite number",
}


def _fault(at: tuple[str | int, ...], found: Any) -> str:
    """One line for one of pydantic's errors."""
    path = [part for part in at if not str(part).startswith(("function-", "constrained-"))]
    key = ".".join(str(part) for part in path if not isinstance(part, int) and part != "str")
    key += "".join(f"[{part}]" for part in path if isinstance(part, int))
    what, value = found["type"], found["input"]
    given = SHORT.repr(value)
    if what == "unexpected_keyword_argument":
        inner = next(iter(value), "") if isinstance(value, dict) else ""
        return unknown(key + (f".{inner}" if inner else ""))  # optim.lr: train.lr?
    if what == "literal_error":
        return f"'{key}' is one of {_plain(found['ctx']['expected'])}, not {given}"
    if what == "value_error":  # of our own checks
        text = str(found["ctx"]["error"])
        return f"'{key}.{text[1:]}" if text[0] == "'" else f"'{key}' {text}"
    kind = KINDS.get(what.partition("_")[0])
    return f"'{key}' takes {kind}, not {given}" if kind else f"'{key}': {found['msg']}"


def _plain(expected: str) -> str:
    """pydantic's "'a', 'b' or 'c'" as a, b, c."""
    return expected.replace("'", "").replace(" or ", ", ")


def unknown(key: str) -> str:
    keys = _all_keys()
    close = nearest(key, keys)
    if close.startswith("; there are"):
        room = key.partition(".")[0]
        close = nearest(key, [k for k in keys if k.partition(".")[0] == room] or keys)
    return f"unknown key '{key}'{close}"


def flat(recipe: Recipe, *, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """{dotted key: value}, without the keys equal to or below `ignore`."""
    found = _flatten(recipe.to_dict())
    return {
        k: v for k, v in found.items() if not any(k == i or k.startswith(i + ".") for i in ignore)
    }


def differing(a: Recipe, b: Recipe, *, ignore: Sequence[str] = ()) -> list[tuple[str, Any, Any]]:
    """(dotted key, value of a, value of b) where two recipes differ."""
    flat_a, flat_b = flat(a, ignore=ignore), flat(b, ignore=ignore)
    keys = [k for k in sorted({*flat_a, *flat_b}) if flat_a.get(k) != flat_b.get(k)]
    return [(k, flat_a.get(k), flat_b.get(k)) for k in keys]


def differences(a: Recipe, b: Recipe, *, ignore: Sequence[str] = ()) -> list[str]:
    """The keys alone."""
    return [key for key, _, _ in differing(a, b, ignore=ignore)]


def nearest(word: str, options: Sequence[str]) -> str:
    """ "; did you mean ...?" for the option nearest to a misspelt word, or the options if few."""
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if not close:  # right last name in the wrong place: 'train.depth' → 'align.sra2.depth'
        last = word.rpartition(".")[2]
        lasts = [o.rpartition(".")[2] for o in options]
        near = difflib.get_close_matches(last, lasts, n=1, cutoff=0.7)
        close = [options[lasts.index(near[0])]] if near else []
    return f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(options)}"


def _all_keys() -> list[str]:
    """The keys that recipes may have, with dots."""
    found = ["base"]
    for name, hint in get_type_hints(Recipe).items():
        inner = [f.name for f in fields(hint)] if is_dataclass(hint) else []
        found += [f"{name}.{key}" for key in inner] or [name] * (name != "align")
    for name, method in METHODS.items():
        found += [f"align.{name}.{f.name}" for f in fields(method.settings)]
    return found


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
