"""Classes by name: what `--labels` takes beside numbers, and what pictures say of labels."""

import difflib
from collections.abc import Sequence

from sra2cli.core import console
from sra2cli.core.errors import SetupError

CHOICES = ("random", "balanced")
SHOWN = 12  # names in an error, at most


def names_of(labels: Sequence[int], names: Sequence[str]) -> list[str]:
    """The name of each label; its number where there is none."""
    return [names[k] if k < len(names) else str(k) for k in labels]


def numbered(labels: str, names: Sequence[str], classes: int) -> str:
    """ "cat,3" → "0,3": `--labels` with the names of classes as their numbers.

    A number is the number of a class, also where a class is named so. Names may have commas in
    them; upper and lower case are the same unless two names differ in it alone; of "tench, Tinca
    tinca" each part is a name too.

    Raises:
        SetupError: a name that is of no class, with the nearest, or of several; a number too large.
    """
    if labels in CHOICES:
        return labels
    parts = [part.strip() for part in labels.split(",")]
    longest = 1 + max((name.count(",") for name in names), default=0)
    tables = _tables(names)
    found: list[int] = []
    while parts:
        for count in range(min(longest, len(parts)), 0, -1):
            number = _number(", ".join(parts[:count]), names, tables)
            if number is not None:
                break
        else:
            raise SetupError(_unknown(parts[0], names))
        found.append(number)
        del parts[:count]
    wrong = [k for k in found if not 0 <= k < classes]
    if wrong:
        raise SetupError(f"--labels: there is no class {wrong[0]}; classes are 0..{classes - 1}")
    return ",".join(map(str, found))


def _tables(names: Sequence[str]) -> list[dict[str, list[int]]]:
    """Names → numbers of the classes that have them: as they are, in any case, in part."""
    tables: list[dict[str, list[int]]] = [{}, {}, {}]
    for number, name in enumerate(names):
        for table, words in zip(tables, ([name], [_folded(name)], _parts(name)), strict=True):
            for word in words:
                table.setdefault(word, []).append(number)
    return tables


def _number(word: str, names: Sequence[str], tables: list[dict[str, list[int]]]) -> int | None:
    """Of the class that a word is a number or a name of; None: of none."""
    if word.isdecimal() and len(word) < 10:
        number = int(word)
        named = tables[0].get(word, [number])
        if number not in named:
            own = f", '{names[number]}'" if number < len(names) else ""
            console.warn(
                f"--labels: {word} is the number of a class{own}; class {named[0]} is named so"
            )
        return number
    for table, key in zip(tables, (word, _folded(word), word.casefold()), strict=True):
        of = table.get(key, [])
        if len(of) > 1:
            several = ", ".join(f"{k} '{names[k]}'" for k in of[:SHOWN])
            raise SetupError(
                f"--labels: '{word}' is the name of several classes ({several}): give the number"
            )
        if of:
            return of[0]
    return None


def _folded(name: str) -> str:
    return ", ".join(_parts(name))


def _parts(name: str) -> list[str]:
    return [part.strip() for part in name.casefold().split(",")]


def _unknown(word: str, names: Sequence[str]) -> str:
    if not names:
        return (
            f"--labels is random, balanced or numbers as 0,1,2; not '{word}': no names of classes "
            "are known of this network"
        )
    known = {part: name for name in reversed(names) for part in _parts(name)}
    close = difflib.get_close_matches(word.casefold(), known, n=1, cutoff=0.6)
    few = ", ".join(names[:SHOWN]) + (f", … ({len(names)})" if len(names) > SHOWN else "")
    hint = f"did you mean '{known[close[0]]}'?" if close else f"there are: {few}"
    return f"--labels: no class '{word}'; {hint}"
