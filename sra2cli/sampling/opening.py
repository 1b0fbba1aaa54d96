"""What is drawn from, opened: the network, what decodes its latents, what reads its prompts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sra2cli.core import console
from sra2cli.core.errors import SetupError
from sra2cli.encoders.first_stage import FirstStage
from sra2cli.encoders.open import PUBLISHED, open_first_stage
from sra2cli.encoders.text import load_text_encoder
from sra2cli.models.statistics import read_statistics
from sra2cli.runs.network import Network, Weights, open_network
from sra2cli.sampling.settings import DrawPrecision, Sampling


@dataclass(frozen=True)
class Options:
    """What to draw from, and how; weights, vae, precision and compile change the images.

    step: of a run's checkpoint; None: the newest.
    precision: of the network; None: tf32 on CUDA, else fp32. The first stage decodes in fp32.
    vae: decode with it; None: the one of the run's store, or `PUBLISHED`.
    batch: images at a time. npz: also write OUT/samples.npz, as ADM's evaluator takes it.
    num_heads, kind: as checkpoints.load takes them.
    latent_stats: of its latents, for a checkpoint of others; None: its own, or the VAE's.
    text_encoder: of prompts; None: the one of the network's captions.
    """

    step: int | None = None
    weights: Weights = "ema"
    vae: str | None = None
    batch: int = 64
    precision: DrawPrecision | None = None
    compile: bool = False
    npz: bool = False
    num_heads: int | None = None
    kind: str | None = None
    latent_stats: str | None = None
    text_encoder: str | None = None
    offline: bool = False

    def on(self, device: str) -> "Options":
        """The same with the precision that a device draws in.

        Raises:
            SetupError: a device that has no such precision.
        """
        cuda = device.startswith("cuda")
        if self.precision == "tf32" and not cuda:
            raise SetupError(f"--precision tf32 is for CUDA, not for {device}: leave it out")
        return replace(self, precision=self.precision or ("tf32" if cuda else "fp32"))

    def open(self, source: Path, *, verify: bool = True, guide: bool = False) -> Network:
        """The network to draw from; verify, guide: as `open_network` takes them."""
        return open_network(
            source,
            step=self.step,
            weights=self.weights,
            num_heads=self.num_heads,
            kind=self.kind,
            offline=self.offline,
            verify=verify,
            guide=guide,
        )


def check_guide(network: Network, sampling: Sampling) -> None:
    """SetupError where a head is to guide at times that it was not trained at."""
    if network.guide is None:
        return
    (low, high), (first, last) = network.guide.settings.window, sampling.self_interval
    if first < low or last > high:
        raise SetupError(
            f"--self-interval {first:g}:{last:g} reaches out of {low:g}:{high:g}, the times that "
            "the head was trained at (its window)"
        )


def with_text_encoder(
    sampling: Sampling, network: Network, options: Options, *, device: str
) -> Sampling:
    """Prompts with what reads them: the text encoder of the network's captions.

    Raises:
        SetupError: no such encoder, or another than that of the captions.
    """
    prompts, model, info = sampling.prompts, network.model, network.store
    if prompts is None:
        if options.text_encoder is not None:
            raise SetupError("--text-encoder is for networks that are told captions")
        return sampling
    length, width = model.shape.text
    name = options.text_encoder or model.config.to_dict()["text_encoder"]
    encoder = load_text_encoder(name, device=device, offline=options.offline)
    known = info.text_fingerprint if info else ""
    if known not in ("", encoder.fingerprint) or encoder.width != width:
        raise SetupError(
            f"text encoder '{name}' is not the one of this network's captions "
            f"({known or f'{length or 77} x {width}'}): choose another --text-encoder"
        )
    null = encoder.encode(torch.from_numpy(encoder.tokens([""])))[0].cpu()
    if not length:  # a file of others, without the empty caption
        model.tell_null(null)
    elif not model.knows_null(null):
        raise SetupError(
            f"text encoder '{name}' reads the empty caption otherwise than this network's did: "
            "choose another --text-encoder"
        )
    return replace(sampling, prompts=prompts.encoded_by(encoder))


def scale_of(vae: FirstStage) -> dict[str, Any]:
    """Scale and shift for a record, where they are a number a channel."""
    if not isinstance(vae.scale, tuple):
        return {}
    return {
        "latent_scale": list(vae.scale),
        "latent_shift": vae.shift if isinstance(vae.shift, float) else list(vae.shift),
    }


def first_stage_of(network: Network, options: Options, *, device: str) -> FirstStage:
    """The VAE to decode with; where the network's store is known, its encoder must be the same."""
    info = network.store
    name = options.vae or (info.vae if info else PUBLISHED)
    vae = open_first_stage(name, device=device, offline=options.offline)
    if info and options.latent_stats:
        raise SetupError("--latent-stats is for checkpoints of others; a run's store says its own")
    if info:
        vae.check_store(info, "this run's store")
    elif options.latent_stats:
        vae.scale, vae.shift = read_statistics(Path(options.latent_stats), vae.channels)
    elif network.statistics is not None:
        console.say("scale of the latents: the statistics that the checkpoint holds")
        vae.scale, vae.shift = network.statistics
    elif (vae.scale, vae.shift) == (1.0, 0.0):
        console.warn(
            f"neither the network nor VAE '{vae.name}' says how latents were scaled: they are "
            "decoded as they are; --latent-stats FILE says it"
        )
    if vae.channels != network.model.shape.channels:
        raise SetupError(
            f"VAE '{vae.name}' has {vae.channels} latent channels, the network "
            f"{network.model.shape.channels}: choose another --vae"
        )
    return vae
