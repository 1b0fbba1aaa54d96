"""Damaged recipes and records of runs and samples, and .npz files."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from . import seeds
from .damage import Damage
from .mutate import BYTES, Rng, as_json, damaged, odd_json, odd_tree, pick

# --- recipes

LINES = (
    "name: 2024-01-01", "name: 2024-01-01T00:00:00Z", "seed: " + "9" * 5000,
    "seed: 0x" + "f" * 5000, "train: {steps: 1_0}", "train: {lr: .nan}", "train: {lr: .inf}",
    "train: {lr: 1e-400}", "train: {betas: [0.9]}", "train: {betas: {a: 1}}",
    "train: {batch: 1000000000000}",
    "model: {size: custom, depth: 1, width: 1000000000, heads: 1, patch: 4}",
    "model: {size: custom, depth: 100000000, width: 16, heads: 2, patch: 4}", "model: [1, 2]",
    "model: text", "align: [sra2]", "align: {sra2: [1]}", "align: {sra2: 2024-01-01}",
    "align: {nothing: {}}", "align: {1: {}}", "1: 2", "null: 1", "[1, 2]: 3", "? {a: b}\n: 3",
    "true: false", "2024-01-01: 3", ".nan: 1",
    "name: !!python/object/apply:os.system ['touch x']", "name: !!binary aGVsbG8=",
    "name: !!set {a, b}", "name: !!timestamp 2024-13-45", "name: &a [*a]", "name: *nothing",
    "<<: {seed: 3}", "<<: 3", "seed: 1\nseed: 2", "base: tiny", "base: [a]",
    "base: ../../../etc/passwd", "base: /dev/zero", "name: \"\\ud800\"", "name: 'a\0b'",
    "\tname: x", "name: ../../evil", "log: {every: 0}", "log: {wandb: [1]}",
    "log: {eval_ref: 7, eval_every: 1}", "log: {eval_metrics: '', eval_every: 1}",
    "path: {kind: vp}", "data: {vae: 12345678}", "--- {}\n--- {}", "data: {classes: -1}",
    "seed: 1e3", "seed: -0", "seed: 1:30:00", "train: {precision: off}",
)  # fmt: skip


def _bomb() -> str:
    """A page that stands for 10^9 words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 9):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "\n".join([*lines, "name: *a8"])


def recipe(rng: Rng, base: Path, into: Path) -> Damage:
    """A recipe: odd values, odd lines, odd texts, damaged bytes."""
    file, text = into / "odd.yaml", (base / "tiny.yaml").read_text()
    how = pick(rng, ("tree", "tree", "line", "line", "text", "bytes"))
    if how == "tree":
        tree, note = odd_tree(rng, yaml.safe_load(text))
        data = as_json(tree).encode()  # YAML too
    elif how == "line":
        line = pick(rng, LINES)
        key = line.split(":")[0]
        kept = [part for part in text.splitlines() if not part.startswith(f"{key}:")]
        data, note = "\n".join([*kept, line]).encode("utf-8", "surrogatepass"), line[:60]
    elif how == "text":
        note, data = pick(
            rng,
            (
                ("an alias bomb", (text + _bomb()).encode()),
                ("deep nesting", (text + "name: " + "[" * 5000 + "]" * 5000).encode()),
                ("deep maps", (text + "name: " + "{a: " * 3000 + "}" * 3000).encode()),
                ("utf-16", text.encode("utf-16")),
                ("latin-1", ("name: é\n" + text).encode("latin-1")),
                ("a long line", (text + "name: " + "x" * 1_000_000).encode()),
                ("umlauts", ("name: größe\n" + text).encode()),
                ("nothing", b""),
                ("a number", b"3"),
                ("many keys", (text + "\n".join(f"k{i}: 1" for i in range(10_000))).encode()),
                ("windows", text.replace("\n", "\r\n").encode()),
            ),
        )
    else:
        data, note = damaged(rng, text.encode())
    file.write_bytes(data)
    return Damage(file, note, note in ("an alias bomb", "nothing", "seed: 1\nseed: 2"),
                  memory_may_end=True)  # fmt: skip


# --- a run


