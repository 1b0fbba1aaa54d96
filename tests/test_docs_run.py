"""What README.md and docs/ print to be typed is run: in the order of the page, in a fresh folder,
each line in a shell, by the real command line.

What is done to a line is said here: `SHORT` is appended to it, `BEFORE` is run before it, and
`NOT_HERE` lists with a reason what no machine without GPU, hub and data sets can run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
TYPED = re.compile(r"(?:[A-Z]+=\S+ )*(?:\.venv/bin/)?(?:sra2|python|make|torchrun|accelerate)\b|#!")

STEPS = "--set train.steps=4 --set train.batch=4 --set log.save_every=2 --set log.keep_every=2"
STEPS += " --set log.preview_every=0 --set log.tensorboard=false"
SMALL = "--set model.size=custom --set model.depth=28 --set model.width=24 --set model.heads=2"
SMALL += " --set model.patch=8 --set data.classes=null"  # instead of the paper's, on ten classes
SHORT = (  # of the first pattern that a line has: what is appended; "" where it is quick as it is
    (r"sra2 (doctor|suggest|recipes|runs|report|export)\b", ""),
    (r"sra2 extract --check", ""),
    (r"sra2 extract", "--workers 0"),
    (r"sra2 vae", "--steps 3 --batch 4 --workers 0"),
    (r"sra2 train .*--init", f"{STEPS} --set model.size=S/2"),
    (r"sra2 train --recipe (b|l|xl)-", f"{STEPS} {SMALL}"),
    (r"sra2 train", STEPS),
    (r"sra2 sample", "--num 4 --steps 2"),
    (r"sra2 eval", "--num 12 --steps 2"),
    (r"sra2 ablate", "--dry-run"),
    (r"sra2 figures pca", "--times 0.5"),
    (r"sra2 figures probe", "--times 0.5 --num 24"),
    (r"sra2 cost --show", ""),
    (r"sra2 cost", "--no-measure"),
    (r"python -c|(python -|cat > \S+) <<", ""),
)
REPLACED = (  # by what is here, so that a line means what it means to a reader
    (r"@\d+000\b", "@4"),  # the last step of the runs here
    (r"--step \d+000,[\d,]+", "--step 2,4"),
    (r"--label 281\b", "--label 7"),  # of ten classes
    (r"/data/(imagenet/train|train|mine)\b", "IMAGES"),
    (r"(\S+/samples/)\.\.\.", r"$(ls -d \1* | head -n 1)"),
)
KEPT = 4  # images a class of folders that a page writes, so that what follows is quick


def commands(page: Path) -> list[str]:
    """What a page says to type, in its order: lines, scripts, and files that it says to write."""
    found, text = [], page.read_text(encoding="utf-8")
    for block in FENCED.finditer(text):
        language, content = block.groups()
        named = re.search(r"write `([\w.-]+)`:\s*$", text[: block.start()])
        if language == "python":
            found.append(f"python - <<'END'\n{content}END")
        elif language == "yaml" and named:
            found.append(f"cat > {named[1]} <<'END'\n{content}END")
        elif content.startswith("#!"):
            found.append(content.strip())
        elif language in ("", "sh") and TYPED.match(content):
            lines = content.replace("\\\n", " ").splitlines()
            found += [" ".join(re.sub(r"\s#\s.*", "", line).split()) for line in lines]
    return found


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


LINES = {name(page): commands(page) for page in PAGES if commands(page)}

EXTRACT = "sra2 extract IMAGES --out in256.h5"
RUN = "sra2 train --recipe {} --data in256.h5 --out runs/{}"
XL = (EXTRACT, RUN.format("xl-sra2", "xl-sra2"))
DRAWN = (*XL, "sra2 sample runs/xl-sra2 --num 16")
SIT = RUN.format("xl-sit", "xl-sit")
EMOJI = LINES["docs/emoji.md"]
BEFORE = {  # page, and how its line begins: what the reader has done before, on another page or so
    ("README.md", "sra2 sample runs/my-images --labels cat,dog --cfg 1.8"): (
        RUN.format("b-sra2", "my-images"),
    ),
    ("README.md", "sra2 sample runs/a@100000 runs/b@100000 --grid"): (
        RUN.format("b-sit", "a"),
        RUN.format("b-sra2", "b"),
    ),
    ("README.md", "sra2 report runs/xl-sit runs/xl-sra2"): (SIT,),
    ("docs/ablations/README.md", "sra2 ablate methods --recipe emoji-sra2"): EMOJI[:2],
    ("docs/data.md", "sra2 extract emoji/train"): EMOJI[:1],
    ("docs/eval.md", "sra2 eval runs/xl-sra2/samples/... --ref VIRTUAL"): DRAWN,
    ("docs/hub.md", "sra2 export runs/xl-sra2@400000 --to xl-sra2"): XL,
    ("docs/report.md", "sra2 report runs/b-sit runs/b-sra2 --out report.html"): (
        EXTRACT,
        RUN.format("b-sit", "b-sit"),
        RUN.format("b-sra2", "b-sra2"),
    ),
    ("docs/store.md", "python"): ("sra2 extract IMAGES --out digits.h5 --vae emoji",),
    ("docs/tables.md", "sra2 ablate depth --data in256.h5"): (*XL, SIT),
}

NOT_HERE: dict[str, tuple[str | None, tuple[str, ...]]] = {
    # reason: (what such a line says here as printed; None: it is not tried; the lines of all pages)
    "sets the machine up, from a package index": (
        None,
        ("make setup", "make demo", "make demo-text", "make test", "make docs"),
    ),
    "Inception's weights": (
        "Inception",
        (
            "sra2 eval runs/xl-sra2/samples/... --ref REF.npz",
            "sra2 eval runs/xl-sra2 --cfg 1.0,1.5,1.8 --ref REF.npz",
            "sra2 eval runs/xl-sra2 --metrics fid,fdd --ref REF.npz",
            "sra2 eval runs/xl-sra2 --preset sra2 --ref REF.npz",
            "sra2 eval runs/xl-sra2 --cfg 1.0,1.25,1.5,1.8 --interval 0:0.7 --ref REF.npz",
            "sra2 eval runs/xl-sra2 --step 100000,200000,400000 --num 5000 --ref REF.npz",
            "sra2 eval runs/xl-sra2/samples/... --ref VIRTUAL_imagenet256_labeled.npz",
            "sra2 eval samples.npz --ref REF --metrics fid,kid --json",
            "sra2 eval /data/mine --crop 256 --save-stats mine256.npz",
            "sra2 eval runs/my-images --ref my-images --crop 64 --metrics fid,kid --num 2992 "
            "--solver euler --steps 50 --labels balanced",
            "sra2 ablate depth --data in256.h5 --ref REF.npz",
            "sra2 ablate methods --data in256.h5 --ref REF.npz",
            "sra2 ablate depth --data in256.h5 --ref VIRTUAL_imagenet256_labeled.npz",
            "sra2 ablate lambda --values 0.25,0.5,1,2 --recipe b-sra2 --data in256.h5 "
            "--ref REF.npz",
        ),
    ),
    "a DINOv2": (
        "hub",
        (
            "sra2 figures probe runs/xl-sra2 --encoder facebook/dinov2-base --images IMAGES",
            "sra2 figures probe runs/xl-sra2 --encoder facebook/dinov2-base "
            "--images /data/imagenet/train",
            "sra2 eval runs/xl-sra2/samples/... --ref VIRTUAL_imagenet256_labeled.npz "
            "--metrics fdd,kdd",
            "sra2 eval /data/imagenet/train --crop 256 --metrics fdd "
            "--save-stats train256-dino.npz",
        ),
    ),
    "runs of REPA and REG, which take a DINOv2's features": (
        None,
        (
            "sra2 ablate systems runs/xl-sra2 runs/xl-reg --ref REF.npz",
            "sra2 ablate systems runs/xl-sra2 runs/xl-repa@4000000 SiT-XL-2-256x256.pt "
            "--ref REF.npz",
        ),
    ),
    "data as others pack them: tests/test_kinds_*.py make some and read them": (
        None,
        (
            "sra2 extract 'wds/train-{000000..000099}.tar' --out a.h5",
            "sra2 extract data/ --split train --label fine_label --out a.h5",
            "sra2 extract data.parquet --out d.h5 --text-encoder words --captions title "
            "--skip-uncaptioned",
        ),
    ),
    "a network on the hub": (
        "hub",
        (
            "sra2 sample hf:ORG/NAME --num 16",
            "sra2 eval hf:ORG/NAME/SiT-XL-2-256x256.pt@v1 --ref REF.npz --preset sit",
        ),
    ),
    "writes to the hub: tests/test_hub.py sends to one on this machine": (
        None,
        (
            "sra2 export runs/xl-sra2 --to xl --push ORG/NAME",
            "sra2 export runs/xl-sra2@400000 --to xl-sra2 --push ORG/NAME",
        ),
    ),
    "MS-COCO or images of one's own with captions, and a text encoder": (
        None,
        (
            'sra2 sample runs/coco-mmdit-sra2 --prompt "a red double-decker bus" --preset t2i',
            "sra2 ablate t2i runs/coco-mmdit runs/coco-mmdit-sra2 --prompts val.h5 --ref VAL.npz",
            "sra2 ablate t2i runs/coco-mmdit runs/coco-mmdit-sra2 runs/coco-mmdit-repa "
            "--prompts val.h5 --ref val256.npz",
            "sra2 eval coco/val2014 --crop uvit-center:256 --save-stats val256.npz",
            "sra2 eval runs/t2i/samples/... --ref val256.npz --metrics fid,pickscore",
            "sra2 extract coco/train2014 --captions captions_train2014.json "
            "--text-encoder openai/clip-vit-large-patch14 --crop uvit-center --out coco256.h5",
            "sra2 extract coco/train2014 --out coco.h5 --crop uvit-center "
            "--text-encoder openai/clip-vit-large-patch14",
            "sra2 extract coco/val2014 --captions captions_val2014.json --crop uvit-center "
            "--text-encoder openai/clip-vit-large-patch14 --out val.h5",
        ),
    ),
    "VA-VAE": (
        None,
        (
            "sra2 ablate systems runs/lightningdit-xl1 runs/lightningdit-xl1-sra2 "
            "--preset lightningdit-64ep --ref REF.npz",
        ),
    ),
    "several machines with GPUs: tests/test_nodes.py launches the first two, on two processes": (
        None,
        tuple(LINES["docs/launching.md"]),
    ),
    "the whole of what the lines above it begin with": (
        None,
        ("sra2 ablate depth … --dry-run", "sra2 ablate depth … --shard 2/4"),
    ),
    "shows what a call is given: the tensors are the reader's": (
        None,
        tuple(line for lines in LINES.values() for line in lines if "import load_model" in line),
    ),
    "the code of others, or a GPU": (
        None,
        (
            "python benchmarks/peers.py --repa REPA --sra SRA",
            "REPA=… SRA=… bash benchmarks/gpu.sh",
            "sra2 cost --baseline all --batch 256",
        ),
    ),
    "minutes at any number of steps: test_pipeline.py and test_text_runs.py have them smaller": (
        None,
        (".venv/bin/sra2 demo", ".venv/bin/sra2 demo --text"),
    ),
    "measures for minutes": (
        None,
        (
            "python benchmarks/profile_step.py",
            "python benchmarks/profile_step.py --compile",
            "python benchmarks/self_guidance.py cost",
            "python benchmarks/self_guidance.py sweep runs/ablate-digits-sra2/runs/sra2-seed?",
        ),
    ),
}


LISTED = {line: said for said, lines in NOT_HERE.values() for line in lines}


def replaced(line: str) -> str:
    for pattern, instead in REPLACED:
        line = re.sub(pattern, instead, line)
    return line


def shortened(line: str) -> str:
    """A line as it is run here."""
    more = next((more for pattern, more in SHORT if re.match(pattern, line)), None)
    assert more is not None, f"neither in SHORT nor in NOT_HERE: {line}"
    return f"{replaced(line)} {more}".strip() if more else replaced(line)


def test_every_line_is_run_or_listed_with_a_reason():
    printed = {line for lines in LINES.values() for line in lines}
    assert LISTED.keys() <= printed, "no page prints these any more"
    for line in printed - LISTED.keys():
        shortened(line)  # a new kind of line is not in SHORT: say how it is run, or why it is not
    for page, start in BEFORE:
        assert [line for line in LINES[page] if line.startswith(start)], f"{page}: {start}"


@pytest.mark.parametrize("page", LINES)
def test_what_a_reader_replaces_is_said(page):
    """Words in capitals, and dots, of the lines: the page's own text has them too."""
    prose = FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    word = r"(?<![\w.$])([A-Z]{3,}(?:/[A-Z]{3,})?(?:\.npz)?|\.\.\.|…)(?![\w=])"
    lines = [line for line in LINES[page] if "<<" not in line and not line.startswith("#!")]
    assert {
        found for line in lines for found in re.findall(word, line) if found not in prose
    } == set()


