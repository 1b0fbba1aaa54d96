"""Where torch.compile keeps what it makes."""

import os

from sra2cli.core.files import private_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"


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
