"""What is encoded with what: source, first stage, encoder, and how many images at a time."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sra2cli import console
from sra2cli.decoding import Chunk, Chunks, decoded, default_workers
from sra2cli.encoders import Encoder, load_encoder
from sra2cli.errors import DataError, SetupError
from sra2cli.images import decode_image
from sra2cli.probe import FULL, Probed, find_batch
from sra2cli.processes import Group
from sra2cli.sources import Source, VanishedError, open_source
from sra2cli.store import StoredType, StoreInfo
from sra2cli.vae import EncodePrecision, Vae, load_vae

DEFAULT_VAE = "stabilityai/sd-vae-ft-mse"
PROBED = 4  # images the batch is probed with
SMALL = 128  # side of images, too small for all threads on one; larger ones gain 5% at most
LANES = 16  # images encoded side by side on a CPU, at most: each takes memory
IMPORTED = 64  # latents of others that are copied together


@dataclass(frozen=True)
class Options:
    """How to extract. Nothing here but vae, encoder, feature_patch, resolution, mirrored, precision
    and dtype changes the numbers.

    vae, encoder: folders or hub names; with an encoder, its features are stored for REPA.
    mirrored: also encode the mirrored images (a latent cannot be mirrored).
    feature_patch: of the network to be trained: one feature for each of its tokens.
    batch: images encoded together; None: probed. workers: decoding processes; None: by the CPUs.
    logvar: latents of others hold mean‖logvar.
    """

    vae: str
    resolution: int = 256
    mirrored: bool = False
    encoder: str | None = None
    feature_patch: int = 2
    precision: EncodePrecision = "fp32"
    dtype: StoredType = "float32"
    batch: int | None = None
    workers: int | None = None
    logvar: bool = False
    offline: bool = False


@dataclass(frozen=True)
class Job:
    """What is encoded with what, into what. vae: None where the source holds latents."""

    source: Source
    info: StoreInfo
    vae: Vae
    encoder: Encoder | None
    options: Options

    @property
    def labels(self) -> list[int]:
        """Of all rows; -1 without labels."""
        return self.source.labels if self.source.labels is not None else [-1] * len(self.source)

    def chunks(self, rows: list[range]) -> Chunks:
        latents = self.source.kind == "latents"
        shape = (2 * self.info.channels, self.info.latent, self.info.latent) if latents else None
        return Chunks(self.source, rows, self.info.resolution, shape, self.options.logvar)

    def encode(self, values: np.ndarray) -> dict[str, Tensor]:
        """What is stored of images (n, R, R, 3) uint8, or moments as they are; on the device."""
        if self.source.kind == "latents":
            return {"moments": torch.from_numpy(values)}
        images = torch.from_numpy(pad(values, self.info.encode_batch))
        if self.vae.device.type == "cuda":
            images = images.pin_memory()
        found = {}
        for prefix, flipped in (("", False), ("mirrored_", True))[: 1 + self.info.mirrored]:
            batch = images.flip(2) if flipped else images
            found[f"{prefix}moments"] = self.vae.encode(batch)[: len(values)]
            if self.encoder is not None:
                found[f"{prefix}features"] = self.encoder.features(batch)[: len(values)].half()
        return found


def pad(values: np.ndarray, batch: int) -> np.ndarray:
    """Up to a full batch: another size may choose another kernel, and so other last digits."""
    missing = batch - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values


def prepare(images: Path, options: Options, group: Group) -> Job:
    """Everything that can be refused before data are read."""
    source = open_source(images)
    if source.ignored:
        console.say(
            f"{len(source.ignored):,} files do not look like images and are ignored, "
            f"as {source.ignored[0]}"
        )
    if source.labels is None:
        console.say("no labels: the store is for unconditional models")
    vae = load_vae(
        options.vae, device=group.device, offline=options.offline, precision=options.precision
    )
    info = describe(source, vae, options)
    encoder = None
    if options.encoder is not None:
        if info.latent % options.feature_patch:
            raise SetupError(
                f"--feature-patch {options.feature_patch} does not divide {info.latent}"
            )
        side = info.latent // options.feature_patch
        encoder = load_encoder(
            options.encoder, side=side, device=group.device, offline=options.offline
        )
        info = replace(
            info,
            encoder=options.encoder,
            encoder_fingerprint=encoder.fingerprint,
            feature_tokens=side**2,
            feature_width=encoder.width,
        )
    return Job(source, info, vae, encoder, options)


def describe(source: Source, vae: Vae, options: Options) -> StoreInfo:
    """What the store will say of itself; raises SetupError where source and VAE do not fit."""
    resolution = options.resolution
    if resolution <= 0 or resolution % vae.factor:
        raise SetupError(
            f"--resolution {resolution} is not a multiple of {vae.factor}, "
            f"as VAE '{vae.name}' needs"
        )
    imported = source.kind == "latents"
    if imported and (options.encoder or options.mirrored):
        raise SetupError(
            f"{source.root} holds latents: --flip and --encoder need the images themselves"
        )
    if options.batch is not None and options.batch < 1:
        raise SetupError(f"--batch must be above 0, not {options.batch}")
    return StoreInfo(
        vae=vae.name,
        vae_fingerprint=vae.fingerprint,
        scale=vae.scale,
        shift=vae.shift,
        channels=vae.channels,
        latent=resolution // vae.factor,
        resolution=resolution,
        classes=source.classes,
        class_names=source.class_names,
        crop=("imported-logvar" if options.logvar else "imported") if imported else "adm-center",
        dtype=options.dtype,
        encode_precision="imported" if imported else options.precision,
        encode_batch=IMPORTED if imported else options.batch or 1,
        mirrored=options.mirrored,
    )


def first_images(job: Job) -> np.ndarray:
    """The first readable images (n, R, R, 3), n <= PROBED; or moments."""
    if job.source.kind == "latents":
        chunk = job.chunks([range(min(PROBED, len(job.source)))])[0]
        return chunk.values
    found: list[np.ndarray] = []
    for row in range(min(4 * PROBED, len(job.source))):
        try:
            data = job.source.read(row)
            assert isinstance(data, bytes)
            found.append(decode_image(data, job.info.resolution))
        except DataError:
            continue
        except VanishedError as error:
            raise gone(str(error)) from None
        if len(found) == PROBED:
            break
    side = job.info.resolution
    return np.stack(found) if found else np.zeros((1, side, side, 3), np.uint8)


def probe(job: Job, images: np.ndarray) -> Probed:
    """The batch to encode with: as asked for, or the fastest."""

    def encode(batch: np.ndarray) -> None:
        sized = replace(job, info=replace(job.info, encode_batch=len(batch)))
        for value in sized.encode(batch).values():
            value.cpu()

    cpu = job.vae.device.type == "cpu"
    small = images[:1, ::4, ::4]
    if cpu and job.options.batch is None and job.info.resolution % (4 * job.vae.factor) == 0:
        sixteenth = find_batch(encode, small, total=1, cpu=True)
        if 16 / sixteenth.rate > 4 * FULL:  # surely too much for a batch to help
            return Probed(1, sixteenth.rate / 16)
    if job.options.batch is None:
        return find_batch(encode, images, total=len(job.source), cpu=cpu)
    return Probed(job.options.batch, find_batch(encode, images, total=1, cpu=cpu).rate)


def worker_count(job: Job, group: Group) -> int:
    if job.options.workers is not None:
        return job.options.workers
    return default_workers(group.count, accelerator=group.device != "cpu")


Encoded = tuple[Chunk, dict[str, Tensor]]


def encoded(job: Job, rows: list[range], workers: int, processes: int) -> Iterator[Encoded]:
    """Chunks and what is stored of them, in order."""
    chunks = reachable(decoded(job.chunks(rows), workers=workers))
    single = job.source.kind == "images" and job.info.encode_batch == 1
    if single and job.vae.device.type == "cpu" and job.info.resolution <= SMALL:
        cores = len(os.sched_getaffinity(0))
        return side_by_side(job, chunks, max(1, min(cores // processes, LANES)))
    return one_ahead(job, chunks)


def reachable(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same; DataError where the source has vanished."""
    for chunk in chunks:
        if chunk.gone:
            raise gone(chunk.gone)
        yield chunk


