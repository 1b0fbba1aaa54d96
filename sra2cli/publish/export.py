"""sra2 export: a run's checkpoint → a folder that opens anywhere, and from there to the hub.

FOLDER/model.safetensors  the network; its metadata say what it is, of which run and which data
FOLDER/README.md          the model card, written once: what is changed in it stays
FOLDER/head.safetensors   with --head: what can guide its sampling
FOLDER/config.json        the same as the metadata, to be read; there when all is
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sra2cli.config.reading import read_json
from sra2cli.core import console, hub
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import is_full, utf8, write_atomically
from sra2cli.models import checkpoints
from sra2cli.models.checkpoint_files import WEIGHTS
from sra2cli.publish import card
from sra2cli.runs import exported, guides
from sra2cli.runs.guides import HEAD
from sra2cli.runs.network import Network, Weights, open_network
from sra2cli.runs.run import Run

CARD = "README.md"


def export(
    source: Path,
    folder: Path,
    *,
    weights: Weights = "ema",
    head: bool = False,
    push: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write a run's network and its model card to a folder; what is there already is kept.

    Args:
        source: RUN or RUN@STEP. head: with the one that can guide sampling.
        push: upload the folder to this repository, ORG/NAME; private: if it is made.
        dry_run: check everything, write and send nothing.

    Returns:
        {"folder", "recipe", "method", "step", "weights", "parameters", "evaluations": how many the
        card shows, "files": those of the folder, "pushed": where to, or None, …}

    Raises:
        SetupError: no run, a folder of other things, or a hub that refuses.
        DataError: a damaged checkpoint.
    """
    repository = None if push is None else hub.check_repository(push)
    network = open_network(source, weights=weights, guide=head)
    if network.run is None or network.store is None:
        raise SetupError(f"{source} is no run: export takes RUN, or RUN@STEP")
    told = exported.told(network, network.store)
    there = holds(utf8(folder), told, head=head)
    run = Run(network.run)
    judged = card.evaluations(run, network)
    for what, name, option in card.on_this_machine(network.store):
        console.warn(
            f"the {what} '{name}' lies on this machine: the export names it so, and others "
            f"give theirs with {option}"
        )
    sent = None
    if not dry_run:
        if not there:
            write(network, folder, told)
        if not (folder / CARD).exists():
            write_atomically(folder / CARD, card.text(run, network, judged))
        if repository is not None:
            sent = hub.send(folder, repository, private=private)
    return {
        "folder": str(folder),
        **told[exported.ORIGIN],
        "parameters": card.parameters(network),
        "evaluations": len(judged),
        "files": [WEIGHTS, checkpoints.CONFIG, CARD, *([HEAD] if head else [])],
        "there": there,
        "push": repository,
        "pushed": sent,
        "dry_run": dry_run,
    }


def holds(folder: Path, told: dict[str, Any], *, head: bool) -> bool:
    """Whether a folder holds this very export; SetupError where it holds something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise SetupError(f"{folder} is a file: choose another --to")
    names = {file.name for file in folder.iterdir()}
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = read_json(folder / checkpoints.CONFIG, dict[str, Any])
    if found.get(exported.ORIGIN) == told[exported.ORIGIN] and WEIGHTS in names:
        return HEAD in names or not head
    if names <= {WEIGHTS, CARD, HEAD}:  # a kill came before the last file
        return False
    raise SetupError(f"{folder} holds other files, or another export: choose another --to")


def write(network: Network, folder: Path, told: dict[str, Any]) -> None:
    """Weights, a head where one guides, and config.json, which is there when all is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if network.guide is not None:
            of = network.about["checkpoint"]
            guides.write(network.guide, network.about["guide"], folder, of)
        checkpoints.export(network.model, folder, path=network.path, told=told)
    except SafetensorError as error:  # it hides why it could not write
        if is_full(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise DataError(f"{folder} cannot be written: {error}") from None
