"""A folder of samples: images by number, and the record (samples.json) of how they were made."""

from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np

from sra2cli.config.checks import Count, Natural
from sra2cli.config.reading import AfterValidator, NotRequired, TypedDict, read_json
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import hold, write_json
from sra2cli.data.images import read_image


def _of_all(about: dict[str, Any]) -> dict[str, Any]:
    for name in ("labels", "prompts"):
        found = about.get(name)
        if found is not None and len(found) != about["num"]:
            raise ValueError(f"{len(found)} {name} of {about['num']} images")
    return about


class VaeRecord(TypedDict):
    """Of the first stage, in samples.json."""

    fingerprint: str


class SampleRecord(TypedDict):
    """samples.json, as far as it is read."""

    num: Count
    complete: NotRequired[bool]
    labels: NotRequired[list[Natural] | None]
    prompts: NotRequired[list[str]]
    vae: NotRequired[VaeRecord]


def record_of(folder: Path) -> dict[str, Any] | None:
    """samples.json of a folder; None where there is none. ValueError: it is not what we write."""
    file = folder / "samples.json"
    if not file.exists():
        return None
    about: dict[str, Any] = read_json(file, Annotated[SampleRecord, AfterValidator(_of_all)])
    return about


def prepare(out: Path, about: dict[str, Any]) -> IO[bytes]:
    """Make the folder, or take it up again if it holds samples made in this very way.

    Returns:
        Its lock, which keeps others from drawing into it until it is closed.
    """
    record = out / "samples.json"
    there = out.exists() and not record.exists()
    if there and (not out.is_dir() or any(file.name[0] != "." for file in out.iterdir())):
        raise SetupError(f"{out} is not empty: choose another --out")
    lock = hold(out / ".lock", f"another sample is drawing into {out}: wait for it")
    try:
        before = record_of(out)
    except ValueError as error:
        raise DataError(f"{record} is damaged ({error}): choose another --out") from None
    if before is not None:
        differ = [k for k in about if before.get(k) != about[k] and k not in ("num", "source")]
        if differ:
            raise SetupError(
                f"{out} holds other samples (differs in {', '.join(differ)}): choose another --out"
            )
        if before["num"] > about["num"]:
            raise SetupError(f"{out} holds {before['num']} samples already: choose another --out")
    write_json(record, {**about, "complete": False})
    return lock


def image_file(out: Path, index: int) -> Path:
    return out / f"{index:06d}.png"


def drawn_image(out: Path, index: int) -> np.ndarray:
    """An image that was drawn before, (H, W, 3) uint8; DataError where it is damaged since."""
    file = image_file(out, index)
    try:
        return read_image(file)
    except DataError as error:
        raise DataError(f"{file}: {error}: remove it and run the same command again") from None
