"""Imports flow one way: a room imports rooms of lower floors alone (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "sra2cli"
FLOORS = [  # lowest first; rooms of one floor do not import each other
    {"__init__", "errors", "files", "settings"},
    {"path", "sit", "recipe", "clock", "console", "pictures", "prefetch", "paper"},
    {"align", "ema", "store", "vae", "images", "digits", "sampler", "encoders", "processes"}
    | {"metrics", "npz", "alignment"},
    {"sources", "store_writer", "probe", "features"},
    {"objective", "run", "generate", "checkpoints", "decoding", "imagesets", "inception", "scores"},
    {"batches", "counting", "encoding", "inspect_store", "run_writer", "networks", "reference"}
    | {"axes", "cells"},
    {"engine", "watch", "stopping", "caveats", "judging", "tables", "tokens", "jobs", "grid"},
    {"extract", "train", "sample", "evaluate", "plan", "trial"},
    {"demo", "compare", "streaming", "protocol", "timing"},
    {"sweep", "ablate", "cost", "figures"},
    {"cli"},
    {"__main__"},
]
LIBRARIES = {  # heavy libraries, and the rooms that may import them
    "diffusers": {"vae", "digits"},
    "torchvision": set(),
    "torch_fidelity": {"inception"},
    "transformers": {"encoders"},
    "accelerate": {"engine", "processes"},
    "pyarrow": {"sources"},
    "matplotlib": {"pictures"},
    "sklearn": {"digits"},
    "scipy": {"metrics"},
    "h5py": {"store", "store_writer", "sources"},
    "typer": {"cli"},
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    """Dotted names a file imports, at any depth of nesting."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_has_a_floor():
    rooms = {room_of(f) for f in PACKAGE.rglob("*.py")}
    assert rooms == set().union(*FLOORS)


def test_imports_flow_one_way():
    for file in PACKAGE.rglob("*.py"):
        room = room_of(file)
        for name in imports_of(file):
            parts = name.split(".")
            if parts[0] != "sra2cli" or len(parts) < 2:
                continue
            other = parts[1] if floor_exists(parts[1]) else "__init__"
            if other != room:
                assert floor_of(other) < floor_of(room), f"{room} imports {other}"


def floor_exists(room: str) -> bool:
    return any(room in rooms for rooms in FLOORS)


def test_align_never_imports_sit():
    for file in (PACKAGE / "align").glob("*.py"):
        assert not {n for n in imports_of(file) if n.startswith("sra2cli.sit")}, file


def test_heavy_libraries_stay_in_their_rooms():
    for file in PACKAGE.rglob("*.py"):
        for name in imports_of(file):
            library = name.split(".")[0]
            if library in LIBRARIES:
                assert room_of(file) in LIBRARIES[library], f"{file} imports {library}"


def test_help_imports_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from sra2cli.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "heavy = {'torch', 'numpy', 'diffusers', 'h5py'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
