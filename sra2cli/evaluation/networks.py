"""The networks that metrics look through: a row each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sra2cli.data.digits import FIRST_STAGE
from sra2cli.evaluation import scores
from sra2cli.evaluation.extractors import Extractor, digits_extractor
from sra2cli.evaluation.inception import inception_extractor


@dataclass(frozen=True)
class JudgeNetwork:
    """A row. open(weights, device): the network, on its device.

    metrics: that are asked for where nothing else is. knows: fingerprint of the first stage of the
    only images it means something for, and of what they are; None: it knows any.
    """

    open: Callable[[Path | None, str], Extractor]
    metrics: tuple[str, ...]
    knows: str | None = None
    of: str = ""


NETWORKS: dict[str, JudgeNetwork] = {  # by their names in scores.METRICS
    "inception": JudgeNetwork(
        lambda weights, device: inception_extractor(weights, device=device), scores.PAPERS
    ),
    "digits": JudgeNetwork(
        lambda weights, device: digits_extractor(), ("fd-digits",), FIRST_STAGE, "the digits"
    ),
}


def open_extractor(names: Sequence[str], weights: Path | None, device: str) -> Extractor:
    """The network of the metrics; Inception where there are none."""
    network = scores.METRICS[names[0]].network if names else "inception"
    return NETWORKS[network].open(weights, device)