def run_json(rng: Rng, base: Path, into: Path) -> Damage:
    run = seeds.copy(base, "run", into / "run")
    data, note = odd_json(rng, (run / "run.json").read_bytes())
    (run / "run.json").write_bytes(data)
    return Damage(run, note)


def run_recipe(rng: Rng, base: Path, into: Path) -> Damage:
    """The recipe that a run keeps."""
    run = seeds.copy(base, "run", into / "run")
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    if rng.random() < 0.7:
        tree, note = odd_tree(rng, tree)
        data = as_json(tree).encode()
    else:
        data, note = damaged(rng, (run / "recipe.yaml").read_bytes())
    (run / "recipe.yaml").write_bytes(data)
    return Damage(run, note)


def evals(rng: Rng, base: Path, into: Path) -> Damage:
    """The results of an evaluation, which the next one takes up."""
    folder = seeds.copy(base, "evals", into / "evals")
    file = pick(rng, sorted(folder.rglob("*.json")))
    data, note = odd_json(rng, file.read_bytes())
    file.write_bytes(data)
    return Damage(folder, f"{file.name.split('-')[0]}: {note}")


ROWS = (
    "", "null", "3", "[]", "{", '{"step": 1', "\0" * 64, '"x"', "{}", '{"event": 3}',
    '{"event": "eval"}', '{"step": "1"}',
)  # fmt: skip


def metrics(rng: Rng, base: Path, into: Path) -> Damage:
    """Rows of metrics.jsonl: one of them odd, or the file."""
    run = seeds.copy(base, "run", into / "run")
    file = run / "metrics.jsonl"
    rows = file.read_text().splitlines()
    at = int(rng.integers(len(rows)))
    if rng.random() < 0.7:
        odd, note = odd_tree(rng, json.loads(rows[at]))
        rows[at] = as_json(odd, indent=None)
        data, note = ("\n".join(rows) + "\n").encode(), f"row {at}: {note}"
    elif rng.random() < 0.5:
        rows.insert(at, pick(rng, ROWS))
        data, note = ("\n".join(rows) + "\n").encode(), f"row {at} is {rows[at][:20]!r}"
    else:
        data, note = damaged(rng, file.read_bytes())
    file.write_bytes(data)
    return Damage(run, note)


def samples_json(rng: Rng, base: Path, into: Path) -> Damage:
    folder = seeds.copy(base, "samples", into / "samples")
    data, note = odd_json(rng, (folder / "samples.json").read_bytes())
    if rng.random() < 0.15:
        tree = json.loads((folder / "samples.json").read_text())
        tree["num"] = pick(rng, (10**12, 10**7, -1, 0, 2**63, 4.0, "4", True, None, [4]))
        data, note = json.dumps(tree).encode(), f"num = {tree['num']!r}"
    (folder / "samples.json").write_bytes(data)
    return Damage(folder, note)


# --- .npz


