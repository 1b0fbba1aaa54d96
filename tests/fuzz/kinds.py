"""The table of kinds: what is damaged, and the commands that read it."""

from . import archives, captions, networks, pictures, records, tables, tars
from .damage import DRAW, EVAL, EXTRACT, SWEEP, Kind

CHECK = "extract --check {in} --json"
TRAIN = "train --recipe {base}/tiny.yaml --json"
DIMENSIONS = "--num-heads 2"
ON = "--set train.steps=3 --json"  # a step more than the run has

KINDS: dict[str, Kind] = {
    "image": Kind(pictures.image, (EXTRACT, EVAL)),
    "folder": Kind(pictures.folder, (EXTRACT, EVAL)),
    "dataset.json": Kind(pictures.dataset_json),
    "latents": Kind(pictures.latents, (EXTRACT,)),
    "zip": Kind(archives.zip_file, (EXTRACT, EXTRACT, EVAL)),
    "tar": Kind(tars.tar_file, (EXTRACT, EXTRACT, EVAL)),
    "webdataset": Kind(tars.webdataset, (EXTRACT, EXTRACT, EVAL)),
    "parquet": Kind(tables.parquet, (EXTRACT, EXTRACT, EVAL)),
    "hdf5": Kind(tables.hdf5, (EXTRACT, EXTRACT, EVAL)),
    "store": Kind(tables.store, (CHECK, f"{TRAIN} --data {{in}} --out {{out}}/run")),
    "captions": Kind(captions.caption_file, (f"{EXTRACT} --text-encoder words",)),
    "captioned": Kind(captions.caption_store, (CHECK,)),
    "partial": Kind(
        tables.partial,
        (
            "extract {base}/images --out {in}/store.h5 --vae digits --resolution 32 --workers 0 "
            "--offline --json",
        ),
    ),
    "foreign": Kind(networks.foreign, (f"sample {{in}} {DRAW} {DIMENSIONS}",)),
    "safetensors": Kind(networks.safetensors, (f"sample {{in}} {DRAW} {DIMENSIONS}",)),
    "checkpoint": Kind(
        networks.checkpoint,
        (f"sample {{in}} {DRAW}", f"{TRAIN} --data {{base}}/store.h5 --out {{in}} {ON}"),
    ),
    "run.json": Kind(
        records.run_json,
        (f"sample {{in}} {DRAW}", f"{TRAIN} --data {{base}}/store.h5 --out {{in}} {ON}"),
    ),
    "run recipe": Kind(
        records.run_recipe,
        (f"sample {{in}} {DRAW}", f"{TRAIN} --data {{base}}/store.h5 --out {{in}} {ON}"),
    ),
    "run folder": Kind(
        records.run_folder,
        (f"sample {{in}} {DRAW}", f"{TRAIN} --data {{base}}/store.h5 --out {{in}} {ON}"),
    ),
    "metrics.jsonl": Kind(
        records.metrics, (f"{TRAIN} --data {{base}}/store.h5 --out {{in}} {ON}",)
    ),
    "evals": Kind(records.evals, (SWEEP.replace("{out}", "{in}"),)),
    "samples.json": Kind(
        records.samples_json,
        (EVAL, "sample {base}/run --num 5 --steps 2 --solver euler --out {in} --json"),
    ),
    "recipe": Kind(
        records.recipe,
        (
            "train --recipe {in} --data {base}/store.h5 --out {out}/run --set train.steps=1 "
            "--set model.size=custom --json",  # a size of the table would take its time
        ),
    ),
    "npz reference": Kind(
        records.npz_reference,
        ("eval {base}/samples --metrics fd-digits --ref {in} --out {out}/eval.json --json",),
    ),
    "npz samples": Kind(records.npz_samples, (EVAL,)),
    "vae": Kind(
        networks.vae,
        (
            EXTRACT.replace("{in}", "{base}/images").replace("digits", "{in}"),
            "sample {base}/ours.safetensors --num 2 --steps 2 --num-heads 2 --solver euler "
            "--vae {in} --offline --out {out}/samples --json",
        ),
    ),
    "encoder": Kind(
        networks.encoder, (EXTRACT.replace("{in}", "{base}/images") + " --encoder {in}",)
    ),
}
