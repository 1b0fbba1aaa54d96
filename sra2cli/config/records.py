"""What files say of themselves, read into dataclasses by pydantic; a fault is one line."""

import reprlib
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
SHOWN = 3  # faults that are named


def read_record(kind: type[T], value: Any) -> T:
    """`value`, plain as JSON and attributes give it, as a `kind`: a dataclass or a type of dicts.

    Raises:
        ValueError: in one line, the first keys at fault.
    """
    try:
        found: T = TypeAdapter(kind).validate_python(value)
        return found
    except ValidationError as error:
        raise ValueError("; ".join(_line(fault) for fault in error.errors()[:SHOWN])) from None


def _line(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])[:80]
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    if fault["type"] == "value_error":  # of our own checks
        return f"'{key}' {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
    return f"'{key}': {fault['msg']}, not {reprlib.repr(fault['input'])}"
