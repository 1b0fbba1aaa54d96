"""What is encoded with what: source, first stage, and what else is stored of each image."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sra2cli.core import console
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.processes import Group
from sra2cli.data.images import SEES_DAMAGE, decode_image
from sra2cli.data.sources import Source, VanishedError, open_source
from sra2cli.data.store_info import OWN, StoreInfo
from sra2cli.encoders.first_stage import FirstStage
from sra2cli.encoders.open import open_first_stage
from sra2cli.extraction import captions, latent_scale
from sra2cli.extraction.captions import Captioning
from sra2cli.extraction.decode import Chunk, Chunks, decoded, default_workers
from sra2cli.extraction.makers import MAKERS, Maker, Options

TIMED = 4  # images whose decoding is timed
PIXELS = 1 << 16  # that are worth a pass on a CPU: 64 images of 32 px, one of 256
ON_GPU = 64  # images of a pass there, unless --batch says otherwise
IMPORTED = 64  # latents of others that are copied together


def unit(resolution: int) -> int:
    """Images that a CPU encodes at once: a power of two, from their size alone. Another number
    might choose another kernel, and so other last digits."""
    worth = min(64, max(1, PIXELS // resolution**2))
    return 1 << (worth.bit_length() - 1)


@dataclass(frozen=True)
class Job:
    """What is encoded with what, into what.

    info.encode_batch: images that run through the networks at once. makers: beside moments.
    text: captions, and what reads them.
    """

    source: Source
    info: StoreInfo
    vae: FirstStage
    makers: list[Maker]
    options: Options
    text: Captioning | None = None

    @property
    def labels(self) -> list[int]:
        """Of all rows; -1 without labels."""
        return self.source.labels if self.source.labels is not None else [-1] * len(self.source)

    @property
    def chunk(self) -> int:
        """Rows that are read, encoded and written together."""
        size = self.info.encode_batch
        return size * max(1, -(-(self.options.batch or 1) // size))

    def chunks(self, rows: list[range]) -> Chunks:
        shape: tuple[int, ...] | None = None
        if self.source.kind == "latents":
            shape = (2 * self.info.channels, self.info.latent, self.info.latent)
            shape = (2, *shape) if self.info.mirrored else shape
        options = self.options
        return Chunks(self.source, rows, self.info.resolution, shape, options.logvar, options.crop)

    def encode(self, values: np.ndarray) -> dict[str, Tensor]:
        """What is stored of images (n, R, R, 3) uint8, or moments as they are; on the device."""
        if self.source.kind == "latents":
            moments = torch.from_numpy(values)
            if not self.info.mirrored:
                return {"moments": moments}
            return {"moments": moments[:, 0], "mirrored_moments": moments[:, 1]}
        parts = [
            self._pass(part) for part in torch.from_numpy(values).split(self.info.encode_batch)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _pass(self, images: Tensor) -> dict[str, Tensor]:
        """One pass, filled up: another size may choose another kernel, and so other digits."""
        count, missing = len(images), self.info.encode_batch - len(images)
        images = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        if self.vae.device.type == "cuda":
            images = images.pin_memory()  # torch keeps such memory, and hands it out again
        found = {}
        for prefix, flipped in (("", False), ("mirrored_", True))[: 1 + self.info.mirrored]:
            batch = images.flip(2) if flipped else images
            found[f"{prefix}moments"] = self.vae.encode(batch)[:count]
            for maker in self.makers:
                wanted = [n for n, rows in maker.rows.items() if rows.mirrored or not flipped]
                made = maker.make(batch) if wanted else {}
                found |= {f"{prefix}{name}": made[name][:count] for name in wanted}
        return found


def prepare(images: Path, options: Options, group: Group) -> Job:
    """Everything that can be refused before data are read."""
    options = replace(options, choice=captions.choice_of(options))
    source = open_source(images, options.choice)
    for note in source.notes:
        console.say(note)
    if not SEES_DAMAGE and source.kind == "images":
        console.say("damage inside of JPEG is not looked for: pip install simplejpeg")
    if source.labels is None and options.text_encoder is None:
        where = "class folders, a dataset.json, .cls files, or what --label names"
        how = f" (labels are read from {where})" if options.choice.label is None else ""
        console.say(f"no labels: the store is for unconditional models{how}")
    vae = open_first_stage(
        options.vae, device=group.device, offline=options.offline, precision=options.precision
    )
    info = describe(source, vae, options)
    if source.drawn:
        latent_scale.say_beside(source, options.latent_stats)
    if source.kind == "latents" and options.mirrored:
        source = source.mirrored or source
    made = [make(options, info, group) for make in MAKERS]
    makers = [maker for maker in made if maker is not None]
    for maker in makers:
        if source.kind == "latents":
            names = ", ".join(maker.rows)
            raise SetupError(f"{source.root} holds latents: {names} need the images")
        info = maker.declared(info)
    text = captions.captioning(source, options, group)
    if text is not None:
        info = captions.declared(info, text, source, features=options.text_features)
    if text is not None and group.main:
        notes = captions.cut(source, text)
        source = replace(source, said=[*source.said, *notes])
        for note in (*notes, captions.said(info, len(text.captions))):
            console.say(note)
    return Job(source, info, vae, makers, options, text)


def describe(source: Source, vae: FirstStage, options: Options) -> StoreInfo:
    """What the store will say of itself; raises SetupError where source and VAE do not fit."""
    resolution = options.resolution
    if resolution <= 0 or resolution % vae.factor:
        raise SetupError(
            f"--resolution {resolution} is not a multiple of {vae.factor}, "
            f"as VAE '{vae.name}' needs"
        )
    imported = source.kind == "latents"
    if imported and (options.encoder or (options.mirrored and source.mirrored is None)):
        beside = " (or latents_flip in every shard)" if source.drawn and options.mirrored else ""
        raise SetupError(
            f"{source.root} holds latents: --flip and --encoder need the images themselves{beside}"
        )
    if imported and options.crop != Options.crop:
        raise SetupError(f"{source.root} holds latents: --crop {options.crop} needs the images")
    _check_drawn(source, vae, options)
    if options.batch is not None and options.batch < 1:
        raise SetupError(f"--batch must be above 0, not {options.batch}")
    stats = options.latent_stats
    scale, shift = latent_scale.chosen(vae, stats, options.latent_scale, len(source))
    return StoreInfo(
        vae=vae.name,
        vae_fingerprint=vae.fingerprint,
        scale=scale,
        shift=shift,
        statistics=OWN if stats == latent_scale.COMPUTE else stats or "",
        channels=vae.channels,
        latent=resolution // vae.factor,
        resolution=resolution,
        classes=source.classes,
        class_names=source.class_names,
        choice=options.choice.given,
        crop=("imported-logvar" if options.logvar else "imported") if imported else options.crop,
        dtype=options.dtype,
        encode_precision="imported" if imported else options.precision,
        encode_batch=at_once(source, vae, options),
        mirrored=options.mirrored,
    )


def _check_drawn(source: Source, vae: FirstStage, options: Options) -> None:
    """Refuse draws of a posterior that are of another VAE or size, or are to have a logvar."""
    side = options.resolution // vae.factor
    if source.drawn not in (None, (vae.channels, side, side)):
        raise SetupError(
            f"{source.root} holds latents of {'x'.join(map(str, source.drawn or ()))}, VAE "
            f"'{vae.name}' makes {vae.channels}x{side}x{side} of {options.resolution} px: choose "
            "another --vae or --resolution"
        )
    if source.drawn and options.logvar:
        raise SetupError(f"{source.root} holds sampled latents, which have no --logvar")


def at_once(source: Source, vae: FirstStage, options: Options) -> int:
    """Images of one pass: the same whatever the processes, and on a CPU whatever --batch."""
    if source.kind == "latents":
        return IMPORTED
    if vae.device.type == "cpu":
        return unit(options.resolution)
    return options.batch or ON_GPU


def first_images(job: Job) -> np.ndarray:
    """The first readable images (n, R, R, 3), n <= TIMED; or moments."""
    if job.source.kind == "latents":
        chunk = job.chunks([range(min(TIMED, len(job.source)))])[0]
        if chunk.gone:
            raise gone(chunk.gone)
        return chunk.values
    found: list[np.ndarray] = []
    for row in range(min(4 * TIMED, len(job.source))):
        try:
            data = job.source.read(row)
            assert isinstance(data, bytes)
            found.append(decode_image(data, job.info.resolution, job.options.crop))
        except DataError:
            continue
        except VanishedError as error:
            raise gone(str(error)) from None
        if len(found) == TIMED:
            break
    side = job.info.resolution
    return np.stack(found) if found else np.zeros((1, side, side, 3), np.uint8)


def encode_rate(job: Job, images: np.ndarray) -> float:
    """Images a second that the networks encode, from the better of two passes."""
    batch = np.resize(images, (job.info.encode_batch, *images.shape[1:]))

    def seconds() -> float:
        begun = time.perf_counter()
        for value in job.encode(batch).values():
            value.cpu()
        return time.perf_counter() - begun

    return len(batch) / min(seconds() for _ in range(2))


def worker_count(job: Job, group: Group) -> int:
    if job.options.workers is not None:
        return job.options.workers
    return default_workers(group.count, accelerator=group.device != "cpu")


Host = tuple[Chunk, dict[str, np.ndarray]]  # a chunk, and what is stored of its rows


class Leaving:
    """Values on their way to the host. On a GPU the copy is queued behind what makes them, and
    before the next chunk: to ask for it later would wait for that one too."""

    def __init__(self, values: dict[str, Tensor]):
        self._host = {n: value.to("cpu", non_blocking=value.is_cuda) for n, value in values.items()}
        self._there: torch.cuda.Event | None = None
        if any(value.is_cuda for value in values.values()):
            self._there = torch.cuda.Event()
            self._there.record()

    def arrived(self) -> dict[str, np.ndarray]:
        """Waits for them."""
        if self._there is not None:
            self._there.synchronize()
        return {name: value.numpy() for name, value in self._host.items()}


def encoded(job: Job, rows: list[range], workers: int) -> Iterator[Host]:
    """Chunks and what is stored of them, in order; one more is always under way on the device.

    Raises:
        DataError: the source has vanished.
    """
    before: tuple[Chunk, Leaving] | None = None
    for chunk in decoded(job.chunks(rows), workers=workers):
        if chunk.gone:
            raise gone(chunk.gone)
        values = Leaving(job.encode(chunk.values) if chunk.rows else {})
        if before is not None:
            yield before[0], before[1].arrived()
        before = chunk, values
    if before is not None:
        yield before[0], before[1].arrived()


def gone(what: str) -> DataError:
    """The error for a source that cannot be reached any more."""
    return DataError(f"{what}: bring it back and run the same command again to go on")
