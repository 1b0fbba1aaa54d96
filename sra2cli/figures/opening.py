"""What pictures are asked to show, and the network that is opened for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sra2cli.core import hub
from sra2cli.core.errors import SetupError
from sra2cli.runs.naming import split_step
from sra2cli.runs.network import Network
from sra2cli.sampling.opening import Options

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
SHOWN_BLOCKS = 6


@dataclass(frozen=True)
class What:
    """What is looked at, and with what.

    data: a store; None: the run's. blocks: (): chosen. options: as those of `sample`.
    """

    data: Path | None = None
    times: tuple[float, ...] = TIMES
    blocks: tuple[int, ...] = ()
    seed: int = 0
    device: str = "cpu"
    options: Options = field(default_factory=Options)


def opened(source: Path, what: What) -> tuple[Path, Network]:
    """A network on its device, and its run or file without a step."""
    source = hub.pinned(source, offline=what.options.offline)
    network = what.options.open(source)
    network.model.to(what.device)
    return split_step(source)[0], network


def chosen_blocks(
    network: Network, wanted: Sequence[int], *, every: bool = False
) -> tuple[int, ...]:
    """The blocks asked for; by default all, or `SHOWN_BLOCKS` evenly spaced."""
    depth = network.model.shape.depth
    wrong = next((b for b in wanted if not 1 <= b <= depth), None)
    if wrong is not None:
        raise SetupError(f"--blocks: the network has blocks 1..{depth}, no {wrong}")
    count = depth if every else min(SHOWN_BLOCKS, depth)
    return tuple(wanted) or tuple(sorted({round(b) for b in np.linspace(1, depth, count)}))


def default_file(source: Path, network: Network, kind: str) -> Path:
    """Inside a run; beside a file; of a hub name, here."""
    if network.run is None:
        return network.samples.with_name(f"{hub.title(source)}-{kind}.png")
    return network.run / "figures" / f"{kind}-step{network.step or 0:07d}.png"
