"""The step is the only clock: every random number of a run is a function of where it is used.

Training draws depend on (seed, step, index in the global batch), sampling draws on (seed, image).
So a resumed run, another number of processes or another micro-batch see the same numbers. Drawn on
the CPU with Philox, a counter-based generator: one key per (seed, purpose), one counter per place.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

SCALARS = 8  # uniforms reserved for each training sample; append new uses, never reorder


class Purpose(IntEnum):
    """What a stream is for. Values are part of what a seed means: never renumber."""

    ORDER = 1  # data order, by epoch
    SCALARS = 2  # uniforms of a training sample
    POSTERIOR = 3  # draw from the VAE posterior
    NOISE = 4  # training noise
    SAMPLE = 5  # noise of image i: step 0 is the start, step k the k-th stochastic step
    LABEL = 6  # labels of samples
    INIT = 7  # initial weights
    CAPTION = 8  # which caption of an image a sample is drawn of


class Scalar(IntEnum):
    """Columns of `scalars`."""

    TIME = 0
    LABEL_DROP = 1
    MIRROR = 2
    TEACHER_TIME = 3
    CAPTION = 4


def generator(seed: int, purpose: Purpose, step: int = 0, index: int = 0) -> np.random.Generator:
    """The generator of one place. seed, step, index: non-negative, below 2^63."""
    counter = np.array([0, 0, index, step], dtype=np.uint64)
    key = np.array([seed, int(purpose)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normals(
    seed: int, purpose: Purpose, step: int, indices: Sequence[int], shape: tuple[int, ...]
) -> np.ndarray:
    """Standard normals (len(indices), *shape), float32; row k depends on indices[k] alone."""
    out = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(out, indices, strict=True):
        generator(seed, purpose, step, index).standard_normal(dtype=np.float32, out=row)
    return out


def scalars(seed: int, step: int, indices: Sequence[int]) -> np.ndarray:
    """Uniforms in [0, 1), (len(indices), SCALARS) float32; columns as in `Scalar`."""
    last = max(indices) + 1
    block = generator(seed, Purpose.SCALARS, step).random((last, SCALARS), dtype=np.float32)
    return block[np.asarray(indices)]


def positions(seed: int, step: int, batch: int, indices: Sequence[int], size: int) -> np.ndarray:
    """Rows of the data set used at `step` by the given indices of the global batch.

    The data are walked in a new order each epoch; a batch may straddle two epochs.
    """
    walked = step * batch + np.asarray(indices, dtype=np.int64)
    epochs = walked // size
    out = np.empty(len(walked), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _order(seed, int(epoch), size)[walked[here] % size]
    return out


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch, kept for the epochs in use: 1.28M rows take 30 ms to shuffle."""
    key = (seed, epoch, size)
    if key not in _orders:
        if len(_orders) >= 4:
            _orders.pop(next(iter(_orders)))
        _orders[key] = generator(seed, Purpose.ORDER, epoch).permutation(size)
    return _orders[key]


def torch_seed(seed: int, index: int = 0) -> int:
    """A seed for torch's own generators, for initial weights: `index` tells modules apart."""
    return int(generator(seed, Purpose.INIT, 0, index).integers(2**62))
