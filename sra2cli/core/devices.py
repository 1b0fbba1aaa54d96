"""What devices differ in: Apple's GPU has no float64, and what is brought there must be waited for.

Everything here is the same as without it on a CPU and on CUDA.
"""

import torch
from torch import Tensor

WITHOUT_DOUBLE = ("mps",)  # types of devices


def kept_on(device: torch.device) -> torch.device:
    """Where what a device computes is kept in float64: there, or on the CPU."""
    return torch.device("cpu") if device.type in WITHOUT_DOUBLE else device


def double(x: Tensor) -> Tensor:
    """In float64, `kept_on` its device."""
    return x.to(kept_on(x.device)).double()


def brought(x: Tensor, device: torch.device) -> Tensor:
    """To a device; to CUDA without waiting, which is right there alone."""
    return x.to(device, non_blocking=device.type == "cuda")