# A folder with what the pages' readers have, and weights as small as they may be.


def write_vae(folder: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8] * 4,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.18215,
    ).save_pretrained(folder)


def write_sit(file: Path) -> None:
    """SiT-S/2 as SiT publishes its XL/2: a bare state dict, with channels that it does not use."""
    import torch

    from sra2cli.models.sit import SIZES, SiT, SiTConfig

    state = SiT(SiTConfig(**SIZES["S"], patch=2, latent=32, channels=4, classes=1000)).state_dict()
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[key].unflatten(0, (4, 4))
        state[key] = torch.cat([rows, rows], dim=1).flatten(0, 1)
    torch.save(state, file)


def write_images(folder: Path) -> None:
    """Forty pictures in ten folders, cats and dogs among them by name."""
    from PIL import Image

    from sra2cli.data.emoji import CLASSES, load_emoji

    emoji = load_emoji(64).part("train")
    for kind, title in enumerate(("cat", "dog", *CLASSES[2:])):
        (folder / title).mkdir(parents=True)
        for row in np.flatnonzero(emoji.labels == kind)[:KEPT]:
            Image.fromarray(emoji.images[row]).save(folder / title / f"{row}.png")
    Image.fromarray(emoji.images[0]).save(folder.parent / "cat.jpg")


