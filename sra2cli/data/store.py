"""The latent store: one HDF5 file of contiguous data sets that explains itself.

Data sets (N rows, one per source image, in source order)
    moments   (N, 2C, h, w) float32 or float16   mean‖std of the VAE posterior, unscaled
    features  (N, T, F) float16       of an image encoder, if asked for
    mirrored_moments, mirrored_features   of the mirrored images, if asked for
    any other row set that `extra` declares
    captions and what belongs to them: see `data.captions`
    labels    (N,) int64              -1 without labels
    state     (N,) uint8              0 not written, 1 good, 2 rejected
    contents  (N,) uint64             size << 32 | CRC-32 of the encoded image; 0: not read
    names     (N,) utf-8              path of the image in its source
Readers see the rows whose state is 1, in order. Attributes: `StoreInfo`, plus format, count,
checksums and complete. Rows are read through a memory map at the data set's offset: no HDF5 handle
is held, so nothing breaks across a fork. See docs/store.md; `store_writer` writes it.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import numpy as np
import torch
from torch import Tensor

from sra2cli.config.reading import read_record
from sra2cli.core import console
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.captions import Captions
from sra2cli.data.mapped_rows import MappedRows
from sra2cli.data.store_info import encode_info
from sra2cli.data.store_layout import DAMAGE, FIXED_TEXT, FORMAT, VERSION, open_hdf5, read_layout

TODO, GOOD, REJECTED = 0, 1, 2
BLOCK = 1 << 24  # bytes of a data set that are hashed together


class Store:
    """A complete store, opened for reading.

    Attributes:
        info: its StoreInfo. labels: (len,) int64. names: of the images.
        rejected: names of the images that could not be read. checksums: of its data sets.
        captions: None where there are none.

    Raises:
        SetupError: no such file, or not a store.
        DataError: incomplete, truncated or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            hint = f" ({path.name}.partial is unfinished: run extract again)"
            partial = (path.parent / f"{path.name}.partial").exists()  # "." has no name
            raise SetupError(f"no latent store {path}{hint if partial else ''}")
        try:
            with open_hdf5(path) as f:
                if f.attrs.get("format") != FORMAT:
                    raise SetupError(f"{path} is an HDF5 file, but not a latent store of sra2")
                if f.attrs["format_version"] != VERSION:
                    raise SetupError(
                        f"{path} has format version {f.attrs['format_version']}, this sra2 reads "
                        f"{VERSION}: extract again, or use the sra2 that made it"
                    )
                if f.attrs.get("complete") not in (True,):
                    raise DataError(f"{path} is incomplete: run extract again")
                layout = read_layout(f)
                self.checksums = read_record(dict[str, str], json.loads(f.attrs["checksums"]))
                count = int(f.attrs["count"])
                self.identity = _identity(path)
        except DAMAGE as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{path} is truncated or not a latent store: {reason}") from None
        self.info, self.all_names, self.all_labels = layout.info, layout.names, layout.labels
        self.rows = np.flatnonzero(layout.state == GOOD)
        self.labels = self.all_labels[self.rows]
        self.names = [self.all_names[row] for row in self.rows]
        rejected = np.flatnonzero(layout.state == REJECTED)
        self.rejected = [self.all_names[row] for row in rejected]
        if not 0 < len(self.rows) == count == len(layout.state) - len(rejected):
            raise DataError(
                f"{path} is damaged: it says {count} images, and {len(self.rows)} of "
                f"{len(layout.state)} are there"
            )
        self.extents = {name: layout.extents[name] for name in self.info.row_sets()}
        self._rows = {name: MappedRows(path, extent) for name, extent in self.extents.items()}
        captioned = bool(self.info.text_encoder)
        self.captions = Captions(path, layout.extents, self.rows) if captioned else None

    def __len__(self) -> int:
        return len(self.rows)

    def verify(self, *, stop: Event | None = None) -> None:
        """Check every data set against its checksum; DataError names a damaged one.

        Args:
            stop: without a word in the background, and given up when it is set.
        """
        found = checksums(self.path, "verify" if stop is None else None, stop=stop)
        if stop is not None and stop.is_set():
            return
        self._compare(dict.fromkeys(self.checksums, "") | found)

    def verify_attributes(self) -> None:
        """Check what the store says of itself: attributes, names, labels, states."""
        self._compare(checksums(self.path, None, small=True))

    def _compare(self, found: dict[str, str]) -> None:
        for key, digest in found.items():
            if self.checksums.get(key) != digest:
                raise DataError(f"{self.path} is damaged: the checksum of '{key}' is wrong")

    def check_unchanged(self) -> None:
        """Raise DataError if the file was changed or replaced since it was opened."""
        try:
            same = _identity(self.path) == self.identity
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{self.path} was changed or removed while it was read: what was trained since the "
                "last checkpoint is dropped; bring the store back and run the same command again"
            )

    def moments(
        self, indices: np.ndarray, mirrored: np.ndarray | None = None, *, pin: bool = False
    ) -> Tensor:
        """Moments (len(indices), 2C, h, w) in the stored type, in the order asked for.

        Args:
            mirrored: for each index, whether to take the moments of the mirrored image.
            pin: into page-locked memory, for a copy to a CUDA device.
        """
        return self.read("moments", indices, mirrored, pin=pin)

    def features(
        self, indices: np.ndarray, mirrored: np.ndarray | None = None, *, pin: bool = False
    ) -> Tensor:
        """Encoder features (len(indices), T, F) in the stored type, as `moments`."""
        return self.read("features", indices, mirrored, pin=pin)

    def read(
        self,
        name: str,
        indices: np.ndarray,
        mirrored: np.ndarray | None = None,
        *,
        pin: bool = False,
    ) -> Tensor:
        """Rows of any set of `info.sets`, as `moments`; DataError if the store has no such set."""
        if name not in self._rows:
            raise DataError(f"{self.path} has no {name} (it has {', '.join(self.info.sets)})")
        source, rows = self._rows[name], self.rows[indices]
        out = source.room(len(rows), pin=pin)
        if mirrored is None or not mirrored.any() or f"mirrored_{name}" not in self._rows:
            source.read(rows, out)
            return out
        for part, flip in ((source, False), (self._rows[f"mirrored_{name}"], True)):
            here = np.flatnonzero(mirrored == flip)
            some = source.room(len(here), pin=False)
            part.read(rows[here], some)
            out.index_copy_(0, torch.from_numpy(here), some)
        return out


