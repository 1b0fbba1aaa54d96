"""Imports flow one way: a room imports its own wing and lower ones (docs/architecture.md)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "sra2cli"
FLOORS = [  # lowest first; wings of one floor do not import each other
    {"core"},
    {"config"},
    {"models"},
    {"encoders", "align", "diffusion"},
    {"data"},
    {"extraction", "runs"},
    {"sampling"},
    {"evaluation", "figures"},
    {"training"},
    {"reports", "first_stages"},
    {"tables", "demo", "doctor", "suggest", "publish"},
    {"cli"},
]
LIBRARIES = {  # heavy libraries, and the files that may import them
    "diffusers": {"encoders/vae"},
    "torchvision": set(),
    "torch_fidelity": {"evaluation/inception", "evaluation/dino"},
    "transformers": {"encoders/pretrained"},
    "huggingface_hub": {"core/hub", "doctor/weights"},
    "accelerate": set(),  # its launcher is welcome, and needs nothing of it here
    "pyarrow": {"data/sources/parquet"},
    "matplotlib": {"core/pictures"},
    "simplejpeg": {"data/images"},
    "sklearn": {"data/digits"},
    "scipy": {"evaluation/metrics"},
    "h5py": {f"data/{room}" for room in ("store_layout", "store_creation", "store_writer")}
    | {"data/sources/hdf5"},
    "pydantic": {"config"},
    "typer": {"cli"},
    "jinja2": {"reports/report"},
}
OPEN = ("data", "diffusion", "align", "sampling")  # wings that know no network by name
NAMES = {"SiT", "SiTConfig", "Vae", "AutoencoderKL", "models.sit", "encoders.vae"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def wing_of(file: Path) -> str:
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


def floor_of(wing: str) -> int:
    return next(i for i, wings in enumerate(FLOORS) if wing in wings)


def test_every_wing_has_a_floor():
    assert {wing_of(f) for f in files()} == set().union(*FLOORS) | {"__init__", "__main__"}


def test_imports_flow_one_way():
    wings = set().union(*FLOORS)
    for file in files():
        own = wing_of(file)
        if own in ("__init__", "__main__"):  # the package offers what is below; the command starts
            continue
        for name in imports_of(file):
            parts = name.split(".")
            if parts[0] == "sra2cli" and len(parts) > 1 and parts[1] in wings - {own}:
                assert floor_of(parts[1]) < floor_of(own), f"{file} imports {name}"


def test_the_architecture_page_shows_these_floors():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    shown = re.findall(r"^\| \d+ \| ([^|]*) \|", page, flags=re.M)
    assert [set(re.findall(r"`(\w+)", row)) for row in reversed(shown)] == FLOORS


def test_only_models_and_encoders_know_a_network_by_name():
    for file in files():
        if wing_of(file) in OPEN or file.stem == "engine":
            used = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
            used |= {name.removeprefix("sra2cli.") for name in imports_of(file)}
            assert not used & NAMES, file


def test_heavy_libraries_stay_in_their_rooms():
    for file in files():
        place = str(file.relative_to(PACKAGE).with_suffix(""))
        for name in imports_of(file):
            allowed = LIBRARIES.get(name.split(".")[0])
            assert allowed is None or place in allowed or wing_of(file) in allowed, (
                f"{file}: {name}"
            )


def test_files_and_functions_stay_short():
    for file in files():
        text = file.read_text()
        assert text.count("\n") <= 300, file
        assert "**kwargs" not in text and "exec(" not in text, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                body = node.body[1:] if doc and len(node.body) > 1 else node.body
                length = body[-1].end_lineno - body[0].lineno + 1
                assert length <= 60, f"{file}:{node.name}: {length}"


def test_help_imports_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from sra2cli.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "heavy = {'torch', 'numpy', 'diffusers', 'h5py', 'pydantic'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
