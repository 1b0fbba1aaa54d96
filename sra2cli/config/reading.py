"""Small files that people edit and others write: YAML and JSON, each read and checked in one place.

A fault is a ValueError of one line; whoever reads says of which file it is.
"""

import json
import re
import reprlib
from pathlib import Path
from typing import Any, NotRequired, TypeVar

import yaml
from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

__all__ = [
    "AfterValidator",
    "NotRequired",
    "TypedDict",
    "adapter",
    "checked",
    "json_of",
    "read_json",
    "read_record",
    "read_yaml",
    "yaml_of",
]

T = TypeVar("T")
SHOWN = 3  # faults of a record that are named
LONGEST = 1 << 17  # characters of a YAML file
DEEPEST = 40
LARGEST = 10_000  # values in it, each `*alias` counted as all it stands for
PLAIN = "tag:yaml.org,2002:"
# Of what is unquoted. YAML 1.1 reads 010 as 8 and 1:30 as 90, YAML 1.2 does not: here both are
# text, which no number takes. So are dates, which no setting is.
NUMBERS = {
    f"{PLAIN}int": re.compile(r"[-+]?(0|[1-9][0-9_]*)$"),
    f"{PLAIN}float": re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}


class _Loader(yaml.SafeLoader):
    """No key twice, none that is not text, nothing that unfolds without bounds."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, NUMBERS.get(tag, pattern)) for tag, pattern in rows if "timestamp" not in tag]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self._sizes: dict[yaml.Node, int] = {}
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = set()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            if key.tag not in (f"{PLAIN}str", f"{PLAIN}merge"):
                said = f"{key.value!r} " if isinstance(key, yaml.ScalarNode) else ""
                raise ValueError(f"{line}: the key {said}is not text")
            if key.value in names:
                raise ValueError(f"{line}: '{key.value}' stands twice")
            names.add(key.value)
        self._count(node, [part for pair in node.value for part in pair])
        return node

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        node = super().compose_sequence_node(anchor)
        self._count(node, node.value)
        return node

    def _count(self, node: yaml.Node, inside: list[yaml.Node]) -> None:
        """Refuse what unfolds to too much, before it does."""
        try:
            size = sum(1 if isinstance(n, yaml.ScalarNode) else self._sizes[n] for n in inside)
        except KeyError:  # not yet complete
            raise ValueError("an alias stands inside what it names") from None
        if size > LARGEST:
            raise ValueError(f"it unfolds to more than {LARGEST:,} values")
        self._sizes[node] = 1 + size


def yaml_of(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        ValueError: not YAML, a key twice or not text, too deep or too large.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST:,} characters")
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
        if rb"\u0000" in json.dumps(value, ensure_ascii=False).encode():
            raise ValueError("it holds a character of code 0")
        return value
    except UnicodeEncodeError:  # "\ud800" alone is no text that can be written
        raise ValueError("it holds half of a surrogate pair") from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is not a YAML file: {' '.join(str(error).split())}") from None
    except (LookupError, TypeError, AttributeError) as error:  # of a tag such as !!bool maybe
        raise ValueError(f"it is not a YAML file: {type(error).__name__} {error}") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; ValueError as `yaml_of`, and for what is not UTF-8."""
    with path.open("rb") as file:
        data = file.read(4 * LONGEST + 1)  # UTF-8: up to 4 bytes each
    try:
        return yaml_of(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not a YAML file: {error}") from None


def adapter(schema: Any) -> TypeAdapter[Any]:
    """Of pydantic, made once."""
    if schema not in _adapters:
        _adapters[schema] = TypeAdapter(schema)
    return _adapters[schema]


_adapters: dict[Any, TypeAdapter[Any]] = {}


def checked(schema: Any, value: Any, *, strict: bool = True) -> Any:
    """The value itself, if it is what a schema says; keys that the schema does not name stay.

    strict: no text for a number, and the like.

    Raises:
        ValueError: names the first key that is not.
    """
    try:
        adapter(schema).validate_python(value, strict=strict)
    except ValidationError as error:
        raise ValueError(_line(error.errors(include_url=False)[0])) from None
    return value


def read_record(kind: type[T], value: Any) -> T:
    """`value`, plain as JSON and attributes give it, as a `kind`: a dataclass or a type of dicts.

    Raises:
        ValueError: in one line, the first keys at fault.
    """
    try:
        found: T = adapter(kind).validate_python(value)
        return found
    except ValidationError as error:
        raise ValueError("; ".join(_line(fault) for fault in error.errors()[:SHOWN])) from None


def _line(fault: Any) -> str:
    """A fault that pydantic found."""
    key = ".".join(str(part) for part in fault["loc"])[:80]
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    if fault["type"] == "value_error":  # of our own checks
        return f"'{key}' {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
    said = fault["msg"][:1].lower() + fault["msg"][1:]
    said = f"{said}, not {reprlib.repr(fault['input'])}"
    return f"'{key}': {said}" if key else said


def json_of(text: str | bytes, schema: Any) -> Any:
    """What a JSON text holds, as `checked`.

    Raises:
        ValueError: not JSON, or not as the schema says.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except TypeError:
        raise ValueError(f"it is of type {type(text).__name__}, not text") from None
    return checked(schema, value)


def read_json(path: Path, schema: Any) -> Any:
    """What a JSON file holds, as `json_of`; OSError if it cannot be read."""
    return json_of(path.read_bytes(), schema)
