"""How images fit their own prompts: PickScore and CLIP score, through CLIP's two halves.

PickScore: Kirstain et al. 2023, arXiv 2305.01569. CLIP score: Hessel et al. 2021, arXiv 2104.08718,
scaled as torchmetrics has it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sra2cli.core import console
from sra2cli.encoders.first_stage import full_precision
from sra2cli.encoders.pretrained import library
from sra2cli.encoders.text_networks import (
    LENGTH,
    NEEDED,
    fingerprint_of,
    load_network,
    load_tokenizer,
    whole,
)
from sra2cli.evaluation.extractors import Extractor

PICKSCORE = "yuvalkirstain/PickScore_v1"
PROCESSORS = {PICKSCORE: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}  # whose tokenizer it takes
CLIP = "openai/clip-vit-large-patch14"  # torchmetrics' default
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
UNUSED = re.compile(r"(.*\.)?position_ids")
TOGETHER = 64  # prompts read at a time


def pick_scores(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """PickScore of pairs (N,): exp(logit_scale) times the cosine of projections (N, D)."""
    return logit_scale.exp() * F.cosine_similarity(images, texts)


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """CLIP score of pairs (N,): 100 times the cosine of projections (N, D), or 0 below that."""
    return 100 * F.cosine_similarity(images, texts).clamp(min=0)


def pixel_values(image: np.ndarray, size: int) -> np.ndarray:
    """An image (H, W, 3) uint8 as CLIP sees it, (3, size, size) float32.

    The short side to `size` by PIL's bicubic filter (antialiased, in levels of 255), the middle of
    the long one, then CLIP's mean and deviation.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    to = (int(size * width / short), int(size * height / short))
    resized = np.asarray(Image.fromarray(image).resize(to, Image.Resampling.BICUBIC))
    top, left = (to[1] - size) // 2, (to[0] - size) // 2
    cut = resized[top : top + size, left : left + size].astype(np.float32) / 255
    normal = (cut - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


class Clip:
    """Both halves of a CLIP: images and prompts → projections (B, D) float32, not normalised."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device):
        self.model = model.to(device).eval().requires_grad_(False)
        self.tokenizer, self.device = tokenizer, device
        self.size = int(model.config.vision_config.image_size)
        self.length = min(LENGTH, int(model.config.text_config.max_position_embeddings))
        self.width = int(model.config.projection_dim)

    @torch.no_grad()
    def see(self, images: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) → (B, D)."""
        pixels = np.stack([pixel_values(image, self.size) for image in images])
        with full_precision():
            x = torch.from_numpy(pixels).to(self.device)
            pooled = self.model.vision_model(pixel_values=x).pooler_output
            seen: Tensor = self.model.visual_projection(pooled)
        return seen

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> Tensor:
        """Texts → (B, D), of the state at their end; padding comes after it."""
        ids = self.tokenizer(
            whole(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.length,
        )["input_ids"]
        with full_precision():
            pooled = self.model.text_model(
                input_ids=torch.tensor(ids, device=self.device)
            ).pooler_output
            read: Tensor = self.model.text_projection(pooled)
        return read

    def too_long(self, prompts: Sequence[str]) -> list[bool]:
        ids = self.tokenizer(whole(prompts), verbose=False)["input_ids"]
        return [len(row) > self.length for row in ids]

    def mean(
        self, score: Callable[[Tensor, Tensor], Tensor], seen: Tensor, prompts: Sequence[str]
    ) -> float:
        """A score's mean over pairs; seen: what `see` made of the images."""
        found = []
        with console.progress("prompts", len(prompts)) as bar:
            for start in range(0, len(prompts), TOGETHER):
                part = slice(start, start + TOGETHER)
                found.append(score(seen[part].to(self.device), self.read(prompts[part])).cpu())
                bar.advance(len(found[-1]))
        return float(torch.cat(found).double().mean())


def pickscore_extractor(
    name: str = PICKSCORE, *, device: str = "cpu", offline: bool = False
) -> Extractor:
    """PickScore's network: "pickscore" (B, D), what it sees of images.

    Raises:
        SetupError: transformers is missing, there is no such CLIP, or it is not whole or has no
            tokenizer. DataError: weights that are not finite.
    """
    clip, fingerprint = _open(name, "--pickscore-model", device, offline)

    def fits(seen: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        def score(images: Tensor, texts: Tensor) -> Tensor:
            return pick_scores(images, texts, clip.model.logit_scale)

        return {"pickscore": clip.mean(score, seen, prompts)}

    return _extractor(name, "pickscore", clip, fingerprint, fits)


def clip_extractor(name: str = CLIP, *, device: str = "cpu", offline: bool = False) -> Extractor:
    """A CLIP: "clip-score" (B, D), what it sees of images. Raises as `pickscore_extractor`."""
    clip, fingerprint = _open(name, "--clip-model", device, offline)

    def fits(seen: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        return {"clip-score": clip.mean(clip_scores, seen, prompts)}

    return _extractor(name, "clip-score", clip, fingerprint, fits)


def _open(name: str, option: str, device: str, offline: bool) -> tuple[Clip, str]:
    of = f"the model '{name}' ({option})"
    model = load_network(name, {"clip": "CLIPModel"}, unused=UNUSED, of=of, offline=offline)
    words = model.config.text_config.vocab_size
    tokenizer = load_tokenizer(PROCESSORS.get(name, name), vocabulary=words, offline=offline)
    fingerprint = fingerprint_of(model.state_dict(), tokenizer, UNUSED)
    return Clip(model, tokenizer, torch.device(device)), fingerprint


def _extractor(
    name: str,
    feature: str,
    clip: Clip,
    fingerprint: str,
    fits: Callable[[Tensor, Sequence[str]], dict[str, float]],
) -> Extractor:
    return Extractor(
        name,
        fingerprint,
        {feature: clip.width},
        {},
        lambda images: {feature: clip.see(images)},
        fits=fits,
        too_long=clip.too_long,
        about={"metric": feature, "size": clip.size, "tokens": clip.length},
    )


def clip_huge() -> nn.Module:
    """PickScore's network, CLIP ViT-H/14, without weights: for counting."""
    transformers = library(NEEDED)
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    config = transformers.CLIPConfig(
        text_config={**text, "num_attention_heads": 16, "projection_dim": 1024},
        vision_config={**vision, "num_attention_heads": 16, "patch_size": 14, "image_size": 224},
        projection_dim=1024,
    )
    model: nn.Module = transformers.CLIPModel(config)
    return model
