"""The networks that metrics look through: a row each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sra2cli.data import digits, emoji
from sra2cli.evaluation import scores
from sra2cli.evaluation.dino import DINO, dino_extractor
from sra2cli.evaluation.extractors import (
    Extractor,
    digits_extractor,
    emoji_extractor,
    side_by_side,
)
from sra2cli.evaluation.inception import inception_extractor
from sra2cli.evaluation.pickscore import CLIP, PICKSCORE, clip_extractor, pickscore_extractor


@dataclass(frozen=True)
class Opening:
    """How networks are opened. weights: of Inception, a file. models: folder or hub name of others,
    by network. offline: never touch the network."""

    weights: Path | None = None
    device: str = "cpu"
    models: Mapping[str, str] = field(default_factory=dict)
    offline: bool = False

    def model(self, network: str, default: str) -> str:
        return self.models.get(network, default)


@dataclass(frozen=True)
class JudgeNetwork:
    """A row. open: the network, on its device.

    metrics: that are asked for where nothing else is. knows: fingerprint of the first stage of the
    only images it means something for, and of what they are; None: it knows any.
    """

    open: Callable[[Opening], Extractor]
    metrics: tuple[str, ...]
    knows: str | None = None
    of: str = ""


NETWORKS: dict[str, JudgeNetwork] = {  # by their names in scores.METRICS
    "inception": JudgeNetwork(
        lambda how: inception_extractor(how.weights, device=how.device), scores.PAPERS
    ),
    "digits": JudgeNetwork(
        lambda how: digits_extractor(), ("fd-digits",), digits.FIRST_STAGE, "the digits"
    ),
    "emoji": JudgeNetwork(
        lambda how: emoji_extractor(), ("fd-emoji",), emoji.FIRST_STAGE, "the emoji"
    ),
    "pickscore": JudgeNetwork(
        lambda how: pickscore_extractor(
            how.model("pickscore", PICKSCORE), device=how.device, offline=how.offline
        ),
        ("pickscore",),
    ),
    "clip": JudgeNetwork(
        lambda how: clip_extractor(how.model("clip", CLIP), device=how.device, offline=how.offline),
        ("clip-score",),
    ),
    "dino": JudgeNetwork(
        lambda how: dino_extractor(how.model("dino", DINO), device=how.device, offline=how.offline),
        ("fdd",),
    ),
}


def open_extractors(names: Sequence[str], how: Opening) -> list[Extractor]:
    """The networks of the metrics, as `scores.networks_of`; Inception where there are none."""
    return [NETWORKS[network].open(how) for network in scores.networks_of(names) or ("inception",)]


def comparing(names: Sequence[str], extractors: Sequence[Extractor]) -> Extractor:
    """What metrics that need no prompts look through, side by side; the first where none is."""
    told = scores.of_prompts(names)
    count = len(scores.networks_of([name for name in names if name not in told]))
    return side_by_side(extractors[0], extractors[1:count])