def _saved(arrays: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, array in arrays.items():
            inner = io.BytesIO()
            if isinstance(array, bytes):
                inner.write(array)
            else:
                np.lib.format.write_array(inner, np.asanyarray(array), allow_pickle=True)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", (2024, 1, 1, 0, 0, 0)), inner.getvalue())
    return out.getvalue()


def _odd_array(rng: Rng, array: np.ndarray) -> tuple[Any, str, bool]:
    """(array, note, whether it must be refused)."""
    shape = str(tuple(10**9 if i == 0 else n for i, n in enumerate(array.shape or (1,))))
    header = b"{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
    header %= array.dtype.str.encode(), shape.encode()
    long = (
        b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64)
    )
    options: list[tuple[str, Any, bool]] = [
        ("says a huge shape", long, True),
        ("is objects", array.astype(object), False),
        ("is text", np.array("text"), False),
        ("is a number", np.array(3), False),
        ("is empty", array[:0] if array.ndim else np.zeros(0), False),
        ("has one dimension more", array[None], False),
        ("is flat", array.reshape(-1), False),
        ("is half", array[: len(array) // 2] if array.ndim else array, False),
        ("is complex", array.astype(np.complex64) if array.dtype.kind in "fui" else array, False),
        ("is a record", np.zeros(2, dtype=[("a", "f4")]), False),
        ("is bytes", b"not an array", False),
        ("is version 9", b"\x93NUMPY\x09\x00" + bytes(64), False),
    ]
    if array.dtype.kind == "f":
        bad = array.copy()
        bad.flat[0] = pick(rng, (np.nan, np.inf))
        options += [
            ("is not finite", bad, True),
            ("is huge", array * 1e300, False),
            ("is float16", array.astype(np.float16), False),
        ]
        if array.ndim == 2:
            swapped = array - 10 * np.eye(len(array))
            options.append(("is not positive", swapped, True))
            mixed = np.eye(len(array))
            mixed[0, 1] = mixed[1, 0] = 5.0
            options += [("is indefinite", mixed, True)] * 2
            options.append(("is not symmetric", array + np.triu(np.ones_like(array), 1), True))
    name, made, must = pick(rng, options)
    return made, name, must


def _odd_npz(rng: Rng, data: bytes, read: tuple[str, ...]) -> tuple[bytes, str, bool]:
    """An .npz, damaged; must fail where an array that is read is."""
    if rng.random() < 0.3:
        return *damaged(rng, data), False
    with np.load(io.BytesIO(data)) as file:
        arrays: dict[str, Any] = dict(file)
    key = pick(rng, arrays)
    how = pick(rng, ("odd", "odd", "odd", "odd", "gone", "meta", "twice", "name"))
    if how == "gone":
        del arrays[key]
        return _saved(arrays), f"no {key}", False
    if how == "name":
        odd = pick(rng, ("../evil", "", "a/b", "x" * 5000, "arr_1"))
        arrays[odd] = arrays[key]
        return _saved(arrays), f"also {odd[:9]!r}", False
    if how == "twice":
        return _saved(arrays | {f"{key[:-1]}~": arrays[key]}).replace(
            f"{key[:-1]}~.npy".encode(), f"{key}.npy".encode()
        ), f"{key} twice", True  # fmt: skip
    if how == "meta" and "meta" in arrays:
        tree, note = odd_json(rng, str(arrays["meta"]).encode())
        arrays["meta"] = np.array(tree.decode("utf-8", "replace"))
        return _saved(arrays), f"meta: {note}", False
    arrays[key], note, must = _odd_array(rng, arrays[key])
    return _saved(arrays), f"{key} {note}", must and key in read


def _same(base: Path, note: str) -> dict[str, object] | None:
    """What eval must find where bytes alone were damaged: a zip has checksums."""
    if note not in {how.__name__.strip("_") for how in BYTES}:
        return None
    return {"fd-digits": json.loads((base / "clean.json").read_text())["fd-digits"]}


def npz_reference(rng: Rng, base: Path, into: Path) -> Damage:
    """Statistics that samples are compared with."""
    file = into / "ref.npz"
    data, note, must = _odd_npz(rng, (base / "ref.npz").read_bytes(), ("mu", "sigma"))
    file.write_bytes(data)
    return Damage(file, note, must, same=_same(base, note))


def npz_samples(rng: Rng, base: Path, into: Path) -> Damage:
    """Images in an .npz, with or without their record."""
    folder = seeds.copy(base, "samples", into / "samples")
    file = folder / "samples.npz"
    if rng.random() < 0.7:
        (folder / "samples.json").unlink()
    data, note, must = _odd_npz(rng, file.read_bytes(), ("arr_0",))
    file.write_bytes(data)
    return Damage(file, note, must, same=_same(base, note))


def run_folder(rng: Rng, base: Path, into: Path) -> Damage:
    """A run in which a file is a folder, or gone, or a link."""
    run = seeds.copy(base, "run", into / "run")
    files = sorted(p for p in run.rglob("*") if p.is_file())
    file = pick(rng, files)
    file.unlink()
    how = pick(rng, ("gone", "a folder", "a dangling link", "empty", "a link to itself"))
    if how == "a folder":
        file.mkdir()
    elif how == "a dangling link":
        file.symlink_to("nowhere")
    elif how == "a link to itself":
        file.symlink_to(file.name)
    elif how == "empty":
        file.touch()
    if rng.random() < 0.2:
        old = run / "checkpoints" / "step-00000001"
        shutil.copytree(old, old.with_name("step-99999999"), symlinks=True)
    return Damage(run, f"{file.relative_to(run)} is {how}")
