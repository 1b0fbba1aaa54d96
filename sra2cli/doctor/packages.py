"""Packages: those that are optional, and how what is installed differs from what was tested."""

from importlib import metadata
from pathlib import Path

from sra2cli.doctor.lines import Line

OPTIONAL = {  # what needs it, and what gets it
    "transformers": ("DINOv2, CLIP, T5, PickScore", "pip install 'transformers>=4.45'"),
    "sentencepiece": ("tokenizers of T5 without tokenizer.json", "pip install sentencepiece"),
    "pyarrow": ("images and captions in parquet", "pip install 'pyarrow>=17'"),
    "wandb": ("log.wandb", "pip install wandb"),
    "simplejpeg": ("finding damage inside of JPEG", "pip install simplejpeg"),
}
PINNED = "constraints.txt"


def optional() -> list[Line]:
    """A line each."""
    lines = []
    for name, (needs, remedy) in OPTIONAL.items():
        there = version(name)
        if there is None:
            lines.append(Line(name, "missing", f"for {needs}", remedy))
        else:
            lines.append(Line(name, "ok", f"{there}, for {needs}"))
    return lines


def pinned() -> Line:
    """What differs from the versions that the tests ran with."""
    versions = tested()
    there = {name: version(name) for name in versions}
    differ = [
        f"{name} {there[name]} ({wanted})"
        for name, wanted in versions.items()
        if there[name] not in (None, wanted)
    ]
    same = sum(there[name] == wanted for name, wanted in versions.items())
    if differ:
        said = f"{', '.join(differ)}: tested with those in brackets"
        return Line("versions", "note", said, f"pip install -c {PINNED} . in a checkout pins them")
    return Line("versions", "ok", f"{same} packages, as they were tested")


def tested() -> dict[str, str]:
    """Package → version, of `constraints.txt`: inside an installed package, beside a checkout."""
    package = Path(__file__).parents[1]
    file = next((p for p in (package / PINNED, package.parent / PINNED) if p.is_file()), None)
    lines = [] if file is None else file.read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines if "==" in line)


def version(name: str) -> str | None:
    """Of an installed package, without what tells builds apart (+cu132); None: it is not there."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
