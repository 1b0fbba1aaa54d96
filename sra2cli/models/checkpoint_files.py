"""Files of checkpoints, read as tensors and plain values: nothing in them is run.

What is no single file (sharded, DCP, DeepSpeed) is said as what it is, with the way to one file.
"""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sra2cli.core import hub
from sra2cli.core.errors import DataError, SetupError

WEIGHTS = hub.WEIGHTS  # in a folder with one network
SHARD = re.compile(r"-\d+-of-\d+\.(safetensors|bin|pt)$|\.index\.json$")
JOIN = (  # with the files of a folder
    'python -c "import glob, torch; from safetensors.torch import load_file; torch.save({{k: v '
    "for f in glob.glob('{folder}/*-of-*') for k, v in "
    "(load_file if f.endswith('s') else torch.load)(f).items()}}, 'one.pt')\""
)


def read(path: Path) -> tuple[dict[Any, Any], dict[str, str]]:
    """The content of a checkpoint's file, or of a folder with `WEIGHTS`, and a safetensors file's
    metadata.

    Raises:
        SetupError: no such file, or not a single one.
        DataError: a damaged file, or one that could run code.
    """
    if path.is_dir() and (path / WEIGHTS).is_file():
        path = path / WEIGHTS
    refuse_parts(path)
    if not path.is_file():
        raise SetupError(f"no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as f:
                about = f.metadata() or {}
            return dict(load_file(path)), about
        content = _unpickled(path)
    except DataError:
        raise
    except (
        Exception
    ) as error:  # three libraries, and each has errors of its own for what is damaged
        raise DataError(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise SetupError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return dict(content), {}


def refuse_parts(path: Path) -> None:
    """SetupError for a folder, or a part, of a network that lies in several files."""
    names = [p.name for p in path.iterdir()] if path.is_dir() else [path.name]
    folder = path if path.is_dir() else path.parent
    dcp = [f.parent for f in (*path.glob(".metadata"), *path.glob("*/.metadata"))]
    if path.suffix == ".distcp":
        dcp.append(folder)
    if dcp:
        raise SetupError(
            f"{path} is a checkpoint of torch.distributed (DCP), as FSDP saves it: make one file "
            "of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{dcp[0]} one.pt"
        )
    if "zero_to_fp32.py" in names:
        raise SetupError(
            f"{path} is a checkpoint of DeepSpeed: make one file of it with {path}/zero_to_fp32.py"
        )
    if any(SHARD.search(name) for name in names):
        raise SetupError(
            f"{path} is sharded, its tensors lie in several files: make one of them: "
            f"{JOIN.format(folder=folder)}"
        )
    if path.is_dir():
        files = [n for n in sorted(names) if n.endswith((".pt", ".pth", ".bin", ".safetensors"))]
        hint = f"name a file in it, as {path / files[0]}" if files else f"no {WEIGHTS} in it"
        raise SetupError(
            f"{path} is neither a run folder (no recipe.yaml) nor a checkpoint: {hint}"
        )


def _unpickled(path: Path) -> Any:
    """What torch.save wrote: tensors, plain values and argparse.Namespace, which training scripts
    keep; no other class is let in."""
    try:
        if zipfile.is_zipfile(path):  # torch packs nothing: what unpacks to more is a trap
            with zipfile.ZipFile(path) as parts:
                size = sum(part.file_size for part in parts.infolist())
            if size > path.stat().st_size:
                raise ValueError(f"it would unpack to {size:,} bytes")
        with (
            warnings.catch_warnings(),  # of torch, on what others wrote: lines before the one error
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle's own errors for what it does not allow
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise DataError(
                f"{path} cannot be opened safely: it holds a {named[1]}, which could run code. "
                "Where it was made, torch.save it again with tensors, text and plain numbers alone "
                "(of args: those values that are str, int, float or bool)"
            ) from None
        if "Weights only load failed" in str(error):
            detail = str(error).partition("Error: ")[2] or "its pickle is not whole"
            raise DataError(
                f"{path} cannot be opened safely, it is damaged or not a checkpoint: "
                f"{' '.join(detail.split())[:120]}"
            ) from None
        raise DataError(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
