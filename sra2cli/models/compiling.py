"""How networks are compiled, and where torch.compile keeps what it makes."""

import os
from collections.abc import Iterable

import torch
from torch import nn

from sra2cli.core.files import private_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_each(blocks: Iterable[nn.Module]) -> None:
    """torch.compile, block by block: blocks that are alike are compiled once for all, and the
    names of weights stay. Each shape is compiled for itself: one that varied would be slower.
    """
    keep_compiled_apart()
    # It cuts graphs where DDP's buckets of gradients end, for networks that are compiled whole:
    # their reduction is to begin before the backward ends. Blocks are short; it would cut each
    # of SiT-XL's into several.
    torch._dynamo.config.optimize_ddp = False
    for block in blocks:
        block.compile(dynamic=False)


def keep_compiled_apart() -> None:
    """What is compiled is kept where nobody else can write: torch's own place for it, and
    Triton's below it, is a name in the common temporary folder that others can take first.
    """
    from torch._inductor import config as inductor
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE) in (None, default_cache_dir()):  # torch fills it in itself too
        os.environ[CACHE] = str(private_folder("compiled"))
    # Headers compiled ahead would lie there whatever that says: here, and in its processes.
    inductor.cpp_cache_precompile_headers = False
    os.environ["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"
