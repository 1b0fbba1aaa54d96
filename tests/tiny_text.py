"""Small text networks of transformers with tokenizers, saved as their makers save them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5ForConditionalGeneration,
)

WIDTH = 32


def write_clip_tokenizer(folder: Path) -> int:
    """CLIP's byte-level pairs with two merges, as vocab.json and merges.txt; its tokens."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*signs, *(sign + "</w>" for sign in signs), "ca", "cat</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    about = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return len(vocabulary)


def clip_text_config(tokens: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )


def save_clip_text(folder: Path) -> CLIPTextModel:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = CLIPTextModel(clip_text_config(write_clip_tokenizer(folder)))
    model.save_pretrained(folder)
    return model.eval()


def save_clip(folder: Path, *, seed: int = 0) -> CLIPModel:
    """Both halves, with projections; images of 28 x 28."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    text = clip_text_config(write_clip_tokenizer(folder))
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    vision = {**sizes, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=16)
    model = CLIPModel(config)
    model.save_pretrained(folder)
    return model.eval()


def save_t5(folder: Path) -> T5ForConditionalGeneration:
    """With its decoder, as it is published; its tokenizer a tokenizer.json of pieces."""
    folder.mkdir(parents=True)
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581cat"]
    model = models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 2)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    about |= {"eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    network = T5ForConditionalGeneration(T5Config(vocab_size=len(pieces) + 5, **sizes))
    network.save_pretrained(folder)
    return network.eval()
