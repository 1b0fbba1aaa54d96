"""Opening a trained network: a run, a checkpoint inside one, or a file of others."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sra2cli.align import Alignment
from sra2cli.config.settings import PathKind
from sra2cli.core import console, hub
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import file_digest, utf8
from sra2cli.data.store_info import StoreInfo
from sra2cli.encoders.first_stage import Scale
from sra2cli.models import checkpoints
from sra2cli.models.build import from_record
from sra2cli.models.checkpoint_files import WEIGHTS, refuse_parts
from sra2cli.models.contract import Backbone
from sra2cli.models.statistics import Statistics
from sra2cli.runs import exported, guides
from sra2cli.runs.naming import split_step
from sra2cli.runs.run import CHECKPOINT_META, Checkpoint, Run, read_checkpoint

Weights = Literal["ema", "model"]


@dataclass(frozen=True)
class Network:
    """What images are drawn from. about: what identifies it; samples: where they go by default;
    statistics: scale and shift of its latents, where a file of others holds them; guide: the method
    whose head can guide it, where that was asked for; run: the folder it lies in, if it is a run's.
    """

    model: Backbone
    path: PathKind
    about: dict[str, Any]
    samples: Path
    step: int | None = None
    store: StoreInfo | None = None
    statistics: Statistics | None = None
    guide: Alignment | None = None
    run: Path | None = None

    @property
    def class_names(self) -> list[str]:
        """As its store says; []: not known."""
        return [] if self.store is None else self.store.class_names

    def other_data(self, info: StoreInfo) -> str | None:
        """In what a store differs from what it was trained on; None: in nothing that is known.

        An encoder's fingerprint says nothing of scale and shift.
        """
        own = self.store
        if own is not None and own.vae_fingerprint != info.vae_fingerprint:
            return f"latents of VAE '{info.vae}', not of '{own.vae}'"
        known = self.statistics if own is None else (own.scale, own.shift)
        if known is not None and not _same(known, (info.scale, info.shift)):
            return "another scale and shift of latents"
        if self.model.told != "text":
            return None
        reader = self.model.config.to_dict()["text_encoder"]
        same = reader == info.text_encoder
        if own is not None:
            same = own.text_fingerprint == info.text_fingerprint
        return None if same else f"captions read by '{info.text_encoder}', not by '{reader}'"


def _same(a: tuple[Scale, Scale], b: tuple[Scale, Scale]) -> bool:
    pairs = (np.broadcast_arrays(x, y) for x, y in zip(a, b, strict=True))
    return all(np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in pairs)


def open_network(
    source: Path,
    *,
    step: int | None = None,
    weights: Weights = "ema",
    num_heads: int | None = None,
    kind: str | None = None,
    offline: bool = False,
    verify: bool = True,
    guide: bool = False,
) -> Network:
    """A run's checkpoint (RUN@STEP: of that step), or a file of SiT, REPA, SRA or ours.

    Args:
        source: also a hub name; of several processes all must open it.
        kind: what a foreign file is to be taken for, where its name says otherwise.
        offline: a hub name is looked up in the cache alone.
        verify: False in processes that read what another of them verifies.
        guide: with a head that can guide it; SetupError where there is none.
    """
    source, step = split_step(utf8(source), step)
    source = hub.pinned(source, offline=offline)
    named = hub.is_name(source)  # a file in the hub's cache
    folder = source if source.is_dir() else source.parent
    saved = (folder / CHECKPOINT_META).exists()  # a checkpoint inside a run
    alone = not saved and (named or source.is_file() or (source / WEIGHTS).is_file())
    stem = source.stem if source.is_file() else None
    if step is not None and (saved or named or source.is_file()):
        raise SetupError(f"--step chooses a checkpoint of a run; {source} is a checkpoint")
    if alone:
        found, origin = of_file(source, weights, num_heads, kind)
        return guided(found, source, origin, offline) if guide else found
    if saved and stem not in (None, "ema", "model"):
        raise SetupError(f"{source} holds no network: give ema.safetensors, or model.safetensors")
    if saved:
        source, checkpoint = folder.absolute().parent.parent, read_checkpoint(folder, verify=verify)
        weights = stem if stem in ("ema", "model") else weights  # type: ignore[assignment]
        run = Run(source)
    else:
        if source.is_dir() and not (source / "recipe.yaml").exists():
            refuse_parts(source)
        run = Run(source)
        checkpoint = run.checkpoint(step, verify=verify)
    return of_run(run, checkpoint, weights, guide=guide)


def of_file(
    source: Path, weights: Weights, num_heads: int | None, kind: str | None
) -> tuple[Network, dict[str, Any] | None]:
    """A network alone: a file, a folder with one, or a hub name that is in the cache.

    One that `sra2 export` made says what its run was trained on, and which checkpoint of it it was.
    """
    loaded = checkpoints.load(source, num_heads=num_heads, weights=weights, kind=kind)
    if loaded.assumed:
        tell = console.warn if loaded.unsure else console.say
        tell(f"{source}: {loaded.assumed}")
    file = hub.local(source)
    about: dict[str, Any] = {
        "kind": loaded.kind,
        "weights": loaded.weights,
        "checkpoint": file_digest(file / WEIGHTS if file.is_dir() else file),
    }
    beside = Path() if hub.is_name(source) else source.parent
    found = Network(
        loaded.model,
        loaded.path,
        about,
        beside / f"{hub.title(source)}-samples",
        statistics=loaded.statistics,
    )
    said = exported.read(loaded.said, str(source))
    if said is None:
        return found, None
    store, origin = said
    about |= {name: origin[name] for name in ("recipe", "method", "step", "weights")}
    return replace(found, step=origin["step"], store=store), origin


def guided(network: Network, source: Path, origin: dict[str, Any] | None, offline: bool) -> Network:
    """A network of `of_file` with the head that `sra2 export` put beside it."""
    if origin is None:
        raise SetupError(f"--self-guidance needs a run's own head: {source} has none")
    shape, digest = network.model.shape, origin["checkpoint"]
    head, said = guides.beside(source, shape, digest, offline=offline)
    return replace(network, guide=head, about={**network.about, "guide": said})


def of_run(run: Run, checkpoint: Checkpoint, weights: Weights, *, guide: bool) -> Network:
    """A checkpoint inside a run."""
    name = str(checkpoint.path / f"{weights}.safetensors")
    model = from_record(checkpoint.meta, checkpoint.weights(weights), name)
    if model is None:
        raise DataError(f"{checkpoint.path} holds a network that this sra2 does not know")
    about: dict[str, Any] = {
        "kind": "sra2",
        "recipe": run.recipe.name,
        "method": run.recipe.method,
        "step": checkpoint.step,
        "weights": weights,
        "checkpoint": checkpoint.meta["files"][f"{weights}.safetensors"],
    }
    head = None
    if guide:
        head, said = guides.of_checkpoint(run.recipe, checkpoint, weights, model.shape)
        about["guide"] = said
    return Network(
        model,
        run.recipe.path.kind,
        about,
        run.path / "samples",
        checkpoint.step,
        run.store_info,
        guide=head,
        run=run.path,
    )
