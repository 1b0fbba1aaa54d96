"""Files that are whole or not there, and what identifies their content."""

import atexit
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sra2cli.core.errors import SetupError


def private_folder(name: str) -> Path:
    """A folder in the user's cache that nobody else can write: for what will be executed.

    Where there is no such cache (no home, another owner), one of this process alone.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = Path(home) / "sra2" / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_absolute() and folder.stat().st_uid == os.geteuid():
            folder.chmod(0o700)
            return folder
    except OSError:
        pass
    scratch = tempfile.mkdtemp(prefix="sra2-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return Path(scratch)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def utf8(path: Path) -> Path:
    """A path that safetensors and TensorBoard can open, too.

    Raises:
        SetupError: it is not UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise SetupError(f"{path} is not UTF-8: rename it") from None
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a kill leaves the old one or the new one, whole."""
    scratch = path.parent / f".{path.name}.{os.getpid()}"  # "." has no name
    scratch.write_text(text, encoding="utf-8")
    sync(scratch)
    os.replace(scratch, path)


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """A small JSON file, whole as by `write_atomically`."""
    write_atomically(path, json.dumps(value, indent=indent) + "\n")


def file_digest(path: Path) -> str:
    """BLAKE2b of a file, 32 hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").hexdigest()[:32]


def listing_digest(path: str) -> str | None:
    """What tells whether a file, the files below a folder, or those of a pattern have changed.

    Of names, sizes and dates; None if there are none.
    """
    files = [p for p in glob.glob(path) if not os.path.isdir(p)]
    for folder, _, names in os.walk(path):
        files += [os.path.join(folder, name) for name in names]
    if not files:
        return None
    digest = hashlib.sha256()
    for file in sorted(files):
        about = os.stat(file)
        digest.update(os.fsencode(file))
        digest.update(f"\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def try_lock(handle: IO[Any] | int) -> bool:
    """Lock an open file or folder; False if another process has it. It goes with the process."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def hold(path: Path, busy: str) -> IO[bytes]:
    """A file, made where it is not there, locked until it is closed or the process ends.

    Raises:
        SetupError: another process has it; says `busy`.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # who held it before removes it: make it anew
            handle = path.open("ab")
            if not try_lock(handle):
                handle.close()
                raise SetupError(busy)
            if os.fstat(handle.fileno()).st_ino == path.stat().st_ino:
                return handle
            handle.close()


def is_held(path: Path) -> bool:
    """Whether a process has a file as `hold` gives it; it is had for a moment to find out."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        pass
    return False


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """A lock file, waited for: one process at a time is in here."""
    with path.open("ab") as handle:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_full(folder: Path) -> bool:
    """Whether nothing more can be written there, be it for the disk or a quota."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        probe.write_bytes(b"x" * (1 << 20))
        return False
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        probe.unlink(missing_ok=True)


def weights_fingerprint(state: Mapping[str, Any], prefixes: tuple[str, ...] = ("",)) -> str:
    """SHA-256, first 16 hex digits, of the tensors whose names begin with a prefix, as float32."""
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        if key.startswith(prefixes):
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
