"""The network behind fd-emoji and emoji-text: how well a picture fits its caption, among all.

Two towers meet in 128 features: a small CNN of the picture, and the sum of a vector a word of the
caption. Trained by contrast on the training part of the emoji alone (tools/make_emoji_scorer.py):
no held-out picture was seen, but the captions of those are of known words.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sra2cli.data.emoji import ASSETS, CLASSES, RESOLUTION, TONES, table, tone_of

SCORER = ASSETS / "emoji-scorer.safetensors"
FEATURES = 128
TOP = (1, 5)
RECONSTRUCTED = {  # of the held-out pictures after the packaged first stage: as good as it gets
    "emoji-top1": 0.935,
    "emoji-top5": 1.0,
    "emoji-tone": 0.962,
    "fd-emoji": 24.45,  # they are people and hands alone, the reference is not
}
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[#*]")


def words_of(caption: str) -> list[str]:
    """Its words in lower case; hyphens hold one together."""
    return _WORD.findall(caption.lower())


@cache
def vocabulary() -> dict[str, int]:
    """Word of the training captions → number, in alphabetical order."""
    known = {w for caption, _, split in table() if split == "train" for w in words_of(caption)}
    return {word: i for i, word in enumerate(sorted(known))}


def _convolution(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, stride=stride, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


class EmojiScorer(nn.Module):
    """Pictures and captions → features (B, 128) each, of unit variance over training pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            _convolution(3, 32, 2),  # 16x16
            _convolution(32, 48, 1),
            _convolution(48, 64, 2),  # 8x8
            _convolution(64, 64, 1),
            _convolution(64, 96, 2),  # 4x4
            _convolution(96, 64, 1),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, FEATURES, bias=False),
            nn.BatchNorm1d(FEATURES, affine=False),
        )
        self.words = nn.EmbeddingBag(len(vocabulary()), 88, mode="sum")
        self.caption = nn.Linear(88, FEATURES)
        self.logits = nn.Linear(FEATURES, len(CLASSES))  # of the classes, for training
        self.sharpness = nn.Parameter(torch.tensor(2.5))  # log of what cosines are multiplied with

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (B, H, W, 3) → features (B, 128) float32."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        if x.shape[-2:] != (RESOLUTION, RESOLUTION):
            x = F.interpolate(x, (RESOLUTION, RESOLUTION), mode="area")
        features: Tensor = self.picture(x)
        return features

    def read(self, captions: Sequence[str]) -> Tensor:
        """Captions → directions (B, 128), of length 1; unknown words say nothing."""
        numbers = [[vocabulary()[w] for w in words_of(c) if w in vocabulary()] for c in captions]
        offsets = np.cumsum([0, *map(len, numbers)])[:-1]
        flat = torch.tensor([n for row in numbers for n in row], dtype=torch.long)
        return F.normalize(self.caption(self.words(flat, torch.from_numpy(offsets))), dim=1)


@cache
def load_scorer() -> EmojiScorer:
    """The packaged scorer, in eval mode."""
    from safetensors.torch import load_file

    model = EmojiScorer()
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(SCORER).items()}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@cache
def scorer_fingerprint() -> str:
    """Hash of the packaged scorer, recorded beside every fd-emoji."""
    return hashlib.sha256(SCORER.read_bytes()).hexdigest()[:16]


def has_unknown_words(prompts: Sequence[str]) -> list[bool]:
    """Whether a prompt has words that are in no training caption, and say nothing."""
    return [any(word not in vocabulary() for word in words_of(prompt)) for prompt in prompts]


def variants(prompt: str) -> list[str]:
    """The captions that differ from this one in skin tone alone, as Unicode has them: six or []."""
    return _by_base().get(tone_of(prompt)[0], [])


def has_tones(prompt: str) -> bool:
    """Whether it is one of such six."""
    return prompt in variants(prompt)


@cache
def _by_base() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for caption, _, _ in table():
        found.setdefault(tone_of(caption)[0], []).append(caption)
    return {base: captions for base, captions in found.items() if len(captions) == len(TONES) + 1}


@torch.no_grad()
def judge_pairs(
    features: Tensor, prompts: Sequence[str], scorer: EmojiScorer | None = None
) -> dict[str, float]:
    """How pictures follow their prompts.

    Args:
        features: (N, 128) of the pictures. prompts: N, one each.

    Returns:
        emoji-top1, emoji-top5: how often the prompt is the first, or among the first five, of all
        captions (a prompt that is none of them is put among them; equals count against it).
        emoji-tone: how often it is the first of the six that differ in skin tone alone; left out
        where no prompt has such.
    """
    scorer = scorer or load_scorer()
    captions = list(dict.fromkeys([*(caption for caption, _, _ in table()), *prompts]))
    number = {caption: i for i, caption in enumerate(captions)}
    directions = scorer.read(captions).T  # (128, captions)
    ranks, right = [], []
    for feature, prompt in zip(F.normalize(features, dim=1), prompts, strict=True):
        fits = feature @ directions
        ranks.append(int((fits >= fits[number[prompt]]).sum()))
        if has_tones(prompt):
            six = variants(prompt)
            right.append(six[int(fits[[number[c] for c in six]].argmax())] == prompt)
    found = {f"emoji-top{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in TOP}
    return found | ({"emoji-tone": sum(right) / len(right)} if right else {})


@torch.no_grad()
def judge_images(images: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
    """`judge_pairs` of uint8 images (N, H, W, 3)."""
    parts = torch.from_numpy(images).split(256)
    return judge_pairs(torch.cat([load_scorer()(part) for part in parts]), prompts)
