"""DINOv2's class token, for Fréchet and kernel distance (Stein et al. 2023, arXiv 2306.04675).

As that paper's own evaluator has it: ViT-L/14 on 224x224, its class token after the final norm.
Or as torch-fidelity has it, by its names: the same networks, and another resize.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sra2cli.core.errors import SetupError
from sra2cli.core.files import weights_fingerprint
from sra2cli.core.finite import check_finite
from sra2cli.encoders.first_stage import full_precision
from sra2cli.encoders.image import IMAGENET_MEAN, IMAGENET_STD, load_for_class_token
from sra2cli.evaluation.extractors import Extractor

DINO = "facebook/dinov2-large"  # ViT-L/14 without registers, as transformers keeps it
SIZE = 224
FEATURE = "dino"
FIDELITY = {  # torch-fidelity's names → those of DINOv2's own code
    f"dinov2-vit-{size}-14": f"dinov2_vit{size}14" for size in "sblg"
}
CODE = "facebookresearch_dinov2_main"  # where torch.hub keeps it
URL = "https://dl.fbaipublicfiles.com/dinov2/{0}/{0}_pretrain.pth"


def pixel_values(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 as DINOv2 sees it, (3, SIZE, SIZE) float32.

    Both sides to `SIZE` by PIL's bicubic filter (antialiased, in levels of 255), whatever their
    ratio, then ImageNet's mean and deviation.
    """
    resized = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    x = np.asarray(resized, np.float32) / 255
    normal = (x - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def dino_extractor(name: str = DINO, *, device: str = "cpu", offline: bool = False) -> Extractor:
    """An image encoder, by hub name or folder: "dino" (B, F), its class token, in float32.

    One of torch-fidelity's names gives its extractor.

    Raises:
        SetupError: transformers is missing, there is no such encoder, or it is not whole or has no
            class token. DataError: weights that are not finite.
    """
    if name in FIDELITY:
        return _fidelity(name, device)
    encoder = load_for_class_token(name, size=SIZE, device=device, offline=offline)

    def run(images: np.ndarray) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.stack([pixel_values(image) for image in images]))
        with full_precision():
            return {FEATURE: encoder.see(pixels.to(encoder.device))[:, 0]}

    about = {"resize": "bicubic (PIL)", "through": "transformers"}
    return _extractor(name, encoder.fingerprint, encoder.width, run, about)


def _extractor(
    name: str,
    fingerprint: str,
    width: int,
    run: Callable[[np.ndarray], dict[str, Tensor]],
    about: dict[str, Any],
) -> Extractor:
    told = {"feature": "class token after the final norm", "size": SIZE, "normalised": "ImageNet"}
    return Extractor(
        name,
        fingerprint,
        {FEATURE: width},
        {FEATURE: "_dino"},
        run,
        standard=False,
        about={**told, **about},
    )


def _fidelity(name: str, device: str) -> Extractor:
    """DINOv2's own code and weights, seen as torch-fidelity's extractor sees images: resized as
    TensorFlow 1 did, bilinear without antialias. Nothing is fetched, and no pickle is run."""
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    model, fingerprint = _published(name, FIDELITY[name])
    model = model.to(device).eval().requires_grad_(False)
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1) * 255
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, Tensor]:
        with full_precision():
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
            x = resize(x, size=(SIZE, SIZE), align_corners=False)
            return {FEATURE: model((x - mean) / std)}

    width = int(run(np.zeros((1, 8, 8, 3), np.uint8))[FEATURE].shape[1])
    about = {"resize": "bilinear (TensorFlow 1)", "through": f"torch-fidelity's {name}"}
    return _extractor(name, fingerprint, width, run, about)


def _published(name: str, network: str) -> tuple[nn.Module, str]:
    """A network of DINOv2's own code, out of torch's cache, and the fingerprint of its weights."""
    code = Path(torch.hub.get_dir()) / CODE
    weights = Path(torch.hub.get_dir()) / "checkpoints" / f"{network}_pretrain.pth"
    if not (code / "hubconf.py").is_file() or not weights.is_file():
        raise SetupError(
            f"--dino-model {name} is torch-fidelity's: put github.com/facebookresearch/dinov2 at "
            f"{code} and {URL.format(network)} at {weights}, or name another, as {DINO}"
        )
    os.environ["XFORMERS_DISABLED"] = "1"  # as torch-fidelity
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no xFormers
            model = torch.hub.load(str(code), network, source="local", pretrained=False)
        model.load_state_dict(state)
    except Exception as error:  # of a damaged file, or other code, it may be anything
        reason = " ".join(str(error).split())[:160]
        raise SetupError(f"cannot load {name} of {weights} and {code}: {reason}") from None
    check_finite(state, f"the network '{name}'")
    return model, weights_fingerprint(state)
