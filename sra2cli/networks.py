"""Opening a trained network: a run, a checkpoint inside one, or a file of others."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sra2cli import checkpoints
from sra2cli.errors import SetupError
from sra2cli.files import file_digest
from sra2cli.path import PathKind
from sra2cli.run import CHECKPOINT_META, Run, read_checkpoint
from sra2cli.sit import SiT, SiTConfig
from sra2cli.store import StoreInfo

Weights = Literal["ema", "model"]


@dataclass(frozen=True)
class Network:
    """What images are drawn from. about: what identifies it; samples: where they go by default."""

    model: SiT
    path: PathKind
    about: dict[str, Any]
    samples: Path
    step: int | None = None
    store: StoreInfo | None = None


def open_network(
    source: Path, *, step: int | None, weights: Weights, num_heads: int | None
) -> Network:
    """A run's checkpoint, or a checkpoint file of SiT, REPA, SRA or ours."""
    folder = source if source.is_dir() else source.parent
    saved = (folder / CHECKPOINT_META).exists()  # a checkpoint inside a run
    stem = source.stem if source.is_file() else None
    if step is not None and (saved or source.is_file()):
        raise SetupError(f"--step chooses a checkpoint of a run; {source} is a checkpoint")
    if not saved and (source.is_file() or (source / checkpoints.WEIGHTS).is_file()):
        loaded = checkpoints.load(source, num_heads=num_heads, weights=weights)
        file = source if source.is_file() else source / checkpoints.WEIGHTS
        about = {
            "kind": loaded.kind,
            "weights": loaded.weights,
            "checkpoint": file_digest(file),
        }
        samples = source.parent / f"{source.stem}-samples"
        return Network(loaded.model, loaded.path, about, samples)
    if saved:
        source, checkpoint = folder.absolute().parent.parent, read_checkpoint(folder)
        weights = stem if stem in ("ema", "model") else weights  # type: ignore[assignment]
        run = Run(source)
    else:
        run = Run(source)
        checkpoint = run.checkpoint(step)
    model = SiT(SiTConfig(**checkpoint.meta["sit"]))
    model.load_state_dict(checkpoint.weights(weights))
    return Network(
        model.eval().requires_grad_(False),
        run.recipe.path.kind,
        {
            "kind": "sra2",
            "recipe": run.recipe.name,
            "method": run.recipe.method,
            "step": checkpoint.step,
            "weights": weights,
            "checkpoint": checkpoint.meta["files"][f"{weights}.safetensors"],
        },
        source / "samples",
        checkpoint.step,
        run.store_info,
    )


def start_from(model: SiT, network: Network) -> str | None:
    """Copy a network's weights into `model`, which is to be trained.

    Positions belong to the resolution and are kept. Another number of classes keeps the new table.

    Returns:
        What was not taken over, to be said; None if nothing.

    Raises:
        SetupError: networks of different shape.
    """
    theirs, own = network.model.config, model.config
    differ = [
        f"{name} {getattr(theirs, name)} instead of {getattr(own, name)}"
        for name in ("depth", "width", "heads", "patch", "channels", "qk_norm", "mlp_ratio")
        if getattr(theirs, name) != getattr(own, name)
    ]
    if differ:
        raise SetupError(f"--init: its network has another shape ({', '.join(differ)})")
    state: Mapping[str, Any] = network.model.state_dict()
    left = {"pos_embed"}
    said = None
    if theirs.classes != own.classes:
        left |= {key for key in [*state, *model.state_dict()] if key.startswith("y_embedder")}
        said = f"{own.classes} classes instead of {theirs.classes}: their table starts anew"
    model.load_state_dict(
        {**model.state_dict(), **{k: v for k, v in state.items() if k not in left}}
    )
    return said
