"""`python tests/fuzz`: the settings that a warm process needs before it imports anything."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # others reserve address space
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("COLUMNS", "200")

sys.path[0] = str(Path(__file__).parent.parent)

from fuzz.run import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
