"""How many images to encode at a time: measured, as a guess is wrong by several times.

Small images gain much from a batch; on a CPU large ones lose, as their activations leave the cache.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIZES = (1, 4, 16, 64, 256)
GAIN = 1.25  # more than one must be so much faster: a choice that noise does not turn
FULL = 0.04  # seconds an image keeps a CPU busy from which on a batch has nothing to add
RUNS, ENOUGH = 3, 0.05  # timed runs of a size at least, and the seconds they shall take


@dataclass(frozen=True)
class Probed:
    """batch: to encode at a time. rate: images/s it encodes."""

    batch: int
    rate: float


def find_batch(
    encode: Callable[[np.ndarray], object], images: np.ndarray, *, total: int, cpu: bool
) -> Probed:
    """The size of `SIZES` that encodes most images a second.

    Args:
        encode: images (B, H, W, 3) uint8 → anything, finished when it returns.
        images: (N, H, W, 3) uint8, N > 0; repeated where a batch needs more.
        total: images to be encoded in all; no larger batch is tried.
    """
    best, losses = Probed(1, 0.0), 0
    for size in SIZES:
        if size > max(1, total) or losses == 2:
            break
        rate = _rate(encode, np.resize(images, (size, *images.shape[1:])), slow=FULL if cpu else 9)
        if rate is None:  # out of memory
            break
        if rate > best.rate * (GAIN if best.batch == 1 else 1.05):
            best, losses = Probed(size, rate), 0
        else:
            losses += 1
        if cpu and size == 1 and 1 / rate > FULL:
            break
    return best


def _rate(
    encode: Callable[[np.ndarray], object], images: np.ndarray, *, slow: float
) -> float | None:
    """Images/s in the best of a few runs; None if memory runs out.

    The first run does not count, as kernels are chosen in it, unless it is slow by itself.
    """
    times: list[float] = []
    try:
        while len(times) <= RUNS or sum(times[1:]) < ENOUGH:
            start = time.perf_counter()
            encode(images)
            times.append(time.perf_counter() - start)
            if times[0] > 10 * slow or (times[0] > slow and len(times) > 1):
                break
    except (RuntimeError, MemoryError) as error:
        if len(images) == 1 or "memory" not in str(error).lower():
            raise
        return None
    return len(images) / min(times[1:] or times)
