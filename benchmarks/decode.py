"""What decoding images for an encoder that runs while training costs a thread, and holds of Python.

    python benchmarks/decode.py

Threads of one process share Python: what an image spends outside of the libraries' own code, which
let go of it, bounds them together. CPU time of one thread, so other work on the machine counts
little. Prints a table and writes benchmarks/results/decode.json.
"""

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import write
from PIL import Image, ImageFile, JpegImagePlugin

from sra2cli.core import console
from sra2cli.data.images import decode_image

SIZE, RESOLUTION, IMAGES, ROUNDS = (500, 375), 256, 100, 5  # ImageNet's usual size
THREADS = 8  # of `data.batches.pixels_of`


def main() -> None:
    noise = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
    data, freed = buffer.getvalue(), [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **options: Any) -> Any:
            begun = time.thread_time()
            try:
                return function(*given, **options)
            finally:
                freed[0] += time.thread_time() - begun

        return run

    Image.Image.resize = timed(Image.Image.resize)  # type: ignore[method-assign]
    JpegImagePlugin.JpegImageFile.load = timed(ImageFile.ImageFile.load)  # type: ignore[method-assign]
    whole, held = [], []
    for _ in range(ROUNDS):
        freed[0], begun = 0.0, time.thread_time()
        for _ in range(IMAGES):
            decode_image(data, RESOLUTION)
        whole.append((time.thread_time() - begun) / IMAGES)
        held.append(whole[-1] - freed[0] / IMAGES)
    total, python = statistics.median(whole), statistics.median(held)
    found = {
        "ms_an_image": 1e3 * total,
        "ms_in_python": 1e3 * python,
        "images_per_second_of_threads": min(THREADS / total, 1 / python),
        "images_per_second_of_python": 1 / python,
    }
    rows = [(name.replace("_", " "), f"{value:,.2f}") for name, value in found.items()]
    title = f"a JPEG of {SIZE[0]}x{SIZE[1]} cropped to {RESOLUTION}, up to {THREADS} threads"
    console.print_table(title, ("", ""), rows)
    write("decode", {**found, "bytes": len(data), "size": SIZE, "resolution": RESOLUTION})


if __name__ == "__main__":
    main()
