"""Damaged checkpoints, of runs and foreign, and first stages."""

import argparse
import json
import pathlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sra2cli.core.files import file_digest

from . import seeds
from .damage import Damage
from .mutate import Rng, as_json, damaged, odd_json, odd_tree, pick

State = dict[Any, Any]
PICKLES = {"model": "pytorch_model"}  # what transformers calls them


def odd_state(rng: Rng, state: State) -> tuple[State, str, bool]:
    """A state dict, damaged; whether it must be refused."""
    state = dict(state)
    key = pick(rng, state)
    tensor: Tensor = state[key]
    names = {
        "blocks.20000.attn.qkv.weight": True,
        "blocks.x.attn.qkv.weight": True,
        "blocks.": True,
        "blocks.-1.mlp.fc1.weight": True,
        "blocks.99999999999999999999.a": True,
        "decoder_blocks.0.weight": True,
        "extra": True,
        "": True,
        "é😀": True,
    }
    how = pick(rng, (*_TENSORS, "gone", "gone", "another name", "more", "more"))
    if how == "gone":
        del state[key]
        return state, f"no {key}", key != "pos_embed"
    if how == "another name":
        state[f"{key}_"] = state.pop(key)
        return state, f"{key}_ for {key}", key != "pos_embed"
    if how == "more":
        name = pick(rng, names)
        state[name] = torch.zeros(4, 4)
        return state, f"also {name[:30]!r}", names[name]
    made, must = _TENSORS[how](tensor)
    state[key] = made
    return state, f"{key} {how}", must and how != "double"


_TENSORS: dict[str, Callable[[Tensor], tuple[Tensor, bool]]] = {
    "nan": lambda t: (torch.full_like(t, torch.nan), t.is_floating_point()),
    "infinite": lambda t: (torch.full_like(t, torch.inf), t.is_floating_point()),
    "double": lambda t: (t.double(), False),
    "half": lambda t: (t.half(), False),
    "whole numbers": lambda t: (t.to(torch.int64), False),
    "yes or no": lambda t: (t > 0, False),
    "complex": lambda t: (t.to(torch.complex64), True),
    "flat": lambda t: (t.reshape(-1).clone(), t.dim() > 1),
    "longer": lambda t: (torch.cat([t, t]) if t.dim() else t, bool(t.dim())),
    "empty": lambda t: (t[:0].clone() if t.dim() else t, bool(t.dim())),
    "of one dimension more": lambda t: (t[None].clone(), True),
    "a number": lambda t: (torch.tensor(1.0), bool(t.dim())),
}


def _sparse(state: State) -> State:
    return {k: v.to_sparse() if v.dim() == 2 else v for k, v in state.items()}


def _odd_content(rng: Rng, content: State) -> tuple[Any, str, bool]:
    """What a .pt holds around its state dict."""
    state = content["ema"]
    args: tuple[tuple[str, Any, bool], ...] = (
        ("noise", {"prediction": "noise"}, True),
        ("VP", argparse.Namespace(path_type="VP", prediction="score"), True),
        ("cosine", argparse.Namespace(path_type="GVP"), False),
        ("odd types", {"path_type": ["Linear"], "prediction": {"a": 1}}, True),
        ("nan", {"path_type": float("nan"), "model": 7}, True),
        ("none", None, False),
        ("a list", [1, 2], False),
        ("a DiT", {"model": "DiT-XL/2"}, True),
        ("other classes", {"num_classes": 7, "model": "SiT-XL/2"}, True),
        ("a path", argparse.Namespace(results_dir=pathlib.PurePosixPath("x")), False),
        ("numpy", {"seed": np.float64(1.0)}, False),
    )
    if rng.random() < 0.5:
        name, value, must = pick(rng, args)
        return {**content, "args": value}, f"args: {name}", must
    options: tuple[tuple[str, Any, bool], ...] = (
        ("a list", [state], True),
        ("a tensor", torch.zeros(3), True),
        ("a number", 3, True),
        ("nothing", {}, True),
        ("no tensors", {"ema": {"a": 1}}, True),
        ("an empty ema", {**content, "ema": {}}, False),
        ("ema is a list", {**content, "ema": [1]}, False),
        ("keys are numbers", {"ema": dict(enumerate(state.values()))}, True),
        ("some keys are tuples", {"ema": {**state, (1, 2): torch.zeros(2)}}, True),
        ("none among keys", {"ema": {**state, None: 3}}, False),
        ("bare", state, False),
        ("deep", {"ema": {"model": state}}, True),
        ("a class", {"ema": state, "x": print}, True),
        ("sparse", {"ema": _sparse(state)}, True),
        ("a parameter", {"ema": {k: torch.nn.Parameter(v) for k, v in state.items()}}, False),
        ("a module", torch.nn.Linear(2, 2), True),
        ("strings", {"ema": dict.fromkeys(state, "x")}, True),
        ("one string", {"ema": {**state, "pos_embed": "x"}}, False),
        ("meta", {"ema": {k: v.to("meta") for k, v in state.items()}}, True),
    )  # fmt: skip
    name, value, must = pick(rng, options)
    return value, name, must


