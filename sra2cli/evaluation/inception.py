"""The Inception network of FID (2015-12-05), through torch-fidelity's port of it.

"pool" (B, 2048): its last pooling. "spatial" (B, 2023): the first 7 channels of the first branch
of its fourth 17x17 block, as (17, 17, 7). "logits" (B, 1008): without the bias.
Source: openai/guided-diffusion's evaluator, where they are pool_3, mixed_6/conv and the product
that feeds the softmax.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sra2cli.core.errors import SetupError
from sra2cli.evaluation.extractors import Extractor

URL = (  # as torch-fidelity has it; importing that takes two seconds, so it waits until needed
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"  # what the SHA-256 of the weights begins with
SPATIAL_CHANNELS = 7


def inception_extractor(weights: Path | None = None, *, device: str = "cpu") -> Extractor:
    """The network with its published weights, on a device, in float32 without TF32.

    Args:
        weights: the file; None: where torch-fidelity keeps it.

    Raises:
        SetupError: no such file, or it is another.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = weights or default_file()
    data, digest = read_weights(path)
    try:
        # The very bytes that were checked: torch-fidelity unpickles without any restriction.
        model = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=io.BytesIO(data),
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise SetupError(f"{path} does not hold the weights of Inception: {reason}") from None
    model.to(device)
    spatial: list[Tensor] = []
    model.Mixed_6d.branch1x1.register_forward_hook(
        lambda _module, _inputs, output: spatial.append(
            output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        )
    )

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, Tensor]:
        spatial.clear()
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
            pool, logits = model(x)
        return {"pool": pool, "spatial": spatial.pop(), "logits": logits}

    return Extractor(
        "inception-2015-12-05",
        digest,
        {"pool": 2048, "spatial": 17 * 17 * SPATIAL_CHANNELS, "logits": 1008},
        {"pool": "", "spatial": "_s"},
        run,
        about={"weights": str(path), "through": "torch-fidelity inception-v3-compat"},
    )


def default_file() -> Path:
    """Where torch-fidelity keeps them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def read_weights(path: Path) -> tuple[bytes, str]:
    """The file and its SHA-256, which must begin as the published one's does."""
    if not path.is_file():
        raise SetupError(
            f"no Inception weights at {path}: download {URL} to that place, "
            "or say where it lies with --inception"
        )
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(SHA256):
        raise SetupError(
            f"{path} is not {WEIGHTS}: its SHA-256 begins with {digest[:8]}, not {SHA256}; "
            f"download {URL} again"
        )
    return data, digest
