"""One damaged input: a command on it in a forked child, within bounds, and what is wrong then."""

import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sra2cli.core.processes import die_with_parent

SECONDS, GROWTH = 30.0, 2 << 30  # of a child at most; bytes beyond what it began with
RESERVED = 1 << 30  # address space that thread stacks and allocators take without using it
LINES, LENGTH = 12, 2000  # of what a refusal says at most
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Case:
    """A damaged input in its folder, and the command that reads it.

    folder: everything of it; the command runs in folder/cwd. out: what it may write.
    must_fail: the damage matters, so that exit code 0 would be wrong.
    same: what stdout must hold (parsed) where the command succeeds; None: anything finite.
    shared: folders that it reads beside its own, and that must stay as they are.
    """

    kind: str
    number: int
    note: str
    folder: Path
    out: tuple[Path, ...]
    command: Sequence[str]
    must_fail: bool = False
    same: object = None
    memory_may_end: bool = False
    shared: tuple[Path, ...] = ()
    path: str = ""  # of programs: a decoy is found there


@dataclass
class Judged:
    """How it ended. code: the exit code, negative for a signal. faults: (what, where it lies)."""

    case: Case
    code: int
    seconds: float
    growth: int
    stderr: str
    faults: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Running:
    """A child at work."""

    case: Case
    pid: int
    before: dict[str, tuple[object, ...]]
    begun: float
    rss: int
    stopped: str = ""


def start(case: Case) -> Running:
    """Fork a child that carries out the command of a case."""
    for name in ("cwd", "home", "log", "tmp"):
        (case.folder / name).mkdir(exist_ok=True)
    before = snapshot(case)
    rss, size = _memory(os.getpid())
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _carry_out(case, size)
    return Running(case, pid, before, time.monotonic(), rss)


def _carry_out(case: Case, size: int) -> None:
    """In the child: bounds, streams, the command; does not return."""
    code = 70
    try:
        die_with_parent()
        os.setpgid(0, 0)
        os.chdir(case.folder / "cwd")
        os.environ |= {"TMPDIR": str(case.folder / "tmp"), "HOME": str(case.folder / "home")}
        os.environ["PATH"] = case.path or os.environ["PATH"]
        os.environ["RAN"] = str(case.folder / "a-program-was-started")
        tempfile.tempdir = None
        for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(case.folder / "log" / name, flags, 0o600), number)
        limit = size + GROWTH + RESERVED
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["sra2", *case.command]
        from sra2cli.cli import app

        app(list(case.command))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def poll(running: Running) -> Judged | None:
    """How a child ended, or None; one that takes too much is ended."""
    pid, status, usage = os.wait4(running.pid, os.WNOHANG)
    seconds = time.monotonic() - running.begun
    if pid == 0:
        rss, _ = _memory(running.pid)
        if seconds > SECONDS:
            running.stopped = f"more than {SECONDS:g} s"
        elif rss - running.rss > GROWTH:
            running.stopped = "more than 2 GiB"
        if running.stopped:
            os.killpg(running.pid, signal.SIGKILL)
            _, status, usage = os.wait4(running.pid, 0)
        else:
            return None
    code = os.waitstatus_to_exitcode(status)
    growth = max(0, usage.ru_maxrss * 1024 - running.rss)
    stderr = _text(running.case.folder / "log" / "stderr")
    judged = Judged(running.case, code, seconds, growth, stderr)
    judged.faults = [*_faults(judged, running)]
    return judged


def _faults(judged: Judged, running: Running) -> Iterable[tuple[str, str]]:
    """(what is wrong, where): the rules."""
    case, code, said = judged.case, judged.code, judged.stderr
    if running.stopped:
        yield running.stopped, _place(said) or " ".join(case.command[:2])
    elif code < 0:
        yield f"ended by {signal.Signals(-code).name}", _place(said)
    elif "Traceback" in said:
        yield _last_line(said), _place(said)
    elif code not in (0, 1, 2):
        yield f"exit code {code}", _last_line(said)
    elif code:
        yield from _refusal_faults(case, said)
    else:
        yield from _result_faults(case)
    if judged.growth > GROWTH and not running.stopped:
        yield "more than 2 GiB", _place(said)
    for path, how in changes(running.before, snapshot(case)):
        yield f"{how}: {path}", "outside of OUT"


def _refusal_faults(case: Case, said: str) -> Iterable[tuple[str, str]]:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or lines[-1] != errors[0]:
        yield "not refused by one line", _last_line(said)
    elif len(errors[0]) > LENGTH or len(lines) > LINES:
        yield f"a refusal of {len(lines)} lines, {len(errors[0])} characters", errors[0][:80]
    elif "memory" in errors[0] and not case.memory_may_end:
        yield "only memory refused it", errors[0][:120]


def _result_faults(case: Case) -> Iterable[tuple[str, str]]:
    if case.must_fail:
        yield f"taken: {case.note}", f"{case.kind}: {case.command[0]}"
        return

    def refuse(name: str) -> None:
        raise ValueError(f"the result holds {name}")

    try:
        result = json.loads(_text(case.folder / "log" / "stdout"), parse_constant=refuse)
    except ValueError as error:
        yield str(error).split(":")[0], f"{case.kind}: {case.command[0]}"
        return
    if case.same is not None:
        found = {key: result.get(key) for key in case.same}  # type: ignore[attr-defined]
        if found != case.same:
            yield f"another result: {case.note}", f"{case.kind}: {case.command[0]}"


def snapshot(case: Case) -> dict[str, tuple[object, ...]]:
    """What lies where nothing may be written: path → what identifies it."""
    kept = {case.folder / "log", *case.out}
    found: dict[str, tuple[object, ...]] = {}
    for root in (case.folder, *case.shared):
        for folder, folders, files in os.walk(root):
            folders[:] = [n for n in folders if Path(folder, n) not in kept]
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                if Path(path) in kept:
                    continue
                about = os.lstat(path)
                plain = stat.S_ISREG(about.st_mode)
                more = (about.st_size, about.st_mtime_ns) if plain else ()
                found[os.path.relpath(path, root)] = (about.st_mode, *more)
    return found


def changes(
    before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]
) -> list[tuple[str, str]]:
    """What was made, removed or changed."""
    found = [(path, "made") for path in after.keys() - before.keys()]
    found += [(path, "removed") for path in before.keys() - after.keys()]
    found += [(p, "changed") for p in before.keys() & after.keys() if before[p] != after[p]]
    return sorted(found)[:3]


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _memory(pid: int) -> tuple[int, int]:
    """Resident and virtual bytes of a process."""
    try:
        size, rss = Path(f"/proc/{pid}/statm").read_text().split()[:2]
    except OSError:
        return 0, 0
    return int(rss) * PAGE, int(size) * PAGE


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _last_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return re.sub(r"/\S*/", "", lines[-1])[:160] if lines else "nothing said"


def _place(said: str) -> str:
    """file:line of the innermost frame of the package."""
    frames = re.findall(r'File "[^"]*?(sra2cli/[^"]+)", line (\d+)', said)
    if not frames:
        return ""
    file, line = frames[0] if "most recent call first" in said else frames[-1]
    return f"{file}:{line}"
