"""docs/json.md as data: the keys that its tables name, held against what a command printed."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
TYPES = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "list": list}
TYPES |= {"object": dict, "null": type(None)}

Key = tuple[str, ...]  # "rows[].t" is ("rows", "[]", "t")


@dataclass(frozen=True)
class Row:
    kinds: list[str]  # of its value
    always: bool  # whether every object has it


@cache
def tables() -> dict[str, dict[Key, Row]]:
    """Heading without "sra2" → its table."""
    found = {}
    for part in re.split(r"^##+ ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        rows: dict[Key, Row] = {}
        for line in re.findall(r"^\| (`.*) \|$", body, re.M):
            keys, kinds, when, _ = (cell.strip() for cell in line.split("|"))
            for key in re.findall(r"`([^`]+)`", keys):
                path = tuple(re.findall(r"\[\]|[^.\[]+", key))
                assert path not in rows, f"{title}: {key} stands there twice"
                rows[path] = Row(kinds.split(" or "), not when)
        if rows:
            found[title.removeprefix("sra2 ")] = rows
    return found


def check(title: str, printed: dict[str, Any]) -> set[Key]:
    """Of an object: all keys are documented and of the type that is said, and those that are always
    there are there; so are those of objects in it that have rows too. Returns what was met."""
    rows, met = tables()[title], set[Key]()

    def walk(value: Any, at: Key) -> None:
        if isinstance(value, list):
            for one in value:
                walk(one, (*at, "[]"))
        names = {path[len(at)] for path in rows if path[: len(at)] == at and len(path) > len(at)}
        if not isinstance(value, dict) or not names:
            return
        (any_name,) = [name for name in names if name.isupper()] or [None]
        assert any_name or not value.keys() - names, (title, at, value.keys() - names)
        for name in names - {any_name}:
            assert name in value or not rows[*at, name].always, (title, at, name)
        for name, child in value.items():
            here = (*at, any_name or name)
            kinds = rows[here].kinds if here in rows else ["object"]
            assert any(fits(child, kind) for kind in kinds), (title, here, child, kinds)
            met.add(here)
            walk(child, here)

    walk(printed, ())
    return met & rows.keys()


def fits(value: Any, kind: str) -> bool:
    """Whether a value is, as the page says it, an "integer" or a "list of numbers"."""
    if kind.startswith("list of "):
        return isinstance(value, list) and all(fits(one, kind[8:-1]) for one in value)
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