@pytest.fixture(scope="session")
def given(tmp_path_factory) -> Path:
    """A home with what is given: its hub's cache holds a first stage under the usual names."""
    folder = tmp_path_factory.mktemp("given")
    write_images(folder / "IMAGES")
    write_vae(folder / "sd-vae")
    write_sit(folder / "SiT-XL-2-256x256.pt")
    grey = np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), np.uint8)
    for file in ("REF.npz", "VIRTUAL_imagenet256_labeled.npz", "samples.npz"):
        np.savez(folder / file, arr_0=grey)
    shutil.copytree(folder / "IMAGES", folder / "REF")
    shutil.copy(ROOT / "benchmarks" / "results" / "cost-cpu.json", folder / "FILE")
    for repository in ("sd-vae-ft-mse", "sd-vae-ft-ema"):
        home = folder / ".cache/huggingface/hub" / f"models--stabilityai--{repository}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("a" * 40)
        shutil.copytree(folder / "sd-vae", home / "snapshots" / ("a" * 40))
    for program, call in {"sra2": "-m sra2cli ", "python": ""}.items():
        file = folder / ".venv" / "bin" / program
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call}"$@"\n')
        file.chmod(0o755)
    return folder


class Shell:
    """Runs lines in one folder; those that a machine without a GPU and a network has."""

    def __init__(self, folder: Path):
        self.folder = folder
        inherited = {k: v for k, v in os.environ.items() if k in ("LANG", "TMPDIR")}
        path = os.pathsep.join([str(folder / ".venv" / "bin"), os.environ["PATH"]])
        own = {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        none = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.environment = {**inherited, **own, **none}

    def run(self, line: str) -> subprocess.CompletedProcess:
        command = ["bash", "-euo", "pipefail", "-c", line]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def thin(self) -> None:
        """Class folders that a line has written, to `KEPT` images each."""
        for folder in self.folder.glob("*/*/"):
            for file in sorted(folder.glob("*.png"))[KEPT:]:
                file.unlink()
            told = folder / "metadata.jsonl"
            if told.exists():
                lines = told.read_text().splitlines(keepends=True)
                there = [x for x in lines if (folder / json.loads(x)["file_name"]).exists()]
                told.write_text("".join(there))


def wrong(shell: Shell, line: str) -> str:
    """What is wrong with how a line ends, "" if nothing."""
    said = LISTED.get(line)
    done = shell.run(replaced(line) if said else shortened(line))
    if said is None:
        return "" if done.returncode == 0 else f"{line}\n{done.returncode}: {done.stderr}"
    last = (done.stderr.splitlines() or [""])[-1]
    good = done.returncode in (1, 2) and last.startswith("error: ") and re.search(said, last)
    return "" if good else f"{line}\nshould say {said!r}\n{done.returncode}: {done.stderr}"


def steps_of(page: str) -> list[str]:
    """Lines of a page that are tried here, each after what its reader has done before."""
    found, before = [], {start: steps for (where, start), steps in BEFORE.items() if where == page}
    for line in LINES[page]:
        if LISTED.get(line, "") is not None:
            for start in [start for start in before if line.startswith(start)]:
                found += before.pop(start)
            found.append(line)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in LINES if steps_of(page)])
def test_the_lines_of_a_page_run_in_its_order(page, given, tmp_path):
    folder = tmp_path / "reader"
    shutil.copytree(given, folder, symlinks=True)
    shell, failed = Shell(folder), []
    for line in steps_of(page):
        failed.append(wrong(shell, line))
        if line.startswith("python -"):
            shell.thin()
    shutil.rmtree(folder)
    failed = [about for about in failed if about]
    assert not failed, "\n\n".join(failed)
