"""What commands print, for docs/commands.md: each runs on the digits, and docs/outputs/ keeps it.

    python tools/make_outputs.py           # all, in a fresh folder; some minutes on two cores
    python tools/make_outputs.py sample    # those of one, and what it needs before it, anew

stdout and stderr as they came, in lines of 100 characters. A slow test of tests/test_docs.py runs
them again.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

OUTPUTS = Path(__file__).resolve().parents[1] / "docs" / "outputs"
SHORT = "--set train.steps=100 --set log.save_every=50 --set log.preview_every=0"
RUN = "runs/digits-sra2"
# In this order, in one folder: a command meets what those before it have left.
COMMANDS = {
    "recipes": ("sra2 recipes", "sra2 recipes digits-sra2"),
    "extract": (
        "sra2 extract digits --out digits.h5 --vae digits --resolution 32",
        "sra2 extract --check digits.h5",
    ),
    "vae": ("sra2 vae digits --out my-vae --resolution 32 --widths 16,32 --steps 40 --limit 400",),
    "train": (
        f"sra2 train --recipe digits-sra2 --data digits.h5 {SHORT} --dry-run",
        f"sra2 train --recipe digits-sra2 --data digits.h5 {SHORT}",
    ),
    "sample": (f"sra2 sample {RUN} --preset digits --num 40 --out drawn",),
    "eval": (
        "sra2 eval drawn --metrics fd-digits",
        f"sra2 eval {RUN} --preset digits --num 40 --cfg 1,1.5 --metrics fd-digits",
    ),
    "figures-pca": (f"sra2 figures pca {RUN} --index 7 --times 0.2,0.8",),
    "figures-probe": (f"sra2 figures probe {RUN} --num 64 --times 0.2,0.8",),
    "ablate": (
        f"sra2 ablate lambda --values 1 --recipe digits-sra2 --data digits.h5 --num 40 {SHORT}",
    ),
    "runs": ("sra2 runs",),
    "report": (f"sra2 report {RUN}",),
    "export": (f"sra2 export {RUN} --to digits-sra2",),
    "cost": ("sra2 cost --baseline repa --no-measure",),
    "doctor": ("sra2 doctor",),
    "suggest": ("sra2 suggest digits",),
    "demo": ("sra2 demo --steps 40",),
}


def printed(line: str, folder: Path) -> str:
    """The command line and what it printed; RuntimeError where it failed."""
    command = [sys.executable, "-m", "sra2cli", *shlex.split(line)[1:]]
    package = str(Path(__file__).resolve().parents[1])
    own = {
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": str(folder),
    }
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **own, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{line}: exit code {done.returncode}\n{done.stdout}")
    told = done.stdout.replace(f"{folder}/", "").replace(package, "sra2")
    shown = "\n".join(row.rstrip() for row in told.splitlines())
    return f"$ {line}\n{shown}\n"


def outputs(folder: Path, out: Path, names: list[str] | None = None) -> None:
    """Run them all in `folder`, and write OUT/NAME.txt of those named."""
    from sra2cli.data.digits import write_folder

    write_folder(folder / "digits")
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in COMMANDS.items():
        text = "\n".join(printed(line, folder) for line in lines)
        if not names or name in names:
            (out / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help=" ".join(COMMANDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        outputs(Path(scratch), OUTPUTS, arguments.names)
