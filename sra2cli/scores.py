"""The table of metrics: which network and feature each is made on, and what it needs of it."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sra2cli.errors import DataError, SetupError
from sra2cli.features import Collected, Wanted
from sra2cli.metrics import (
    NEIGHBOURS,
    Distances,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    needs: statistics and rows are needed of samples and reference, the score of samples alone.
    """

    network: Literal["inception", "digits"]
    feature: str
    needs: Literal["statistics", "rows", "score"]
    better: Literal["↓", "↑"]


METRICS = {
    "fid": Metric("inception", "pool", "statistics", "↓"),
    "sfid": Metric("inception", "spatial", "statistics", "↓"),
    "is": Metric("inception", "logits", "score", "↑"),
    "precision": Metric("inception", "pool", "rows", "↑"),
    "recall": Metric("inception", "pool", "rows", "↑"),
    "kid": Metric("inception", "pool", "rows", "↓"),
    "fd-digits": Metric("digits", "features", "statistics", "↓"),
}
PAPERS = ("fid", "sfid", "is", "precision", "recall")  # what papers of this family report


def parse(text: str) -> tuple[str, ...]:
    """ "fid,is" → names of the table; SetupError for an unknown one, or two networks."""
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for name in names:
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(METRICS)}"
            raise SetupError(f"unknown metric '{name}'; {hint}")
    networks = {METRICS[name].network: name for name in names}
    if len(networks) > 1:
        raise SetupError(
            f"{' and '.join(networks.values())} look at images through different networks: "
            "ask for them in two commands"
        )
    return names


def wanted(names: Sequence[str]) -> Wanted:
    """What has to be kept of the samples' features."""
    rows = [METRICS[name] for name in names]
    return Wanted(
        frozenset(row.feature for row in rows if row.needs == "statistics"),
        frozenset(row.feature for row in rows if row.needs == "rows"),
        any(row.needs == "score" for row in rows),
    )


def values(
    names: Sequence[str],
    fake: Collected,
    real: Collected | None,
    *,
    distances: Distances = "float16",
    device: str = "cpu",
) -> dict[str, float]:
    """The metrics of samples against a reference, in the order asked for.

    Args:
        real: None where no metric needs one.
        distances: type of the distances of precision and recall; float16 as ADM.

    Raises:
        DataError: too few images for neighbours.
    """
    found: dict[str, float] = {}
    for name in names:
        row = METRICS[name]
        if row.needs == "score":
            assert fake.score is not None
            found[name] = fake.score
            continue
        assert real is not None
        if row.needs == "statistics":
            found[name] = frechet_distance(
                fake.statistics[row.feature], real.statistics[row.feature]
            )
            continue
        a, b = fake.rows[row.feature], real.rows[row.feature]
        if name == "kid":
            found[name] = kernel_distance(a, b, device=device)
        elif name not in found:
            if min(len(a), len(b)) <= NEIGHBOURS:
                raise DataError(
                    f"precision and recall need more than {NEIGHBOURS} images on both sides, "
                    f"not {len(a)} and {len(b)}"
                )
            pair = precision_recall(a, b, dtype=distances, device=device)
            found |= dict(zip(("precision", "recall"), pair, strict=True))
    return {name: found[name] for name in names}
