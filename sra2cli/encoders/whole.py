"""Weights of networks of others are complete, or refused: nothing is filled with random values."""

from collections.abc import Collection, Mapping
from typing import Any

from sra2cli.core.errors import SetupError

SHOWN = 3  # names of tensors


def check_whole(of: str, loaded: Mapping[str, Collection[Any]], *, unused: Collection[str]) -> None:
    """What diffusers and transformers say of loading (`output_loading_info`) must be nothing.

    Args:
        of: whose weights, as "the VAE 'digits'". unused: keys that may be missing or too many.

    Raises:
        SetupError: tensors are missing, unexpected or of another shape; names them.
    """
    reshaped = [f"{key} {tuple(a)} for {tuple(b)}" for key, a, b in loaded["mismatched_keys"]]
    faults = []
    for what, keys in (
        ("missing", set(loaded["missing_keys"]) - {key for key, *_ in loaded["mismatched_keys"]}),
        ("of another shape", reshaped),
        ("unexpected", loaded["unexpected_keys"]),
    ):
        found = sorted(set(keys) - set(unused))
        if found:
            more = ", ..." if len(found) > SHOWN else ""
            faults.append(f"{len(found)} {what} ({', '.join(found[:SHOWN])}{more})")
    if faults:
        raise SetupError(
            f"the weights of {of} do not fit its config.json: {'; '.join(faults)}: take those that "
            "were saved with it"
        )
