"""How fast a device multiplies matrices: by its maker's word, or measured here."""

import time
from dataclasses import dataclass
from functools import cache

import torch

PEAK = {  # dense matrix rate in FLOP/s of half precision, from the makers' data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A6000": 155e12,
    "V100": 125e12,
}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MatrixRate:
    """FLOP/s. measured: by products here; else the figure of the device's maker."""

    flops: float
    measured: bool

    @property
    def share(self) -> str:
        """What a share of it is called in metrics."""
        return "of_matrix_rate" if self.measured else "mfu"

    def __str__(self) -> str:
        whose = "as products reached here" if self.measured else "its maker's figure"
        return f"{self.share}: of {self.flops / 1e12:,.0f} TFLOP/s a device, {whose}"


def named_rate(name: str) -> float | None:
    """Of half precision, by the name of a device; None: not known."""
    return next((rate for key, rate in PEAK.items() if key in name), None)


def rate_of(device: str, precision: str) -> MatrixRate | None:
    """Of a CUDA device at a precision; None for a CPU, whose rate is no figure to work towards."""
    if not device.startswith("cuda"):
        return None
    named = named_rate(torch.cuda.get_device_name(device)) if precision in HALF else None
    if named is not None:
        return MatrixRate(named, measured=False)
    dtype = HALF.get(precision, torch.float32)
    return MatrixRate(matrix_rate(device, 8192, dtype), measured=True)


def matrix_rate(device: str, side: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of products of square matrices, the best of a few."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(12):
        wait(device)
        begun = time.perf_counter()
        for _ in range(8):
            a @ b
        wait(device)
        best = max(best, 8 * 2 * side**3 / (time.perf_counter() - begun))
    return best


@cache
def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones. A CPU is asked to: some
    have the instructions for it and take twice as long. One answer for all that a process does.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if device.type != "cpu" or not supported():
        return False
    half, full = (matrix_rate("cpu", 512, dtype) for dtype in (torch.bfloat16, torch.float32))
    return half > 1.2 * full


def wait(device: str) -> None:
    """Until a device has done what it was asked for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
