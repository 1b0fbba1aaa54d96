"""Types of settings that say what values they take; a fault ends the sentence "'train.lr' ..."."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict, PlainValidator, Strict

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass that recipes are read into: no key but its own, no infinite number."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return dataclass(frozen=True)(cls)


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as text; 010 is text on purpose."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(0|[1-9]\d*)(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _where(holds: Callable[[Any], bool], otherwise: str) -> AfterValidator:
    """Takes the values for which `holds`; another is refused with `otherwise` and the value."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"{otherwise} {str(value)[:80]}")
        return value

    return AfterValidator(check)


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"takes 2 numbers, as [0, 1], not {value!r}")
    return tuple(value)


def _window(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] < value[1] <= 1:
        raise ValueError(f"is [a, b] with 0 <= a < b <= 1, not {list(value)}")
    return value


def _until(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is None or whole or (isinstance(value, str) and re.fullmatch(r"\d+(ep)?", value)):
        return value
    raise ValueError(f"is a number of steps, as 100000, or of epochs, as 80ep; not {value!r}")


ABOVE_0 = _where(lambda v: v > 0, "must be above 0, not")
NOT_NEGATIVE = _where(lambda v: v >= 0, "must not be negative, but is")

Whole = Annotated[int, Strict()]
Count = Annotated[Whole, ABOVE_0]  # 1, 2, ...
Natural = Annotated[Whole, NOT_NEGATIVE]  # 0, 1, ...
Seed = Annotated[Whole, _where(lambda v: 0 <= v < 2**63, "lies in [0, 2^63), not")]
Number = Annotated[float, Strict(), BeforeValidator(_number)]
Positive = Annotated[Number, ABOVE_0]
NotNegative = Annotated[Number, NOT_NEGATIVE]
Fraction = Annotated[Number, _where(lambda v: 0 <= v < 1, "lies in [0, 1), not")]
Flag = Annotated[bool, Strict()]
Name = Annotated[  # of a run: its folder's, by default
    str, _where(lambda v: v not in ("", ".", "..") and "/" not in v, "must be a file name, not")
]
Fractions = Annotated[tuple[Fraction, Fraction], BeforeValidator(_pair)]
Window = Annotated[tuple[Number, Number], BeforeValidator(_pair), AfterValidator(_window)]
Until = Annotated[int | str | None, PlainValidator(_until)]
