"""Text networks of transformers as text encoders: CLIP's text half, and T5's encoder."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sra2cli.core.errors import SetupError
from sra2cli.core.files import weights_fingerprint
from sra2cli.core.finite import check_finite
from sra2cli.encoders.first_stage import full_precision
from sra2cli.encoders.pretrained import from_pretrained, library, readable
from sra2cli.encoders.text import TextEncoder
from sra2cli.encoders.whole import check_whole

CLIP_LARGE = "openai/clip-vit-large-patch14"
LENGTH = 77  # tokens of CLIP, and of T5 here
TOGETHER = 8  # captions of a pass on a CPU
MODELS = {  # model_type of a config → class of transformers
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
}
UNUSED = re.compile(  # weights that the text features do not go through, or that stand twice
    r"(vision_model|visual_projection|text_projection|decoder|lm_head)\..*|logit_scale|"
    r"(.*\.)?position_ids|encoder\.embed_tokens\.weight"
)
TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
PROBES = (  # captions whose ids tell tokenizers apart
    "a photo of a cat",
    "Two men riding HORSES, 1987; it's a well-known café.",
    "  naïve 🚲 ½ 自転車 שלום\u00a0x\ty ",
    "",
)


class Pretrained(TextEncoder):
    """A text network of transformers: the hidden states after its final norm, in float32.

    Captions are cut and padded to 77 tokens (or as many as the network has positions). CLIP sees
    its padding, as it was trained: a mask would change the positions after the end, which are read
    too. T5 does not see it, and features there are 0; the id alone tells what is padding.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, device: torch.device):
        self.name, self.device, self.tokenizer = name, device, tokenizer
        self.model = model.to(device).eval().requires_grad_(False)
        config = self.model.config
        self.masked = config.model_type == "t5"
        self.length = min(LENGTH, getattr(config, "max_position_embeddings", LENGTH))
        self.width, self.vocabulary = int(config.hidden_size), int(config.vocab_size)
        self.fingerprint = fingerprint_of(self.model.state_dict(), tokenizer)

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        ids = np.empty((len(captions), self.length), dtype=np.int64)
        if len(captions):
            ids[:] = self._ids(captions, cut=True)
        return ids

    def too_long(self, captions: Sequence[str]) -> list[bool]:
        return [len(ids) > self.length for ids in self._ids(captions, cut=False)]

    def _ids(self, captions: Sequence[str], *, cut: bool) -> list[list[int]]:
        if not len(captions):
            return []
        padding = "max_length" if cut else False
        length = self.length if cut else None
        found = self.tokenizer(
            whole(captions), padding=padding, truncation=cut, max_length=length, verbose=False
        )
        ids: list[list[int]] = found["input_ids"]
        return ids

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """As promised; on a CPU a caption's features do not depend on those beside it."""
        size = TOGETHER if self.device.type == "cpu" else max(1, len(ids))
        ids = ids.to(self.device)
        out = torch.empty(*ids.shape, self.width, device=self.device)
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            count = len(part)
            part = torch.cat([part, part[-1:].expand(size - count, -1)])
            out[start : start + count] = self._pass(part)[:count]
        return out

    def _pass(self, ids: Tensor) -> Tensor:
        with full_precision(), torch.autocast(self.device.type, enabled=False):
            if not self.masked:
                hidden: Tensor = self.model(input_ids=ids).last_hidden_state
                return hidden
            mask = (ids != self.tokenizer.pad_token_id).long()
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return hidden * mask[:, :, None]


def whole(captions: Sequence[str]) -> list[str]:
    """Captions as tokenizers take them: without halves of pairs, and bytes that were no UTF-8."""
    return [caption.encode(errors="replace").decode() for caption in captions]


