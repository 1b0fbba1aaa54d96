"""Weights of others: found where the libraries keep them, or where to put them.

Nothing is loaded, and the network is never touched.
"""

from pathlib import Path

from sra2cli.config.methods import METHODS
from sra2cli.core.errors import SetupError
from sra2cli.doctor.lines import Line
from sra2cli.encoders.open import DEFAULT, PUBLISHED
from sra2cli.encoders.text_networks import CLIP_LARGE
from sra2cli.evaluation.dino import DINO
from sra2cli.evaluation.inception import SHA256, URL, default_file, read_weights
from sra2cli.evaluation.pickscore import PICKSCORE, PROCESSORS

SUFFIXES = (".safetensors", ".bin")
T5 = "google/t5-v1_1-large"


def wanted() -> list[tuple[str, str, str, str]]:
    """(what it is, name on the hub, what needs it, the option that names another place)."""
    dino = METHODS["repa"].settings().encoder  # type: ignore[attr-defined]
    return [
        ("VAE", DEFAULT, "extract", "--vae FOLDER"),
        ("VAE of checkpoints", PUBLISHED, "sample CHECKPOINT of others", "--vae FOLDER"),
        ("DINOv2 of REPA", dino, "recipes with repa", "--set align.repa.encoder=FOLDER"),
        ("DINOv2 of fdd", DINO, "eval --metrics fdd,kdd", "--dino-model FOLDER"),
        ("CLIP", CLIP_LARGE, "captions, clip-score", "--text-encoder, --clip-model FOLDER"),
        ("PickScore", PICKSCORE, "eval --metrics pickscore", "--pickscore-model FOLDER"),
        ("its tokenizer", PROCESSORS[PICKSCORE], "the same", "--pickscore-model FOLDER"),
    ]


def weights() -> list[Line]:
    """A line each."""
    return [hub(), inception(), *[network(*row) for row in wanted()], t5()]


def hub() -> Line:
    """Where the libraries of the hub keep what they load."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    there = len(list(cache.glob("models--*")))
    offline = "; HF_HUB_OFFLINE is set: nothing is downloaded" if constants.HF_HUB_OFFLINE else ""
    return Line("hub cache", "ok", f"{cache}, {there} networks{offline}")


def inception() -> Line:
    """Inception's weights, which are never downloaded silently."""
    file, needs = default_file(), "fid, sfid, is, precision, recall, kid"
    try:
        read_weights(file)
    except SetupError as error:
        there = file.is_file()
        said = str(error) if there else f"for {needs}: not at {file}"
        remedy = f"download {URL} (SHA-256 {SHA256}…) to that place, or --inception FILE"
        return Line("Inception", "missing", said, remedy)
    return Line("Inception", "ok", f"{file}, for {needs}")


def network(what: str, name: str, needs: str, option: str) -> Line:
    """A network in the hub's cache."""
    folder = cached(name)
    if folder is not None:
        return Line(what, "ok", f"{name} in the hub cache, for {needs}")
    return Line(
        what,
        "missing",
        f"{name}, for {needs}: not in the hub cache",
        f"`hf download {name}`, or {option}",
    )


def t5() -> Line:
    """Any: none is the one that recipes name."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*t5*")
    names = sorted(f.name.removeprefix("models--").replace("--", "/") for f in folders)
    whole = [name for name in names if cached(name) is not None]
    if whole:
        return Line("T5", "ok", f"{', '.join(whole)} in the hub cache, for captions")
    remedy = f"as `hf download {T5}`, or --text-encoder FOLDER"
    return Line("T5", "missing", "for captions, one of any size: none in the hub cache", remedy)


def cached(name: str) -> Path | None:
    """The newest copy of a network in the hub's cache that has weights or a tokenizer in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    files = [f for f in folder.rglob("*") if f.is_file()]  # a link to what is not whole is none
    whole = any(f.suffix in SUFFIXES or f.name == "tokenizer.json" for f in files)
    return folder if whole else None
