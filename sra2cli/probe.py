"""How many images to encode at a time: measured, as a guess is wrong by several times.

Small images gain much from a batch; on a CPU large ones lose, as their activations leave the cache.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIZES = (1, 64, 256)  # on a CPU the first two: more brings little, and few choices are stable ones
GAIN = 1.25  # a larger batch must be so much faster
FULL = 0.04  # seconds an image keeps a CPU busy from which on a batch has nothing to add
ROUNDS, ENOUGH = 5, 0.15  # runs of each size at least, and the seconds they shall take


@dataclass(frozen=True)
class Probed:
    """batch: to encode at a time. rate: images/s it encodes."""

    batch: int
    rate: float


def find_batch(
    encode: Callable[[np.ndarray], object], images: np.ndarray, *, total: int, cpu: bool
) -> Probed:
    """The size of `SIZES` that encodes most images a second.

    The sizes take turns and the best run of each counts, so that a machine that is busy for a
    moment does not decide.

    Args:
        encode: images (B, H, W, 3) uint8 → anything, finished when it returns.
        images: (N, H, W, 3) uint8, N > 0; repeated where a batch needs more.
        total: images to be encoded in all; no larger batch is tried.
    """
    sizes = [s for s in SIZES[: 2 if cpu else 3] if s <= max(1, total)]
    first = min(_seconds(encode, images, 1) or 0.0 for _ in range(2))  # kernels are chosen once
    if len(sizes) == 1 or (cpu and first > FULL):
        return Probed(1, 1 / max(first, 1e-9))
    best: dict[int, float] = {}
    rounds, begun = 0, time.perf_counter()
    while rounds < ROUNDS or time.perf_counter() - begun < ENOUGH:
        for size in list(sizes):
            taken = _seconds(encode, images, size)
            if taken is None:  # out of memory
                sizes = sizes[: sizes.index(size)]
                best.pop(size, None)
                break
            best[size] = min(taken, best.get(size, taken))
        rounds += 1
    chosen = 1
    for size in sizes:
        if size / best[size] > GAIN * chosen / best[chosen]:
            chosen = size
    return Probed(chosen, chosen / best[chosen])


def _seconds(encode: Callable[[np.ndarray], object], images: np.ndarray, size: int) -> float | None:
    """Seconds of one run; None if memory does not suffice."""
    batch = np.resize(images, (size, *images.shape[1:]))
    start = time.perf_counter()
    try:
        encode(batch)
    except (RuntimeError, MemoryError) as error:
        if size == 1 or "memory" not in str(error).lower():
            raise
        return None
    return time.perf_counter() - start
