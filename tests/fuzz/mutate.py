"""Damage of any bytes, and of any tree or text of settings (JSON, YAML)."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator


def pick(rng: Rng, options: Any) -> Any:
    """One of several, as it is (numpy would make arrays of them)."""
    options = list(options)
    return options[int(rng.integers(len(options)))]


# --- bytes


def _truncate(rng: Rng, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _flip(rng: Rng, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(int(pick(rng, (1, 4, 32)))):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _head(rng: Rng, data: bytes) -> bytes:
    """As `_flip`, where the headers are."""
    first = data[:256]
    return _flip(rng, first) + data[256:]


def _tail(rng: Rng, data: bytes) -> bytes:
    return data[:-256] + _flip(rng, data[-256:])


def _fill(rng: Rng, data: bytes) -> bytes:
    at, size = int(rng.integers(len(data))), int(pick(rng, (8, 64, 1024)))
    return (
        data[:at] + pick(rng, (b"\0", b"\xff"))[:1] * min(size, len(data) - at) + data[at + size :]
    )


def _splice(rng: Rng, data: bytes) -> bytes:
    a, b = sorted(int(v) for v in rng.integers(len(data), size=2))
    at = int(rng.integers(len(data)))
    return data[:at] + data[a:b] + data[at:]


def _cut(rng: Rng, data: bytes) -> bytes:
    a, b = sorted(int(v) for v in rng.integers(len(data), size=2))
    return data[:a] + data[b:]


def _twice(rng: Rng, data: bytes) -> bytes:
    return data + data


def _front(rng: Rng, data: bytes) -> bytes:
    return rng.bytes(int(pick(rng, (1, 16, 512)))) + data


def _empty(rng: Rng, data: bytes) -> bytes:
    return pick(rng, (b"", b"\0", b"\n", b"<html>not found</html>", b"version https://git-lfs"))


BYTES = (_truncate, _flip, _flip, _head, _tail, _fill, _splice, _cut, _twice, _front, _empty)


def damaged(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """Some bytes, damaged; and how."""
    how = pick(rng, BYTES) if data else _empty
    return how(rng, data), how.__name__.strip("_")


# --- trees


class Literal(str):
    """Text that goes into a JSON file as it is, where json could not write it."""


DEEP = "[" * 3000 + "]" * 3000
ODD: tuple[Callable[[Rng], Any], ...] = (
    lambda rng: None,
    lambda rng: pick(rng, (True, False)),
    lambda rng: pick(rng, (-1, 0, 1, 2**31, 2**63, -(2**63) - 1, 10**12, 10**30)),
    lambda rng: pick(rng, (0.0, -0.5, 1e308, 1e-320, 0.1)),
    lambda rng: Literal(pick(rng, ("NaN", "Infinity", "-Infinity", "1e999"))),
    lambda rng: Literal("9" * 5000),
    lambda rng: Literal(DEEP),
    lambda rng: pick(rng, ("", "x" * 10_000, "\0", "../../evil", "/etc/passwd", "é\u202e\x1b[31m")),
    lambda rng: Literal('"\\ud800"'),
    lambda rng: pick(rng, ([], {}, [None], [[]], {"": None}, [1, "a", {}], {"a": {"b": {}}})),
    lambda rng: pick(rng, ("1", "nan", "2024-01-01", "null", "0x10", "1_000")),
)


def paths(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of all values inside a tree, itself first."""
    found = [above]
    if isinstance(tree, dict):
        items = list(tree.items())
    else:
        items = list(enumerate(tree[:4])) if isinstance(tree, list) else []
    for key, value in items:
        found += paths(value, (*above, key))
    return found


def odd_tree(rng: Rng, tree: Any) -> tuple[Any, str]:
    """A tree with one or two odd places; and what was done."""
    tree, notes = copy.deepcopy(tree), []
    for _ in range(int(pick(rng, (1, 1, 2)))):
        tree, note = _odd_place(rng, tree)
        notes.append(note)
    return tree, "; ".join(notes)


def _odd_place(rng: Rng, tree: Any) -> tuple[Any, str]:
    path = pick(rng, paths(tree))
    value = pick(rng, ODD)(rng)
    if not path:
        return (value, "all of it odd") if rng.random() < 0.5 else ([tree], "in a list")
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    last, name = path[-1], ".".join(map(str, path))
    how = int(rng.integers(5))
    if how == 0:
        del holder[last]
        return tree, f"no {name}"
    if how == 1 and isinstance(holder, dict):
        holder[f"{last}2"] = holder.pop(last)
        return tree, f"{name} has another name"
    if how == 2:
        old = holder[last]
        forms = [[old], {"value": old}, str(old)]
        if isinstance(old, int | float) and not isinstance(old, bool):
            forms += [-old, old * 10**9, old + 0.5, old + 1, bool(old)]
        if isinstance(old, list | str):
            forms += [old + old, old[:-1]]
        holder[last] = pick(rng, forms)
        return tree, f"{name} in another form"
    holder[last] = value
    return tree, f"{name} = {str(value)[:20]!r}"


def as_json(tree: Any, *, indent: int | None = 1) -> str:
    """JSON with the literals in it."""
    held: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, Literal):
            held.append(str(value))
            return f"@literal{len(held) - 1}@"
        if isinstance(value, dict):
            return {key: mark(inner) for key, inner in value.items()}
        return [mark(inner) for inner in value] if isinstance(value, list) else value

    text = json.dumps(mark(tree), indent=indent)
    for i, literal in enumerate(held):
        text = text.replace(f'"@literal{i}@"', literal)
    return text


def odd_json_text(rng: Rng, text: str) -> tuple[bytes, str]:
    """JSON that is odd as a text."""
    options = {
        "deep nesting": "[" * 100_000 + "]" * 100_000,
        "a mark of byte order": "\ufeff" + text,
        "two documents": text + text,
        "a comment": "// made by hand\n" + text,
        "a comma too many": text.rstrip().rstrip("]}") + ",}",
        "single quotes": text.replace('"', "'"),
        "cut off": text[: len(text) // 2],
        "a key twice": text.replace("{", '{"num": 1, "num": 2, ', 1),
        "blank": " \n",
    }
    name = pick(rng, (*options, "utf-16", "latin-1", "not utf-8"))
    if name == "utf-16":
        return text.encode("utf-16"), name
    if name in ("latin-1", "not utf-8"):
        return text.encode().replace(b'"', b'"\xe9' if name == "latin-1" else b'"\xff\xfe', 1), name
    return options[name].encode("utf-8", "surrogatepass"), name


def odd_json(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """A JSON file with odd values, as an odd text, or with damaged bytes."""
    dice = rng.random()
    if dice < 0.7:
        tree, note = odd_tree(rng, json.loads(data))
        return as_json(tree).encode(), note
    return odd_json_text(rng, data.decode()) if dice < 0.85 else damaged(rng, data)