def foreign(rng: Rng, base: Path, into: Path) -> Damage:
    """A .pt as SiT's training writes it."""
    file, must = into / pick(rng, ("sit.pt", "sit.pt", "0400000.pt", "[odd] name.pt")), False
    how = pick(rng, ("bytes", "state", "state", "around"))
    if how == "bytes":
        data, note = damaged(rng, (base / "sit.pt").read_bytes())
        file.write_bytes(data)
        return Damage(file, note, must)
    content = torch.load(base / "sit.pt", weights_only=True)
    if how == "state":
        content["ema"], note, must = odd_state(rng, content["ema"])
    else:
        content, note, must = _odd_content(rng, content)
    torch.save(content, file)
    return Damage(file, note, must)


def _odd_header(rng: Rng, data: bytes) -> tuple[bytes, str]:
    """A safetensors file with an odd header, or one that says another length."""
    (length,) = struct.unpack_from("<Q", data)
    if rng.random() < 0.2:
        says = pick(rng, (0, length + 1, 10**8 + 1, 2**63, 2**64 - 1))
        return struct.pack("<Q", says) + data[8:], f"a header of {says} bytes"
    text, note = odd_json(rng, data[8 : 8 + length])
    return struct.pack("<Q", len(text)) + text + data[8 + length :], f"header: {note}"


def safetensors(rng: Rng, base: Path, into: Path) -> Damage:
    """A file or folder of our own network, with or without what it says of itself."""
    state = load_file(base / "ours.safetensors")
    config: Any = {"depth": 2, "width": 16, "heads": 2, "patch": 4, "channels": 16, "latent": 8}
    config |= {"classes": 2, "qk_norm": False, "mlp_ratio": 4.0}
    folder, must = into / "exported", False
    folder.mkdir()
    file = folder / "model.safetensors"
    how = pick(rng, ("bytes", "header", "state", "config", "config", "sharded"))
    about = {"sit": json.dumps(config), "path": "linear"}
    note = how
    if how == "state":
        state, note, must = odd_state(rng, state)
    elif how == "config":
        config, note = odd_tree(rng, config)
        about["sit"] = as_json(config, indent=None).encode("utf-8", "replace").decode()
        if rng.random() < 0.3:
            about["path"] = note = pick(rng, ("vp", "", "cosine", "3", "x" * 1000))
    save_file({k: v.contiguous() for k, v in state.items()}, file, metadata=about)
    if how in ("bytes", "header"):
        data, note = (damaged if how == "bytes" else _odd_header)(rng, file.read_bytes())
        file.write_bytes(data)
    elif how == "sharded":
        file.rename(folder / "model-00001-of-00002.safetensors")
        tree = {"weight_map": dict.fromkeys(state, "model-00001-of-00002.safetensors")}
        data, note = odd_json(rng, json.dumps(tree).encode())
        (folder / "model.safetensors.index.json").write_bytes(data)
    read = pick(rng, (file, folder)) if file.exists() else folder
    return Damage(read, note, must)


