"""A recipe and a store: what the one leaves open the other says; where they differ, a refusal."""

from dataclasses import replace
from typing import Any

import yaml

from sra2cli.config.methods import METHODS
from sra2cli.config.settings import Recipe
from sra2cli.core import console
from sra2cli.core.errors import SetupError
from sra2cli.data.sources import Source
from sra2cli.data.store import Store
from sra2cli.data.store_info import CLASS_FEATURE
from sra2cli.models.build import BACKBONES, shape_of
from sra2cli.models.contract import Backbone


def fitted(recipe: Recipe, store: Store, images: Source | None = None) -> Recipe:
    """The recipe with the store's classes, channels and latent where it names none.

    Args:
        images: what the store was made from, for an encoder that runs while training.

    Raises:
        SetupError: the store does not hold what the recipe asks for; names everything that
            differs, and the options that accept it.
    """
    info, data = store.info, recipe.data
    told = _told_captions(recipe)
    if told and store.captions is None:
        raise SetupError(
            f"{store.path} has no captions, which this network is told: extract with "
            "--text-encoder words, or another"
        )
    asked = ("classes", "channels", "latent", *(TEXT if told else ()))
    taken = {key: getattr(info, key) for key in asked if getattr(data, key) is None}
    if taken:
        console.say(f"{', '.join(f'{k} {v}' for k, v in taken.items())}: taken from {store.path}")
        recipe = replace(recipe, data=replace(data, **taken))
        data = recipe.data
    _refuse_others(recipe, store)
    if data.mirror and not info.mirrored:
        raise SetupError(f"{store.path} has no mirrored images: extract with --flip")
    if images is not None:
        check_source(store, images)
    if recipe.encoder is not None and images is None:
        _check_features(recipe, recipe.encoder, store)
    check_class_feature(store, shape_of(recipe).class_width, recipe.encoder)
    return recipe


TEXT = ("text_encoder", "text_tokens", "text_width")


def _told_captions(recipe: Recipe) -> bool:
    return BACKBONES.get(recipe.model.kind, Backbone).told == "text"


def _refuse_others(recipe: Recipe, store: Store) -> None:
    """One line for all that differs."""
    info, data = store.info, recipe.data
    rows: list[tuple[str, Any, str]] = [
        ("classes", info.classes, f"{info.classes} classes"),
        ("channels", info.channels, f"{info.channels} latent channels (VAE {info.vae})"),
        (
            "latent",
            info.latent,
            f"{info.latent}x{info.latent} latents ({info.resolution} px, VAE {info.vae})",
        ),
    ]
    if _told_captions(recipe):
        rows += [(key, getattr(info, key), f"{key} {getattr(info, key)}") for key in TEXT]
    differ = [row for row in rows if getattr(data, row[0]) != row[1]]
    other_vae = data.vae not in (None, info.vae_fingerprint)
    if not differ and not other_vae:
        return
    said, accept = [], [f"--set data.{key}={value}" for key, value, _ in differ]
    if differ:
        has, wants = (what for _, _, what in differ), (getattr(data, key) for key, _, _ in differ)
        said.append(f"has {', '.join(has)}, the recipe wants {', '.join(map(str, wants))}")
    if other_vae:
        made = f"('{info.vae}', {info.vae_fingerprint})"
        said.append(f"was made with another VAE {made} than the recipe's ({data.vae})")
        own = info.vae_fingerprint
        text = own if yaml.safe_load(own) == own else f"\"'{own}'\""  # YAML may see a number
        accept.append(f"--set data.vae={text}")
    raise SetupError(
        f"{store.path} {' and '.join(said)}: choose another store, or {' '.join(accept)}"
    )


def _check_features(recipe: Recipe, encoder: str, store: Store) -> None:
    """Refuse a store without the encoder features that a method needs."""
    info, shape = store.info, shape_of(recipe)
    name = next(n for n, s in recipe.align.items() if "features" in s.needs)
    if not info.encoder:
        raise SetupError(
            f"{store.path} has no encoder features, which {METHODS[name].title} needs: "
            f"extract with --encoder {encoder}, or give the images with --images"
        )
    if info.encoder != encoder:
        raise SetupError(
            f"{store.path} has the features of {info.encoder}, the recipe wants {encoder}: "
            f"choose another store, or --set align.{name}.encoder={info.encoder}"
        )
    if info.feature_tokens != shape.tokens:
        raise SetupError(
            f"{store.path} has {info.feature_tokens} features an image, the network "
            f"{shape.tokens} tokens: extract with --feature-patch {shape.patch}"
        )


def check_source(store: Store, images: Source) -> None:
    """Refuse images that a store was not made from."""
    missing = next(iter(set(store.names) - set(images.names)), None)
    if missing is not None:
        raise SetupError(f"{images.root} is not the source of {store.path}: no {missing} in it")


def check_class_feature(store: Store, width: int, encoder: str | None = None) -> None:
    """Refuse a store without the class features that a network with a class token is given.

    Args:
        width: of the network's class token; 0: it has none. encoder: whose features are wanted.
    """
    if not width:
        return
    rows = store.info.sets.get(CLASS_FEATURE)
    if rows is None:
        raise SetupError(
            f"{store.path} has no class features, which a network with a class token (REG) needs: "
            f"extract with --encoder {encoder or 'NAME'}"
        )
    if rows.shape != (width,):
        raise SetupError(
            f"{store.path} has class features of width {rows.shape[0]} ({rows.made_by}), the "
            f"network of {width}: choose another store, or --set model.class_width={rows.shape[0]}"
        )
