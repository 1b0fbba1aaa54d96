"""sra2 extract: images → latent store."""

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli.core import console, processes
from sra2cli.core.errors import DataError, SetupError, UserError
from sra2cli.core.files import write_atomically
from sra2cli.core.processes import Group
from sra2cli.data.store import GOOD, REJECTED, TODO, Store
from sra2cli.data.store_creation import text_bytes
from sra2cli.data.store_info import OWN
from sra2cli.data.store_writer import StoreWriter, contents_of, partial_file
from sra2cli.extraction import captions
from sra2cli.extraction.changes import changed, last_written
from sra2cli.extraction.decode import worker_deaths
from sra2cli.extraction.encode import (
    Host,
    Job,
    encode_rate,
    encoded,
    first_images,
    prepare,
    worker_count,
)
from sra2cli.extraction.half import say_error
from sra2cli.extraction.latent_scale import computed
from sra2cli.extraction.makers import Options

TOGETHER, PAUSE = 64, 1.0  # rows, or seconds, after which rows are written


def extract(
    images: Path, out: Path, options: Options, *, device: str, dry_run: bool = False
) -> dict[str, Any]:
    """Encode images into a latent store; run again, it goes on where it stopped.

    Unreadable images are listed in `OUT.rejects.txt` and skipped.

    Args:
        images: see `sources`; latents of others are imported.
        dry_run: say what it will take, and write nothing.

    Returns:
        A summary; "rejects" is the number of images skipped.

    Raises:
        SetupError: no images, no VAE, no space, or OUT belongs to other settings.
        DataError: the source has vanished, or no image at all could be read.
    """
    with processes.group(device) as group:
        job = prepare(images, options, group)
        if not dry_run:
            group.meet(out.parent, out.name)
        if out.exists():
            return already_there(out, job)
        if group.main:
            check_disk(out, job)
        if dry_run:
            return estimate(out, job, group)
        if group.main:
            say_error(job)
        writer = open_writer(out, job, group)
        fill(writer, job, group)
        if job.text is not None and job.info.text_features:
            job.text.fill(writer, group)
        group.wait()
        if group.main:
            rejects = list_rejects(out, job, writer.state)
            if len(rejects) == len(job.source):
                console.say(f"{rejects[0].replace(chr(9), ' ')}; all: {rejects_file(out)}")
            own = computed(writer, writer.good) if job.info.statistics == OWN else None
            writer.finish(own)
        else:
            rejects = []
        group.wait()
        return summary(out, len(rejects), job.source.notes)


def already_there(out: Path, job: Job) -> dict[str, Any]:
    """The summary of a finished store of these very images and settings; else SetupError."""
    store = Store(out)
    differ = store.info.differs(job.info)
    if not differ and store.all_names != job.source.names:
        differ = ["images"]
    if not differ and store.all_labels.tolist() != job.labels:
        differ = ["labels"]
    if not differ and job.text is not None and store.captions is not None:
        differ = [] if store.captions.hold(job.text.captions) else ["captions"]
    if not differ:
        contents = contents_of(out)
        rows = range(len(job.source))
        since = last_written(out)
        changes = [] if contents is None else changed(job.source, contents, since, rows)
        if changes:
            raise SetupError(
                f"{len(changes)} images have changed since {out} was made, as "
                f"{job.source.names[changes[0]]}: remove it to encode them, or choose another --out"
            )
    if differ:
        raise SetupError(
            f"{out} exists and differs in {', '.join(differ)}: remove it or choose another --out"
        )
    console.say(f"{out} is complete already")
    return summary(out, len(store.rejected), job.source.notes)


def check_disk(out: Path, job: Job) -> None:
    """Refuse a disk that cannot hold the store."""
    size, free = needed(out, job), free_space(out)
    console.say(f"{len(job.source):,} images, {size / 1e6:,.0f} MB")
    if size > free:
        raise SetupError(
            f"{out} needs {size / 1e9:.1f} GB more, but its disk has {free / 1e9:.1f} GB free"
        )


def needed(out: Path, job: Job) -> int:
    """Bytes of the store that are not on the disk yet."""
    partial = partial_file(out)
    there = partial.stat().st_blocks * 512 if partial.exists() else 0
    names = sum(len(name) + 32 for name in job.source.names)
    text = 0 if job.text is None else text_bytes(job.info, job.text.text)
    return max(0, len(job.source) * (job.info.row_bytes + 17) + text + names - there)


def free_space(out: Path) -> int:
    folder = next(p for p in [out.absolute().parent, *out.absolute().parents] if p.exists())
    return shutil.disk_usage(folder).free


def estimate(out: Path, job: Job, group: Group) -> dict[str, Any]:
    """What an extraction will take, from a short probe."""
    begun = time.perf_counter()
    first = first_images(job)
    if not len(first):
        raise DataError(f"none of the first images of {job.source.root} can be read")
    decode_rate = len(first) / (time.perf_counter() - begun)
    workers = worker_count(job, group)
    rates = {"decoding": decode_rate * max(1, workers)}
    if job.source.kind == "images":
        rates["encoding"] = encode_rate(job, first)
    rate = min(rates.values()) * group.count
    return {
        "images": len(job.source),
        "bytes": needed(out, job),
        **estimate_text(job),
        "free_bytes": free_space(out),
        "images_per_second": rate,
        **({} if (error := say_error(job)) is None else {"latent_error": round(error, 6)}),
        "seconds": len(job.source) / rate + text_seconds(job) / group.count,
        "batch": job.info.encode_batch,
        "processes": group.count,
        "workers": workers,
        "dry_run": True,
    }