def one_ahead(job: Job, chunks: Iterator[Chunk]) -> Iterator[Encoded]:
    """One more is always under way on the device."""
    before: Encoded | None = None
    for chunk in chunks:
        values = job.encode(chunk.values) if chunk.rows else {}
        if before is not None:
            yield before
        before = chunk, values
    if before is not None:
        yield before


def side_by_side(job: Job, chunks: Iterator[Chunk], lanes: int) -> Iterator[Encoded]:
    """Small single images on a CPU, several at a time, each by one thread.

    Faster than all threads on one image after the other, and the same bits on any number of cores.
    """
    threads = torch.get_num_threads()
    waiting: deque[tuple[Chunk, Future[dict[str, Tensor]] | None]] = deque()
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for chunk in chunks:
                future = pool.submit(job.encode, chunk.values) if chunk.rows else None
                waiting.append((chunk, future))
                if len(waiting) > lanes:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
    finally:
        torch.set_num_threads(threads)  # some libraries know one number for all threads


def _finished(chunk: Chunk, future: Future[dict[str, Tensor]] | None) -> Encoded:
    return chunk, {} if future is None else future.result()


def gone(what: str) -> DataError:
    """The error for a source that cannot be reached any more."""
    return DataError(f"{what}: bring it back and run the same command again to go on")