def fingerprint_of(
    state: Mapping[str, Tensor], tokenizer: Any, unused: re.Pattern[str] = UNUSED
) -> str:
    """Of weights and tokenizer, alike through all versions of transformers.

    The tokenizer is known by its vocabulary, and by what it does to some captions.
    """
    weights = {  # some versions name CLIP's with a prefix
        key.removeprefix("text_model."): value
        for key, value in state.items()
        if not unused.fullmatch(key)
    }
    pieces = sorted(tokenizer.get_vocab().items())
    ids = [tokenizer(text)["input_ids"] for text in PROBES]
    known = json.dumps([pieces, ids, tokenizer.pad_token_id])
    text = weights_fingerprint(weights) + hashlib.sha256(known.encode()).hexdigest()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


NEEDED = (
    "CLIP and T5 need transformers: pip install 'sra2[text]' "
    "(the text encoder 'words' does without)"
)


def load_pretrained(name: str, device: torch.device, *, offline: bool) -> Pretrained:
    """A text network by hub name or folder; raises as `load_text_encoder`."""
    model = load_network(
        name, MODELS, unused=UNUSED, of=f"the text encoder '{name}'", offline=offline
    )
    tokenizer = load_tokenizer(name, vocabulary=model.config.vocab_size, offline=offline)
    return Pretrained(name, model, tokenizer, device)


def load_network(
    name: str, kinds: Mapping[str, str], *, unused: re.Pattern[str], of: str, offline: bool
) -> Any:
    """A network of transformers by hub name or folder, in float32, whole and finite.

    Args:
        kinds: model_type of a config → class. unused: names of weights that may be missing or too
            many. of: what errors call it.

    Raises:
        SetupError: there is none, it is of another kind, or its weights are not complete.
        DataError: weights that are not finite.
    """
    transformers = library(NEEDED)
    local = Path(name).is_dir() or offline

    def read() -> tuple[str, Any]:
        kind: str = transformers.AutoConfig.from_pretrained(name, local_files_only=local).model_type
        if kind not in kinds:
            return kind, None
        return kind, from_pretrained(getattr(transformers, kinds[kind]), name, offline=offline)

    kind, found = readable(read, of, "config.json, weights and tokenizer")
    if found is None:
        raise SetupError(f"{of} is of kind {kind}, not of {', '.join(kinds)}")
    model, loaded = found
    keys = {*loaded["missing_keys"], *loaded["unexpected_keys"]}
    check_whole(of, loaded, unused={key for key in keys if unused.fullmatch(key)})
    check_finite(model.state_dict(), of)
    return model


def load_tokenizer(name: str, *, vocabulary: int, offline: bool) -> Any:
    """The tokenizer of a text network, by hub name or folder, padding and cutting on the right.

    Args:
        vocabulary: rows of the network's table of tokens.

    Raises:
        SetupError: there is none, or not one for this network.
    """
    transformers = library(NEEDED)
    local = Path(name).is_dir()
    files = [file for file in TOKENIZERS if (Path(name) / file).is_file()]
    if local and not files:
        raise SetupError(
            f"{name} has no tokenizer: put {TOKENIZERS[0]} of the same network beside its weights"
        )

    def read() -> tuple[Any, int]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, local_files_only=local or offline
        )
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer(PROBES[0], padding="max_length", truncation=True, max_length=LENGTH)
        return tokenizer, 1 + max(tokenizer.get_vocab().values())

    tokenizer, count = readable(read, f"the tokenizer of '{name}'")
    if not vocabulary / 2 < count <= vocabulary:  # where there is none, one of a few is made up
        raise SetupError(
            f"the tokenizer of '{name}' knows {count:,} tokens, the network {vocabulary:,}: take "
            "the one that was published with it"
        )
    return tokenizer


def clip_text_large() -> nn.Module:
    """The text half of CLIP ViT-L/14 without weights: for counting."""
    transformers = library(NEEDED)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
    config = transformers.CLIPTextConfig(**sizes, num_hidden_layers=12, num_attention_heads=12)
    model: nn.Module = transformers.CLIPTextModel(config)
    return model