def estimate_text(job: Job) -> dict[str, Any]:
    """Bytes of all that is stored of captions."""
    if job.text is None:
        return {}
    size = text_bytes(job.info, job.text.text)
    return {**captions.shown(len(job.text.captions), job.info), "text_bytes": size}


def text_seconds(job: Job) -> float:
    """To encode all captions in one process, where features are stored."""
    if job.text is None or not job.info.text_features:
        return 0.0
    begun = time.perf_counter()
    job.text.null()
    return (time.perf_counter() - begun) * -(-len(job.text.captions) // captions.BLOCK)


def open_writer(out: Path, job: Job, group: Group) -> StoreWriter:
    """The store to fill. One process lays it out, and forgets what is no longer so."""
    text = None if job.text is None else job.text.text
    if group.main:
        written = last_written(partial_file(out))
        writer = StoreWriter(out, job.info, job.source.names, job.labels, text=text)
        rows = np.flatnonzero(writer.state == GOOD).tolist()
        changes = changed(job.source, writer.contents, written, rows)
        if changes:
            console.say(f"{len(changes):,} images have changed and are encoded again")
        writer.forget([*changes, *np.flatnonzero(writer.state == REJECTED).tolist()])
    group.wait()
    if not group.main:
        names = job.source.names
        writer = StoreWriter(out, job.info, names, job.labels, text=text, create=False)
    begun = writer.info.encode_batch  # 0: killed while it was finished
    if begun not in (0, job.info.encode_batch):
        raise SetupError(
            f"{writer.partial} was begun with {begun} images at once, not "
            f"{job.info.encode_batch}: go on with --batch {begun} on the same kind of device, "
            "remove it, or choose another --out"
        )
    return writer


def fill(writer: StoreWriter, job: Job, group: Group) -> None:
    """Encode every row that is not there yet and belongs to this process.

    While the device encodes a chunk, worker processes decode the next and a thread writes the last.
    """
    total, state = len(job.source), writer.state
    size = job.chunk
    chunks = [range(k, min(k + size, total)) for k in range(0, total, size)]
    mine = [rows for rows in chunks[group.rank :: group.count] if (state[rows] == TODO).any()]
    done = int((state != TODO).sum())
    with (
        worker_deaths(),
        console.progress("extract", total, start=done) as bar,
        ThreadPoolExecutor(1) as thread,
    ):
        written: list[Future[None]] = []
        waiting: list[Host] = []
        since = time.monotonic()
        try:
            for chunk, values in encoded(job, mine, worker_count(job, group)):
                while len(written) > 4:
                    written.pop(0).result()
                waiting.append((chunk, values))  # in one go: Ctrl-C may come anywhere
                rows = sum(len(part) for part, _ in waiting)
                if rows >= TOGETHER or time.monotonic() - since > PAUSE:
                    written.append(thread.submit(write_together, writer, waiting))
                    waiting, since = [], time.monotonic()
                there = int((writer.state != TODO).sum()) if group.count > 1 else done + len(chunk)
                bar.advance(there - done)
                done = there
        finally:  # Ctrl-C too loses nothing
            written.append(thread.submit(write_together, writer, waiting))
        for future in written:
            future.result()


def write_together(writer: StoreWriter, found: Sequence[Host]) -> None:
    """Write chunks at once: each write waits for the disk twice."""
    rows = [row for chunk, _ in found for row in chunk.rows]
    rejected = [row for chunk, _ in found for row in chunk.rejected]
    full = [values for chunk, values in found if chunk.rows]
    names = full[0] if full else {}
    joined = {name: np.concatenate([values[name] for values in full]) for name in names}
    contents = {row: content for chunk, _ in found for row, content in chunk.contents.items()}
    writer.write(rows, joined, rejected, contents)


def list_rejects(out: Path, job: Job, state: np.ndarray) -> list[str]:
    """Write OUT.rejects.txt, a line "name<TAB>reason" for each skipped image; none: no file."""
    lines = []
    for row in np.flatnonzero(state == REJECTED):
        chunk = job.chunks([range(row, row + 1)])[0]
        reason = chunk.rejected.get(int(row), chunk.gone or "could not be read during extraction")
        lines.append(f"{job.source.names[row]}\t{reason}")
    if lines:
        text = "\n".join(lines) + "\n"
        write_atomically(rejects_file(out), text.encode("utf-8", "backslashreplace").decode())
    else:
        rejects_file(out).unlink(missing_ok=True)
    return lines


def rejects_file(out: Path) -> Path:
    return out.with_name(out.name + ".rejects.txt")


def summary(out: Path, rejects: int, notes: list[str]) -> dict[str, Any]:
    store = Store(out)
    info = store.info
    return {
        "store": str(out),
        "images": len(store),
        "rejects": rejects,
        "rejects_file": str(rejects_file(out)) if rejects else None,
        "classes": info.classes,
        "latents": [info.channels, info.latent, info.latent],
        "vae": info.vae,
        "vae_fingerprint": info.vae_fingerprint,
        "encoder": info.encoder or None,
        **captions.shown(len(store.captions or ()), info),
        "bytes": out.stat().st_size,
        **({"notes": notes} if notes else {}),
    }


def refuse_rejects(result: dict[str, Any]) -> None:
    """Raise UserError where images were skipped."""
    if result.get("rejects"):
        raise UserError(
            f"{result['rejects']} images could not be read and were skipped: "
            f"see {result['rejects_file']} (--allow-rejects makes this no error)"
        )
