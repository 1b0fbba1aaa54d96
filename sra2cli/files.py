"""Files that are whole or not there, and what identifies their content."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a kill leaves the old one or the new one, whole."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    sync(scratch)
    os.replace(scratch, path)


def file_digest(path: Path) -> str:
    """BLAKE2b of a file, 32 hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").hexdigest()[:32]


def weights_fingerprint(state: Mapping[str, Any], prefixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256, first 16 hex digits, of the tensors whose names begin with a prefix, as float32."""
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        if key.startswith(prefixes):
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
