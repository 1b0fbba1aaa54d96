"""Numbers are finite, or it is an error."""

from collections.abc import Mapping
from typing import Any

from sra2cli.core.errors import DataError


def check_finite(values: Mapping[str, Any], of: str) -> None:
    """Of tensors by name, none may hold NaN or infinity; DataError names the first that does.

    Args:
        of: whose they are, as "the VAE 'digits'".
    """
    for name, tensor in values.items():
        if not bool(tensor.isfinite().all()):
            raise DataError(f"{of}: {name} holds values that are not finite (NaN or infinity)")
