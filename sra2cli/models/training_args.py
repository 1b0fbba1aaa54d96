"""What a foreign checkpoint says of its training: options of SiT, REPA and SRA, as they keep them.

What changes the meaning of the numbers is read: the path, what is predicted, and whose time it is.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sra2cli.config.settings import PathKind
from sra2cli.core.errors import SetupError

Whose = Literal["SiT", "REPA"]
PATHS: dict[str, PathKind] = {  # SiT's names and REPA's, in small letters
    "linear": "linear",
    "cosine": "cosine",
    "gvp": "cosine",  # SiT: sin and cos of pi*t/2 with t = 1 as data
}
VELOCITY = ("velocity", "v")
WORDS: dict[Whose, dict[str, tuple[Any, ...]]] = {  # in args, by who trained; (): any value
    "SiT": {"path_type": ("Linear", "GVP"), "prediction": ("velocity",), "loss_weight": ()},
    "REPA": {"path_type": ("linear", "cosine"), "prediction": ("v",), "weighting": ()},
}


def plain_args(content: Mapping[Any, Any], about: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of its training, by the names of SiT's and REPA's options; None: not said.

    Args:
        content: of a pickled checkpoint. about: metadata of a safetensors file.
    """
    found: dict[str, Any] = dict(about)
    if "path" in about:  # our own word for it
        found["path_type"] = about["path"]
    for key in ("config", "hyper_parameters", "args"):
        given = content.get(key)
        given = vars(given) if isinstance(given, argparse.Namespace) else given
        if isinstance(given, Mapping):
            found |= {str(k).replace("-", "_"): v for k, v in given.items() if v is not None}
    return found


def refuse_names(source: Path, args: Mapping[str, Any], kind: str | None) -> None:
    """DiT's files have SiT's keys and shapes to the last: nothing in the tensors tells them apart.

    Raises:
        SetupError: the base name, or the record, says that it is a DiT, or no SiT.
    """
    model = args.get("model")
    if isinstance(model, str) and "sit" not in model.lower():
        raise SetupError(f"{source} was trained as a {model[:80]} (its args say so): not a SiT")
    if kind is None and re.match(r"(fast-)?DiT[-_]", source.name):
        raise SetupError(
            f"{source} is a DiT by its name, which predicts noise: sra2 does not open it. "
            "If it is a SiT after all: --kind sit"
        )


def path_of(args: Mapping[str, Any], name: str) -> PathKind:
    """The path a file says it was trained on, linear if it does not.

    Raises:
        SetupError: a path that is none of ours, or a network that predicts something else.
    """
    prediction, path = args.get("prediction", "v"), args.get("path_type", "linear")
    if str(prediction).lower() not in VELOCITY:
        raise SetupError(
            f"{name} was trained to predict {str(prediction)[:80]} (its args say so), not the "
            "velocity: sra2 does not open it"
        )
    if str(path).lower() not in PATHS:
        raise SetupError(
            f"{name} was trained on the path {str(path)[:80]} (its args say so): sra2 knows linear "
            "and cosine, which SiT calls GVP"
        )
    return PATHS[str(path).lower()]


def trained_as(args: Mapping[str, Any]) -> Whose | None:
    """Whose options these are, SiT's (t = 0 is noise) or REPA's and SRA's (t = 0 is data); None if
    they do not tell."""
    said: list[Whose] = [
        whose
        for whose, words in WORDS.items()
        if any(k in args and (not v or args[k] in v) for k, v in words.items())
    ]
    return said[0] if len(said) == 1 else None
