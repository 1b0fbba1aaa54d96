"""From a recipe or a checkpoint's record to a network: the table of backbones."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sra2cli.config.recipe import nearest
from sra2cli.config.settings import Recipe
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.finite import check_finite
from sra2cli.models.contract import Backbone, Config, Shape
from sra2cli.models.lightningdit import LightningDiT
from sra2cli.models.maskdit import MaskDiT
from sra2cli.models.mmdit import MMDiT
from sra2cli.models.reg import Reg
from sra2cli.models.sit import SiT

BACKBONES: dict[str, type[Backbone]] = {  # by their names in a recipe's `model.kind`
    "sit": SiT,
    "lightningdit": LightningDiT,
    "reg": Reg,
    "maskdit": MaskDiT,
    "mmdit": MMDiT,
}


def config_of(recipe: Recipe) -> Config:
    """Of the network a recipe asks for; SetupError where it cannot be built.

    What is left open for the store to say (data.channels, ...) must be said by now.
    """
    kind = recipe.model.kind
    if kind not in BACKBONES:
        raise SetupError(f"'model.kind': no backbone '{kind}'{nearest(kind, list(BACKBONES))}")
    try:
        config: Config = BACKBONES[kind].configure(recipe.model, recipe.data)
        return config
    except ValueError as error:
        raise SetupError(f"model: {error}") from None


def shape_of(recipe: Recipe) -> Shape:
    """What others must know of the network a recipe asks for."""
    return config_of(recipe).shape


def build(recipe: Recipe) -> Backbone:
    """The network, with its initial weights from torch's generator."""
    return BACKBONES[recipe.model.kind].from_config(config_of(recipe).to_dict())


def record_of(model: Backbone) -> dict[str, Any]:
    """{kind: config}: what checkpoints say of their network."""
    return {model.kind: model.config.to_dict()}


def from_record(
    record: Mapping[str, Any], state: Mapping[str, Tensor], name: str
) -> Backbone | None:
    """The network of a record, `filled`; None if it names none of ours."""
    kind = next((kind for kind in BACKBONES if kind in record), None)
    return None if kind is None else filled(BACKBONES[kind], record[kind], state, name)


def filled(kind: type[Backbone], config: Any, state: Mapping[str, Tensor], name: str) -> Backbone:
    """A network with these weights and no others, frozen, in eval mode.

    What decides its size is held against the file first (`Backbone.outline`): a size that a file
    names and does not hold allocates nothing.

    Args:
        config: as the network's config gives it (`to_dict`). name: of the file.

    Raises:
        SetupError: tensors that are missing, unknown or of another shape.
        DataError: a config that cannot be built; weights that are not finite.
    """
    try:
        if config.get("depth", 1) > len(state):
            raise ValueError(f"it has {len(state)} tensors for {config['depth']} blocks")
        _refuse_others(kind, kind.outline(config), state, name, whole=False)
        model = kind.from_config(config)
    except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{name}: its {kind.kind} cannot be built: {reason}") from None
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    _refuse_others(kind, wanted, state, name, whole=True)
    model.load_state_dict(state)
    check_finite(model.state_dict(), name)
    return model.eval().requires_grad_(False)


def _refuse_others(
    kind: type[Backbone],
    wanted: Mapping[str, tuple[int, ...]],
    state: Mapping[str, Tensor],
    name: str,
    *,
    whole: bool,
) -> None:
    """SetupError for tensors that are missing, of another shape, or (whole) not of the network."""
    faults = [f"no {k}" for k in wanted if k not in state]
    if whole:
        faults += [f"unknown {k[:80]} {tuple(state[k].shape)}" for k in state if k not in wanted]
    faults += [
        f"{k} is {tuple(state[k].shape)} instead of {shape}"
        for k, shape in wanted.items()
        if k in state and state[k].shape != shape
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise SetupError(f"{name} does not fit a {kind.__name__}: {'; '.join(faults[:3])}{more}")


def start_from(model: Backbone, other: Backbone) -> str | None:
    """Copy the weights of another network into `model`, which is to be trained.

    What belongs to the resolution is kept, as is the table of labels for another number of classes.

    Returns:
        What was not taken over, to be said; None if nothing.

    Raises:
        SetupError: networks of different shape.
    """
    theirs, own = other.config.to_dict(), model.config.to_dict()
    of_data = {"latent", "classes", "text_tokens", "text_encoder"}
    differ = [
        f"{name} {theirs[name]} instead of {own[name]}"
        for name in own.keys() & theirs.keys() - of_data
        if theirs[name] != own[name]
    ]
    if model.kind != other.kind:
        differ = [f"{other.kind} instead of {model.kind}"]
    if differ:
        raise SetupError(f"--init: its network has another shape ({', '.join(sorted(differ))})")
    left, said = (*model.of_resolution, *model.of_captions), None
    classes = model.shape.classes, other.shape.classes
    if classes[0] != classes[1]:
        left += model.of_labels
        said = f"{classes[0]} classes instead of {classes[1]}: their table starts anew"
    state = {k: v for k, v in other.state_dict().items() if not k.startswith(left)}
    model.load_state_dict({**model.state_dict(), **state})
    return said
