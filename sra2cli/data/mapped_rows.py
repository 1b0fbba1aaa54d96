"""Rows of one data set of a store, read through a memory map."""

import math
import mmap
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sra2cli.data.store_layout import Extent

SLOW = 1e9  # bytes/s: below it rows come from a disk, and are asked for ahead


class MappedRows:
    """Rows of one data set, gathered through a memory map by all of torch's threads."""

    def __init__(self, path: Path, extent: Extent):
        self.extent = extent
        self.shape = extent.shape[1:]
        self._file = path.open("rb")
        start = extent.offset % mmap.ALLOCATIONGRANULARITY
        self._map = mmap.mmap(
            self._file.fileno(),
            extent.nbytes + start,
            access=mmap.ACCESS_READ,
            offset=extent.offset - start,
        )
        flat = np.frombuffer(self._map, extent.dtype, math.prod(extent.shape), start)
        with warnings.catch_warnings():  # torch has no read-only tensors; nothing is written
            warnings.simplefilter("ignore", UserWarning)
            self.rows = torch.from_numpy(flat.reshape(extent.shape))
        self.dtype = self.rows.dtype
        self._hints = 1  # batches for which the disk is asked ahead; begins cold

    def room(self, count: int, *, pin: bool) -> Tensor:
        """For so many rows; numpy asks for huge pages, without which large batches fault for long.

        Args:
            pin: page-locked, for a copy to a CUDA device.
        """
        shape = (count, *self.shape)
        if pin:
            return torch.empty(shape, dtype=self.dtype, pin_memory=True)
        return torch.from_numpy(np.empty(shape, self.extent.dtype))

    def read(self, rows: np.ndarray, out: Tensor) -> None:
        """Gather rows into `out`. From a disk, they are asked for together, in its order."""
        if self._hints:
            self._hints -= 1
            for row in np.sort(rows).tolist():
                at = self.extent.offset + row * self.extent.row_bytes
                os.posix_fadvise(
                    self._file.fileno(), at, self.extent.row_bytes, os.POSIX_FADV_WILLNEED
                )
        begun = time.perf_counter()
        torch.index_select(self.rows, 0, torch.from_numpy(rows), out=out)
        if out.nbytes / max(time.perf_counter() - begun, 1e-9) < SLOW:
            self._hints = 16
