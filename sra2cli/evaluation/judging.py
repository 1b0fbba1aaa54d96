"""How images are judged: what `sra2 eval` is asked for."""

from dataclasses import dataclass
from pathlib import Path

from sra2cli.core.errors import SetupError
from sra2cli.evaluation import scores
from sra2cli.evaluation.image_sets import Crop
from sra2cli.evaluation.metrics import Distances
from sra2cli.evaluation.networks import Opening

BATCH = 64
MODELS = {  # network → the attribute of Judging that names another
    "pickscore": "pickscore_model",
    "clip": "clip_model",
    "dino": "dino_model",
}


@dataclass(frozen=True)
class Judging:
    """How images are judged.

    metric: names of scores.METRICS, with commas; None: see `choose`.
    ref: an ADM .npz, or a source of images; None: the network's own stand-in.
    weights: of Inception; None: where torch-fidelity keeps them.
    pickscore_model, clip_model, dino_model: folder or hub name; None: those of the papers.
    offline: never touch the network.
    crop: of all images.
    batch: images at a time, also of those that are drawn.
    """

    metric: str | None = None
    ref: str | None = None
    weights: Path | None = None
    pickscore_model: str | None = None
    clip_model: str | None = None
    dino_model: str | None = None
    offline: bool = False
    crop: Crop | None = None
    distances: Distances = "float16"
    batch: int = BATCH

    def check(self) -> None:
        """SetupError for what means nothing, before any file is opened."""
        if self.batch < 1:
            raise SetupError("--batch must be above 0")
        names = () if self.metric is None else scores.parse(self.metric)
        for network in self.models():
            if network not in scores.networks_of(names):
                metrics = [name for name, row in scores.METRICS.items() if row.network == network]
                option = f"--{MODELS[network].replace('_', '-')}"
                raise SetupError(f"{option} is for --metrics {' or '.join(metrics)}")

    def models(self) -> dict[str, str]:
        """Network → folder or hub name, of those that were named."""
        named = {network: getattr(self, attribute) for network, attribute in MODELS.items()}
        return {network: name for network, name in named.items() if name is not None}

    def opening(self, device: str) -> Opening:
        """How the networks of metrics are opened."""
        return Opening(self.weights, device, self.models(), self.offline)