def _identity(path: Path) -> tuple[int, int]:
    """Size and date: another file, or a changed one."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def checksums(
    path: Path, title: str | None, *, small: bool = False, stop: Event | None = None
) -> dict[str, str]:
    """BLAKE2b-128 of each data set: of the digests of its blocks of 16 MiB, read in parallel.

    "attributes" is that of the StoreInfo as sorted JSON, without encode_batch.

    Args:
        title: of a progress bar; None: without one. small: without the rows of images and captions.
        stop: once it is set, nothing more is read, and what is returned means nothing.
    """
    with open_hdf5(path) as f:
        layout = read_layout(f)
    names = "\0".join(layout.names).encode("utf-8", "surrogateescape")
    about = {k: v for k, v in encode_info(layout.info).items() if k != "encode_batch"}
    sets = set(layout.extents)
    if small:
        sets &= {"labels", "state", *FIXED_TEXT}
    extents = {k: layout.extents[k] for k in sorted(sets)}
    blocks = [(k, at) for k, e in extents.items() for at in range(0, e.nbytes, BLOCK)]
    found = {k: hashlib.blake2b(digest_size=16) for k in extents}
    with (
        path.open("rb", buffering=0) as file,
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        console.progress(title, len(blocks), unit="blocks") if title else nullcontext() as bar,
    ):

        def digest(block: tuple[str, int]) -> bytes:
            if stop is not None and stop.is_set():
                return b""
            extent, at = extents[block[0]], block[1]
            data = os.pread(file.fileno(), min(BLOCK, extent.nbytes - at), extent.offset + at)
            return hashlib.blake2b(data, digest_size=16).digest()

        for (name, _), part in zip(blocks, pool.map(digest, blocks), strict=True):
            found[name].update(part)
            if bar is not None:
                bar.advance()
    sums = {k: d.hexdigest() for k, d in found.items()}
    text = json.dumps(about, sort_keys=True).encode()
    sums["attributes"] = hashlib.blake2b(text, digest_size=16).hexdigest()
    return {**sums, "names": hashlib.blake2b(names, digest_size=16).hexdigest()}
