"""What commands print, for docs/commands.md: each runs on digits, and docs/outputs/ keeps it.

    python tools/make_outputs.py           # all, in a fresh folder; two minutes on two cores
    python tools/make_outputs.py sample    # all, but only what this one printed is kept anew

stdout and stderr as they came, in lines of 100 characters, without a GPU. A slow test of
tests/test_docs.py runs them again.
"""

import argparse
import os
import shlex
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = ROOT / "docs" / "outputs"
COUNT = 300  # of the 1,797 digits
SHORT = "--set train.steps=40 --set log.save_every=20 --set log.preview_every=0"
RUN = "runs/digits-sra2"
# In this order, in one folder: a command meets what those before it have left.
COMMANDS = {
    "doctor": ("sra2 doctor",),
    "suggest": ("sra2 suggest digits",),
    "recipes": ("sra2 recipes", "sra2 recipes digits-sra2"),
    "vae": ("sra2 vae digits --out my-vae --resolution 32 --widths 16,32 --steps 40",),
    "extract": (
        "sra2 extract digits --out digits.h5 --vae digits --resolution 32",
        "sra2 extract --check digits.h5",
    ),
    "train": (
        f"sra2 train --recipe digits-sra2 --data digits.h5 {SHORT} --dry-run",
        f"sra2 train --recipe digits-sra2 --data digits.h5 {SHORT}",
    ),
    "sample": (f"sra2 sample {RUN} --preset digits --num 20 --out drawn",),
    "eval": (
        "sra2 eval drawn --metrics fd-digits",
        f"sra2 eval {RUN} --preset digits --num 20 --cfg 1,1.5 --metrics fd-digits",
    ),
    "figures-pca": (f"sra2 figures pca {RUN} --index 7 --times 0.2,0.8",),
    "figures-probe": (f"sra2 figures probe {RUN} --num 64 --times 0.2,0.8",),
    "ablate": (
        f"sra2 ablate lambda --values 1 --recipe digits-sra2 --data digits.h5 --num 20 {SHORT}",
    ),
    "runs": ("sra2 runs",),
    "report": (f"sra2 report {RUN}",),
    "export": (f"sra2 export {RUN} --to digits-sra2",),
    "cost": ("sra2 cost --baseline repa --no-measure",),
    "demo": ("sra2 demo --steps 20",),
}


def prepare(folder: Path) -> None:
    """The first digits as a folder, and an environment that is the same everywhere."""
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.update(own, HOME=str(folder), PYTHONPATH=path)  # before torch and rich are there
    os.chdir(folder)
    from sra2cli.data.digits import write_folder

    write_folder(folder / "digits")
    for image in (folder / "digits").rglob("*.png"):
        if int(image.stem) >= COUNT:
            image.unlink()


def printed(line: str, folder: Path) -> str:
    """The command line and what it printed, run in this process; RuntimeError where it failed."""
    from typer.testing import CliRunner

    from sra2cli.cli import app

    done = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
    if done.exit_code:
        raise RuntimeError(f"{line}: exit code {done.exit_code}\n{done.output}")
    told = done.output.replace(f"{folder}/.cache", "~/.cache").replace(f"{folder}/", "")
    told = told.replace(str(folder), "this folder").replace(f"{ROOT}/", "")
    return f"$ {line}\n" + "\n".join(row.rstrip() for row in told.splitlines()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help=" ".join(COMMANDS))
    parser.add_argument("--out", type=Path, default=OUTPUTS)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        prepare(folder)
        for name, lines in COMMANDS.items():
            text = "\n".join(printed(line, folder) for line in lines)
            if not arguments.names or name in arguments.names:
                (out / f"{name}.txt").write_text(text, encoding="utf-8")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
