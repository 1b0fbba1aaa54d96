"""What is trained on what: opened, held against each other, put together, once for all callers."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sra2cli.config.settings import Recipe
from sra2cli.core import console, hub
from sra2cli.core.errors import SetupError
from sra2cli.core.processes import Group
from sra2cli.data.batches import Batches, share
from sra2cli.data.fitting import fitted
from sra2cli.data.prompts import text_encoder_of
from sra2cli.data.sources import Choice, Source, open_source
from sra2cli.data.store import Store
from sra2cli.encoders.image import Encoder, load_encoder
from sra2cli.encoders.text import TextEncoder
from sra2cli.models.build import BACKBONES, shape_of, start_from
from sra2cli.models.contract import Backbone
from sra2cli.runs.network import open_network
from sra2cli.training.engine import Engine, resolve_precision
from sra2cli.training.objective import Objective, build_heads


@dataclass(frozen=True)
class Training:
    """A recipe that fits its store, and what its steps are made of.

    images: what the store was made from; encoder: runs on them while training. Both, or neither.
    text_encoder: runs on captions while training; None where the store has their features.
    frozen: another network, whose tokens a method aligns with; taught_by: its path and digest.
    indices: of the global batch, for each micro-batch of a step of this process.
    """

    recipe: Recipe
    store: Store
    indices: list[range]
    images: Source | None = None
    encoder: Encoder | None = None
    text_encoder: TextEncoder | None = None
    frozen: Backbone | None = None
    taught_by: Mapping[str, str] | None = None

    @property
    def feature_width(self) -> int | None:
        """Of the image encoder's features; None without any."""
        return (self.encoder.width if self.encoder else self.store.info.feature_width) or None

    def objective(self) -> Objective:
        """Network and heads with their initial weights."""
        objective = Objective(self.recipe, feature_width=self.feature_width)
        if objective.network.told == "text" and self.store.captions is not None:
            objective.network.tell_null(self.store.captions.null)
        return objective

    def engine(self, objective: Objective, group: Group) -> Engine:
        others = (self.encoder, self.text_encoder, self.frozen)
        return Engine(self.recipe, self.store, objective, group, *others)

    def batches(self, device: str) -> Batches:
        pin = device.startswith("cuda")
        return Batches(self.store, self.recipe, self.indices, images=self.images, pin=pin)


def prepare(
    wanted: Recipe,
    data: Path,
    group: Group,
    *,
    images: Path | None = None,
    offline: bool = False,
    out: Path | None = None,
) -> Training:
    """Everything that can be refused before training is, and what training needs.

    Args:
        out: the run folder, whose precision never changes.

    Raises:
        SetupError: recipe, store and images do not fit each other.
    """
    refuse_unbuildable(wanted)  # before any file is opened
    indices = share(wanted, rank=group.rank, processes=group.count)
    if wanted.log.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise SetupError("log.wandb needs wandb: pip install wandb, or log.wandb=null")
    if images is not None and wanted.encoder is None:
        raise SetupError("--images is for methods that need an image encoder; this recipe has none")
    store = Store(data)
    source = open_source(images, Choice.of(store.info.choice)) if images is not None else None
    wanted = fitted(wanted, store, source)
    refuse_unbuildable(wanted)
    encoder = None
    if source is not None and wanted.encoder is not None:
        side = shape_of(wanted).side
        encoder = load_encoder(wanted.encoder, side=side, device=group.device, offline=offline)
    text_encoder = None
    if shape_of(wanted).condition == "text" and store.captions and not store.captions.has_features:
        text_encoder = text_encoder_of(store.info, device=group.device, offline=offline)
    frozen, taught_by = frozen_network(wanted, store, offline=offline, verify=group.main)
    wanted = group.share(resolve_precision(wanted, out, torch.device(group.device)))
    return Training(wanted, store, indices, source, encoder, text_encoder, frozen, taught_by)


def frozen_network(
    wanted: Recipe, store: Store, *, offline: bool, verify: bool
) -> tuple[Backbone | None, Mapping[str, str] | None]:
    """The network that a method aligns with beside the EMA, and what it is; None: no method does.

    Args:
        verify: of several processes, one does.

    Raises:
        SetupError: it is not named, or of another shape, path or data.
    """
    if wanted.frozen is None:
        return None, None
    key = f"align.{next(n for n, s in wanted.align.items() if 'frozen' in s.needs)}.teacher"
    if not wanted.frozen:
        raise SetupError(f"--set {key}=RUN: the run or checkpoint whose tokens are the target")
    source = hub.pinned(Path(wanted.frozen), offline=offline)
    network = open_network(source, offline=offline, verify=verify)
    if network.model.shape != shape_of(wanted):
        raise SetupError(f"{key}: {wanted.frozen} is a network of another shape than the recipe's")
    if network.path != wanted.path.kind:
        raise SetupError(f"{key}: {wanted.frozen} was trained on the {network.path} path")
    if (differ := network.other_data(store.info)) is not None:
        raise SetupError(f"{key}: {wanted.frozen} was trained on other data than {differ}")
    return network.model, {"path": str(source), "digest": network.about["checkpoint"]}


def refuse_unbuildable(wanted: Recipe) -> None:
    """SetupError where network and heads cannot be built, as far as the recipe tells."""
    if not BACKBONES.get(wanted.model.kind, Backbone).trained:
        raise SetupError(f"model.kind {wanted.model.kind} is drawn from, not trained here")
    data = wanted.data
    needed = [data.classes, data.channels, data.latent]
    if BACKBONES.get(wanted.model.kind, Backbone).told == "text":
        needed += [data.text_tokens, data.text_width]
    if None in needed:
        return
    try:
        with torch.device("meta"):
            build_heads(wanted, feature_width=1)
    except RuntimeError as error:  # of sizes that no number of bytes can say
        raise SetupError(f"the recipe's network cannot be built: {error}") from None


def start(
    objective: Objective,
    init: Path,
    num_heads: int | None,
    kind: str | None = None,
    *,
    store: Store | None = None,
    offline: bool = False,
) -> Mapping[str, str]:
    """Put the weights of `init` into the network; says what they were, and what differs.

    Args:
        store: what is trained on.
    """
    init = hub.pinned(init, offline=offline)
    network = open_network(init, num_heads=num_heads, kind=kind, offline=offline)
    console.say(f"starting from {init} ({network.about['kind']}, {network.about['weights']})")
    said = start_from(objective.network, network.model)
    if said:
        console.say(said)
    if network.path != objective.kind:
        console.warn(
            f"{init} was trained on the {network.path} path, this recipe trains on the "
            f"{objective.kind} one: --set path.kind={network.path} goes on as it began"
        )
    differ = None if store is None else network.other_data(store.info)
    if store is not None and differ is not None:
        console.warn(f"{store.path} is not as what {init} was trained on: it has {differ}")
    found: dict[str, Any] = {"path": str(init), "digest": network.about["checkpoint"]}
    return found
