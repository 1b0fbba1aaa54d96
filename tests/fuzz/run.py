"""The command: damage, run, judge, count."""

import argparse
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import child, seeds
from .child import Case, Judged
from .damage import Damage
from .kinds import KINDS

AT_ONCE = 2


def prepared(base: Path, folder: Path, kind: str, number: int, seed: int) -> Case:
    """The input that (seed, kind, number) is, in its folder."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
    row, into, out = KINDS[kind], folder / "in", folder / "out"
    into.mkdir(parents=True)
    out.mkdir()
    damage: Damage = apart(lambda: row.make(rng, base, into))
    template = row.commands[number % len(row.commands)]
    places = {"in": damage.read, "out": out, "base": base}
    command = [word.format_map(places) for word in template.split()]
    may_write = (out, damage.read) if "--out {in}" in template else (out,)
    must_fail = damage.must_fail and damage.by in ("", command[0])
    return Case(
        kind, number, damage.note, folder, may_write, command, must_fail,
        damage.same, damage.memory_may_end, (base,), seeds.programs(base),
    )  # fmt: skip


def fuzz(work: Path, base: Path, wanted: list[tuple[str, int]], seed: int) -> Iterator[Judged]:
    """All inputs that are wanted, judged, a few at once; folders without a fault are removed."""
    waiting, running = list(reversed(wanted)), []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            kind, number = waiting.pop()
            folder = work / f"{kind.replace(' ', '-')}-{number}"
            running.append(child.start(prepared(base, folder, kind, number, seed)))
        for one in list(running):
            judged = child.poll(one)
            if judged is not None:
                running.remove(one)
                yield judged
                if not judged.faults:
                    child.remove(judged.case.folder)
        time.sleep(0.005)


def warm() -> None:
    """Import what commands import, so that a child begins with it."""
    import importlib
    import pkgutil

    import diffusers
    import pyarrow.parquet  # noqa: F401
    import scipy.linalg  # noqa: F401
    import torch
    import torch._dynamo
    import torch.utils.data
    from PIL import Image

    import sra2cli

    _ = diffusers.AutoencoderKL
    Image.init()
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(sra2cli.__path__, "sra2cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def apart(make: Callable[[], Any]) -> Any:
    """What a function returns, called in a child: no thread that it starts is forked later."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, pickle.dumps(make()))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        made = stream.read()
    os.waitpid(pid, 0)
    if not made:
        sys.exit("an input could not be made")
    return pickle.loads(made)


def show(judged: list[Judged], seconds: float) -> None:
    """The counts by kind, and the faults by place."""
    print(
        f"{'kind':16}{'inputs':>8}{'exit 0':>8}{'1':>6}{'2':>6}{'faults':>8}{'s':>8}{'slowest':>9}"
    )
    for kind in (*KINDS, ""):
        rows = [j for j in judged if kind in ("", j.case.kind)]
        if rows:
            codes = Counter(j.code for j in rows)
            bad, took = sum(bool(j.faults) for j in rows), [j.seconds for j in rows]
            counts = f"{len(rows):8}{codes[0]:8}{codes[1]:6}{codes[2]:6}{bad:8}"
            print(f"{kind or 'all':16}{counts}{sum(took):8.1f}{max(took):9.1f}")
    print(f"{len(judged)} inputs in {seconds:.0f} s")
    places: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        for what, where in one.faults:
            key = (where, what[:70] if where != "outside of OUT" else what.split(":")[0])
            places.setdefault(key, []).append(one)
    for (where, what), ones in sorted(places.items()):
        print(f"\n{where}  {what}  ({len(ones)})")
        for one in ones[:6]:
            print(f"    --kind '{one.case.kind}' --number {one.case.number}: {one.case.note[:100]}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=3, help="inputs of every kind")
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    parser.add_argument("--number", type=int, help="this one alone; what it says is shown")
    parser.add_argument("--verbose", action="store_true", help="what each input led to")
    parser.add_argument("--keep", type=Path, help="an empty folder, where failing inputs stay")
    chosen = parser.parse_args(arguments)
    numbers = range(chosen.each) if chosen.number is None else [chosen.number]
    wanted = [(kind, number) for number in numbers for kind in chosen.kind or KINDS]
    begun = time.monotonic()
    warm()
    work = Path(chosen.keep or tempfile.mkdtemp(prefix="fuzz-")).absolute()
    try:
        (work / "seeds").mkdir(parents=True)
        apart(lambda: seeds.make(work / "seeds") or True)
        judged = []
        for one in fuzz(work, work / "seeds", wanted, chosen.seed):
            judged.append(one)
            if chosen.verbose:
                said = (one.stderr.strip().splitlines() or ["-"])[-1]
                print(
                    f"{one.case.kind} {one.case.number} ({one.case.note[:70]}): {one.code} {said}"
                )
            if chosen.number is not None:
                print(f"sra2 {' '.join(one.case.command)}\n{one.case.note}\n{one.stderr}")
                print(f"exit code {one.code}, {one.seconds:.1f} s, {one.growth >> 20} MiB")
        show(judged, time.monotonic() - begun)
    finally:
        if chosen.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    return int(any(one.faults for one in judged))
