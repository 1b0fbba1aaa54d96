"""The table of metrics: which network and feature each is made on, and what it needs of it."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sra2cli.core.errors import DataError, SetupError
from sra2cli.evaluation.emoji_scorer import has_tones
from sra2cli.evaluation.extractors import Collected, Wanted
from sra2cli.evaluation.metrics import (
    NEIGHBOURS,
    Distances,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


@dataclass(frozen=True)
class Prompted:
    """What each sample was drawn of; networks: feature → what says how images fit their prompts."""

    prompts: Sequence[str]
    networks: Mapping[str, Callable[[Tensor, Sequence[str]], dict[str, float]]]


class Compared:
    """Samples beside a reference, and beside their prompts, as metrics see them.

    distances: type of the distances of precision and recall; float16 as ADM.
    """

    def __init__(
        self,
        fake: Collected,
        real: Collected | None,
        distances: Distances,
        device: str,
        prompted: Prompted | None = None,
    ):
        self.fake, self.distances, self.device = fake, distances, device
        self._real, self._prompted = real, prompted
        self._pairs: dict[str, tuple[float, float]] = {}
        self._fits: dict[str, dict[str, float]] = {}

    @property
    def real(self) -> Collected:
        assert self._real is not None  # a metric that needs none does not ask
        return self._real

    def neighbours(self, feature: str) -> tuple[float, float]:
        """Precision and recall, which come together; DataError for too few images."""
        if feature not in self._pairs:
            a, b = self.fake.rows[feature], self.real.rows[feature]
            if min(len(a), len(b)) <= NEIGHBOURS:
                raise DataError(
                    f"precision and recall need more than {NEIGHBOURS} images on both sides, "
                    f"not {len(a)} and {len(b)}"
                )
            self._pairs[feature] = precision_recall(a, b, dtype=self.distances, device=self.device)
        return self._pairs[feature]

    def fits(self, feature: str) -> dict[str, float]:
        """How images fit their prompts, in the numbers that come together."""
        if feature not in self._fits:
            assert self._prompted is not None  # refused before images were looked at
            network = self._prompted.networks[feature]
            self._fits[feature] = network(self.fake.rows[feature], self._prompted.prompts)
        return self._fits[feature]


def fit(name: str) -> Callable[[Compared, str], float]:
    """A number of how images fit their prompts, as the network of the feature calls it."""

    def number(compared: Compared, feature: str) -> float:
        return compared.fits(feature)[name]

    return number


def frechet(compared: Compared, feature: str) -> float:
    return frechet_distance(compared.fake.statistics[feature], compared.real.statistics[feature])


def kernel(compared: Compared, feature: str) -> float:
    fake, real = compared.fake.rows[feature], compared.real.rows[feature]
    return kernel_distance(fake, real, device=compared.device)


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    network: of networks.NETWORKS. needs: statistics and rows are needed of samples and reference,
    the score of samples alone, prompts of samples beside their rows. compute(compared, feature):
    the number. means: of a prompt, whether it says anything there; None: of any.
    """

    network: str
    feature: str
    needs: Literal["statistics", "rows", "score", "prompts"]
    better: Literal["↓", "↑"]
    compute: Callable[[Compared, str], float]
    means: Callable[[str], bool] | None = None


METRICS = {
    "fid": Metric("inception", "pool", "statistics", "↓", frechet),
    "sfid": Metric("inception", "spatial", "statistics", "↓", frechet),
    "is": Metric("inception", "logits", "score", "↑", lambda c, _: c.fake.score or 0.0),
    "precision": Metric("inception", "pool", "rows", "↑", lambda c, f: c.neighbours(f)[0]),
    "recall": Metric("inception", "pool", "rows", "↑", lambda c, f: c.neighbours(f)[1]),
    "kid": Metric("inception", "pool", "rows", "↓", kernel),
    "fdd": Metric("dino", "dino", "statistics", "↓", frechet),
    "kdd": Metric("dino", "dino", "rows", "↓", kernel),
    "fd-digits": Metric("digits", "features", "statistics", "↓", frechet),
    "fd-emoji": Metric("emoji", "emoji", "statistics", "↓", frechet),
    "emoji-top1": Metric("emoji", "emoji", "prompts", "↑", fit("emoji-top1")),
    "emoji-top5": Metric("emoji", "emoji", "prompts", "↑", fit("emoji-top5")),
    "emoji-tone": Metric("emoji", "emoji", "prompts", "↑", fit("emoji-tone"), has_tones),
    "pickscore": Metric("pickscore", "pickscore", "prompts", "↑", fit("pickscore")),
    "clip-score": Metric("clip", "clip-score", "prompts", "↑", fit("clip-score")),
}
BETTER = {**{name: row.better for name, row in METRICS.items()}, "accuracy": "↑"}
TOGETHER = {"emoji-text": ("emoji-top1", "emoji-top5", "emoji-tone")}  # one name for several
ANY_IMAGES = {"inception", "dino"}  # networks that may compare in one command
PAPERS = ("fid", "sfid", "is", "precision", "recall")  # what papers of this family report


def parse(text: str) -> tuple[str, ...]:
    """ "fid,is" → names of the table; SetupError for an unknown one, or networks that know other
    images.

    Metrics that need prompts go with any other.
    """
    said = [part.strip().lower() for part in text.split(",")]
    names = tuple(dict.fromkeys(name for part in said for name in TOGETHER.get(part, (part,))))
    for name in names:
        if name not in METRICS:
            there = [*METRICS, *TOGETHER]
            close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(there)}"
            raise SetupError(f"unknown metric '{name}'; {hint}")
    networks = {METRICS[n].network: n for n in names if METRICS[n].needs != "prompts"}
    if len(networks) > 1 and not networks.keys() <= ANY_IMAGES:
        raise SetupError(
            f"{' and '.join(networks.values())} look at images through different networks: "
            "ask for them in two commands"
        )
    return names


def networks_of(names: Sequence[str]) -> tuple[str, ...]:
    """What metrics look through; first the network of those that need no prompts, if any do."""
    rows = sorted((METRICS[name] for name in names), key=lambda row: row.needs == "prompts")
    return tuple(dict.fromkeys(row.network for row in rows))


def of_prompts(names: Sequence[str]) -> list[str]:
    """The metrics that need prompts."""
    return [name for name in names if METRICS[name].needs == "prompts"]


def with_accuracy(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics, and the accuracy where all of some results have it."""
    told = bool(results) and all("accuracy" in result for result in results)
    return [*names, *(["accuracy"] if told else [])]


def wanted(names: Sequence[str]) -> Wanted:
    """What has to be kept of the samples' features."""
    rows = [METRICS[name] for name in names]
    return Wanted(
        frozenset(row.feature for row in rows if row.needs == "statistics"),
        frozenset(row.feature for row in rows if row.needs in ("rows", "prompts")),
        any(row.needs == "score" for row in rows),
    )


def values(
    names: Sequence[str],
    fake: Collected,
    real: Collected | None,
    *,
    distances: Distances = "float16",
    device: str = "cpu",
    prompted: Prompted | None = None,
) -> dict[str, float]:
    """The metrics of samples against a reference, in the order asked for.

    real, prompted: None where no metric needs them. DataError: too few images for neighbours, or a
    metric that is not finite.
    """
    compared = Compared(fake, real, distances, device, prompted)
    found = {name: METRICS[name].compute(compared, METRICS[name].feature) for name in names}
    for name, value in found.items():
        if not math.isfinite(value):
            raise DataError(
                f"{name} is {value}: the statistics or features it is made of are too large, or of "
                "too few images"
            )
    return found