def checkpoint(rng: Rng, base: Path, into: Path) -> Damage:
    """The newest checkpoint of a run; the digests are made right, or left."""
    run = seeds.copy(base, "run", into / "run")
    folder = run / "checkpoints" / "step-00000002"
    about = folder / "checkpoint.json"
    tree, must = json.loads(about.read_text()), False
    how = pick(rng, ("bytes", "json", "json", "state", "state", "training"))
    name = pick(rng, ("ema.safetensors", "model.safetensors", "training.pt"))
    if how == "json":
        data, note = odd_json(rng, about.read_bytes())
        about.write_bytes(data)
        return Damage(run, note)
    if how == "state":
        name = "ema.safetensors"
        state, note, must = odd_state(rng, load_file(folder / name))
        save_file({k: v.contiguous() for k, v in state.items()}, folder / name)
    elif how == "training":
        name = "training.pt"
        content, note = _odd_training(rng, torch.load(folder / name, weights_only=True))
        torch.save(content, folder / name)
    else:
        data, note = damaged(rng, (folder / name).read_bytes())
        (folder / name).write_bytes(data)
    by = (
        "" if note.endswith((" nan", " infinite")) else "sample"
    )  # train goes back to the one before
    if how != "bytes" or rng.random() < 0.5:
        tree["files"][name] = file_digest(folder / name)
        about.write_text(json.dumps(tree))
    elif name == "ema.safetensors":
        must = True
    return Damage(run, f"{name}: {note}", must, by)


def _odd_training(rng: Rng, content: Any) -> tuple[Any, str]:
    """Of the optimiser."""
    tree, note = odd_tree(rng, {k: v for k, v in content.items() if not isinstance(v, Tensor)})
    note, made = pick(
        rng,
        (
            ("a list", [1]),
            ("nothing", {}),
            ("a number", 3),
            ("a tensor", torch.zeros(2)),
            ("no optimiser", dict(list(content.items())[1:])),
            (note, tree),
            (note, tree),
            (note, tree),
        ),
    )
    return made, f"training: {note}"


def vae(rng: Rng, base: Path, into: Path) -> Damage:
    """A first stage as diffusers saves it."""
    return _folder(rng, seeds.copy(base, "vae", into / "vae"), "diffusion_pytorch_model")


def encoder(rng: Rng, base: Path, into: Path) -> Damage:
    """An image encoder as transformers saves it."""
    return _folder(rng, seeds.copy(base, "encoder", into / "encoder"), "model")


def _folder(rng: Rng, folder: Path, stem: str) -> Damage:
    """A config and weights beside it, one of them damaged."""
    file, must = folder / f"{stem}.safetensors", False
    how = pick(rng, ("config", "config", "config", "state", "state", "bytes", "gone", "pickle"))
    if how == "config":
        data, note = odd_json(rng, (folder / "config.json").read_bytes())
        (folder / "config.json").write_bytes(data)
    elif how == "state":
        state, note, must = odd_state(rng, load_file(file))
        save_file({k: v.contiguous() for k, v in state.items()}, file)
    elif how == "bytes":
        data, note = pick(rng, (damaged, _odd_header))(rng, file.read_bytes())
        file.write_bytes(data)
    elif how == "gone":
        note, must = "a file gone", True
        pick(rng, (file, folder / "config.json")).unlink()
    else:
        note, must = "a pickle that runs something", True
        file.unlink()
        (folder / f"{PICKLES.get(stem, stem)}.bin").write_bytes(
            b"cposix\nsystem\n(S'touch \"$RAN\"'\ntR."
        )
    return Damage(folder, note, must)
