"""Reading a network of the transformers library, by hub name or folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from sra2cli.core.errors import SetupError

T = TypeVar("T")


def library(without: str) -> Any:
    """The transformers library, quiet; SetupError, `without` it, where it is not there."""
    try:
        import transformers
        from transformers.utils import logging
    except ImportError:
        raise SetupError(without) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def from_pretrained(kind: Any, name: str, *, offline: bool) -> tuple[Any, dict[str, Any]]:
    """A network in float32, and which of its weights were missing, unexpected or misshapen: what
    is not in the file is random, so that must be looked at (see `whole`)."""
    model, loaded = kind.from_pretrained(
        name,
        local_files_only=Path(name).is_dir() or offline,
        torch_dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused by `check_whole`, with their names
    )
    return model, loaded


def readable(read: Callable[[], T], of: str, holds: str = "") -> T:
    """What `read` gives; SetupError, one line, where it cannot.

    Args:
        of: what is read. holds: what a folder of it has; "": nothing is said of that.
    """
    try:
        return read()
    except Exception as error:  # of a damaged file its readers raise anything
        reason = " ".join(str(error).split())[:200]
        hint = f"; give a hub name or a folder with {holds}" if holds else ""
        raise SetupError(f"cannot load {of}: {reason}{hint}") from None
