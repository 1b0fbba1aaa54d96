"""LightningDiT's shards of latents: draws of a VAE's posterior, unscaled, with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.sources.layout import UNLABELLED, Choice, Source, whole_numbers

LATENTS, MIRRORED, LABELS = "latents", "latents_flip", "labels"  # (N, C, h, w) twice, and (N,)
STATISTICS = "latents_stats.pt"  # beside them; extraction takes it where it is asked to
FLOATS = ("F16", "BF16", "F32", "F64")
WHOLE = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")


def open_safetensors(root: Path, files: list[Path], choice: Choice) -> Source:
    """List the rows of shards, in their order. A row is mean‖std, with the draw as the mean and 0
    as the deviation, which is not known.

    Raises:
        SetupError: shards of several folders, or that do not belong together; no latents in one, or
            no labels that are classes; a choice that means nothing here.
        DataError: a damaged file.
    """
    folders = sorted({str(file.parent) for file in files})
    if root.is_dir() and len(folders) > 1:
        raise SetupError(
            f"{root} holds shards in several folders ({', '.join(folders[:3])}): give one of them, "
            f"or a quoted pattern, as '{folders[0]}/*.safetensors'"
        )
    if choice.given.keys() - {"label"} or choice.label not in (None, UNLABELLED):
        raise SetupError(f"{root} holds shards of latents: it can be told --label none alone")
    labelled = choice.label is None
    shards = [_shard(file, labelled) for file in files]
    for shard in shards:
        if shard.shape != shards[0].shape:
            raise SetupError(
                f"{shard.file} holds latents of {by(shard.shape)}, {files[0].name} of "
                f"{by(shards[0].shape)}: they are not of one data set"
            )
    rows = [(shard.file, k) for shard in shards for k in range(shard.count)]
    labels = [label for shard in shards for label in shard.labels]
    source = Source(
        root,
        [f"{file.name}/{k:08d}" for k, (file, _) in enumerate(rows)],
        whole_numbers(root, labels) if labelled else None,
        [],
        SafetensorsReader(rows, (LATENTS,)),
        "latents",
        drawn=shards[0].shape,
    )
    if not all(shard.mirrored for shard in shards):
        return source
    both = replace(source, reader=SafetensorsReader(rows, (LATENTS, MIRRORED)))
    return replace(source, mirrored=both)


def by(shape: Sequence[int]) -> str:
    """32x16x16"""
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class Shard:
    """A file: `count` latents of `shape` (C, h, w). mirrored: whether it has those too."""

    file: Path
    count: int
    shape: tuple[int, ...]
    mirrored: bool
    labels: list[Any]


def _shard(file: Path, labelled: bool) -> Shard:
    """What a file declares, and its labels."""
    try:
        with safe_open(file, framework="pt") as f:
            held = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in held.items()}
            types = {name: part.get_dtype() for name, part in held.items()}
            labels = f.get_tensor(LABELS).tolist() if labelled and LABELS in held else []
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{file} is damaged or not a safetensors file: {reason}") from None
    if LATENTS not in held:
        has = ", ".join(sorted(held)[:5]) or "nothing"
        raise SetupError(f"{file} holds no latents (it has {has}): is it a shard of LightningDiT?")
    count, *shape = shapes[LATENTS] or (0,)
    if len(shape) != 3 or not all((count, *shape)):
        raise SetupError(f"{file}: {LATENTS} is {by(shapes[LATENTS])}, not (N, C, h, w)")
    for name in (LATENTS, MIRRORED):
        if name in held and (shapes[name] != shapes[LATENTS] or types[name] not in FLOATS):
            raise SetupError(
                f"{file}: {name} is {types[name]} {by(shapes[name])}, not floating-point numbers "
                f"as {LATENTS} of {by(shapes[LATENTS])}"
            )
    if labelled and LABELS not in held:
        raise SetupError(f"{file} holds no labels: --label none, for unconditional models")
    if labelled and (shapes[LABELS] != (count,) or types[LABELS] not in WHOLE):
        raise SetupError(
            f"{file}: {LABELS} is {types[LABELS]} {by(shapes[LABELS])}, not a whole number for "
            f"each of {count} latents"
        )
    return Shard(file, count, tuple(shape), MIRRORED in held, labels)


@dataclass(frozen=True)
class SafetensorsReader:
    """Reads the moments (2C, h, w) of a row by its number; of several tensors stacked.

    rows: file and place in it, of each. tensors: by name.
    """

    rows: list[tuple[Path, int]]
    tensors: tuple[str, ...]

    def file_of(self, index: int) -> Path:
        """The file of a row."""
        return self.rows[index][0]

    def __call__(self, index: int) -> np.ndarray:
        file, row = self.rows[index]
        try:
            with safe_open(file, framework="pt") as f:
                found = [f.get_slice(name)[row].float().numpy() for name in self.tensors]
        except (SafetensorError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"damaged in its shard: {' '.join(str(error).split())}") from None
        moments = [np.concatenate([latent, np.zeros_like(latent)]) for latent in found]
        return moments[0] if len(moments) == 1 else np.stack(moments)
