"""Numbers are finite, or it is an error."""

from collections.abc import Mapping
from typing import Any

from sra2cli.core.errors import DataError


def check_finite(values: Mapping[str, Any], of: str) -> None:
    """Of tensors by name, none may hold NaN or infinity, or be complex or of 8 bits, which others
    would cut or scale; DataError names the first that does.

    Args:
        of: whose they are, as "the VAE 'digits'".
    """
    for name, tensor in values.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() < 2):
            raise DataError(f"{of}: {name} is {tensor.dtype}, not a float of 16 bits or more")
        if not bool(tensor.isfinite().all()):
            raise DataError(f"{of}: {name} holds values that are not finite (NaN or infinity)")
