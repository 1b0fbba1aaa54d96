"""What an export says beside its network: of which run it is, and what that was trained on.

A file of `sra2 export` holds both in its metadata, so that it opens anywhere as its run does.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from sra2cli.config.checks import Natural
from sra2cli.config.reading import TypedDict, json_of
from sra2cli.core import hub
from sra2cli.core.errors import DataError
from sra2cli.data.store_info import StoreInfo
from sra2cli.models.checkpoint_files import WEIGHTS
from sra2cli.runs.run import Run

if TYPE_CHECKING:
    from sra2cli.runs.network import Network

STORE, ORIGIN = "store", "run"


class Origin(TypedDict):
    """The checkpoint that was exported. checkpoint: digest of its file there."""

    recipe: str
    method: str
    step: Natural
    weights: Literal["ema", "model"]
    checkpoint: str


def told(network: "Network", store: StoreInfo) -> dict[str, Any]:
    """What is written beside the weights of a run's network."""
    kept = {**asdict(store), "choice": {}}  # how the images were read says nothing of the network
    return {
        STORE: kept,
        ORIGIN: {name: network.about[name] for name in Origin.__annotations__},
    }


def read(said: Mapping[str, str], name: str) -> tuple[StoreInfo, dict[str, Any]] | None:
    """Store and origin, from a file's metadata; None: it was not made by `sra2 export`.

    Raises:
        DataError: they are damaged.
    """
    if STORE not in said or ORIGIN not in said:
        return None
    try:
        origin: dict[str, Any] = json_of(said[ORIGIN].encode(), Origin)
        return StoreInfo.from_plain(json_of(said[STORE].encode(), dict[str, Any])), origin
    except ValueError as error:
        raise DataError(f"{name} is damaged: what it says of its run: {error}") from None


def store_known(source: Path) -> StoreInfo | None:
    """Of what a source was trained on: a run, a checkpoint in one, or an export; None: not said."""
    if not hub.is_name(source):
        for folder in (source, *source.absolute().parents[:3]):
            if (folder / "recipe.yaml").is_file():
                return Run(folder).store_info
    file = hub.local(source)
    file = file / WEIGHTS if file.is_dir() else file
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    with suppress(SafetensorError, OSError), safe_open(file, framework="pt") as f:
        found = read(f.metadata() or {}, str(source))
        return None if found is None else found[0]
    return None
