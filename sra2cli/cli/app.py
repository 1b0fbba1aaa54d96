"""What the commands share: the app, options, errors as one line, results on stdout."""

import atexit
import errno
import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sra2cli import __version__
from sra2cli.core.errors import SetupError, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from sra2cli.data.prompts import Prompts
    from sra2cli.data.sources import Choice

STOPPED = 130  # exit code: by Ctrl-C

app = typer.Typer(
    name="sra2",
    help="Train, sample and judge latent diffusion transformers with representation alignment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def start() -> None:
    """`sra2`, as it is typed. Ctrl-C ends it at once, also before its command has begun."""
    try:
        app()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        leave_at_once(STOPPED)
    except SystemExit as left:
        if isinstance(left.code, int) and left.code > 128:  # by a signal
            leave_at_once(left.code)
        raise


def leave_at_once(code: int) -> NoReturn:
    """Without taking the libraries down, which with torch takes half a second."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads on
            stream.flush()
    os._exit(code)


def fail(error: UserError) -> NoReturn:
    """One line on stderr, and the error's exit code."""
    from sra2cli.core import console, processes

    said = type(error)(" ".join(str(error).split()))
    if not processes.leave_error(said):
        console.error(str(said))
    if isinstance(error, processes.PeerLostError):  # nothing more waits for it, as a GPU would
        sys.stdout.flush()
        os._exit(error.exit_code)
    sys.exit(error.exit_code)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what a user can mend into one line; leave bugs their traceback."""
    from sra2cli.core import processes

    processes.say_lost_memory()
    threading.excepthook = _in_thread
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if interrupted(error):
            from sra2cli.core.console import say

            say("stopped: run the same command again to go on")
            sys.exit(STOPPED)
        said = told(error)
        if said is None:
            raise
        fail(said)


def _in_thread(failed: threading.ExceptHookArgs) -> None:
    """What ends a thread of a library ends the command too, which says it."""
    if failed.exc_value is None or told(failed.exc_value) is None:
        threading.__excepthook__(failed)


def interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what a library that was being imported made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def told(error: BaseException) -> UserError | None:
    """What a user can be told of an error; None for a bug."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return of_system(error)
    if isinstance(error, UnicodeEncodeError):  # a path as the system gave it
        name = ascii(error.object[max(0, error.start - 80) : error.end + 80])
        return SetupError(f"{name} is not UTF-8: rename it")
    if isinstance(error, MemoryError):
        return UserError("out of memory: try a smaller --batch or train.micro_batch")
    if isinstance(error, RuntimeError):
        from sra2cli.core import launcher, processes

        if type(error).__name__ == "OutOfMemoryError":
            return UserError("the GPU is out of memory: try a smaller --batch or train.micro_batch")
        return processes.peer_lost(error) if launcher.launched() else None
    return None


def of_system(error: OSError) -> UserError | None:
    """What the system refused: a file, a disk."""
    if error.errno is None or isinstance(error, BrokenPipeError):  # nobody reads on: no trouble
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("the disk is full: free some space and run the same command again")
    file = "a file" if error.filename is None else os.fsdecode(error.filename)
    gone = error.errno in (errno.ENOENT, errno.ESTALE)
    if gone and error.filename is not None:
        return UserError(f"{file} is gone: removed or renamed while it was used?")
    said = str(error.strerror)  # HDF5 says all it knows in it
    said = f"cannot use {file}: {said if len(said) < 100 else os.strerror(error.errno)}"
    if gone or error.errno in (errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE):
        return UserError(said)
    return SetupError(said)


def pick_device(wanted: str | None, *, apple: bool = False) -> str:
    """The device asked for, or cuda if there is one; refuses one that is not there.

    Args:
        apple: whether the command runs on Apple's GPU.
    """
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "mps":
        if not apple:
            raise SetupError("--device mps is for extract, train, sample and eval: leave it out")
        if not torch.backends.mps.is_available():
            raise SetupError("no Apple GPU here for --device mps")
        return wanted
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise SetupError(f"unknown device '{wanted}': cpu, cuda, cuda:N or mps")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SetupError(f"no CUDA device here for --device {wanted}")
    return wanted


def start_processes(processes: int | None, device: str | None, *, share_cores: bool = True) -> None:
    """Run this command on several processes, if that is asked for: does not return then."""
    from sra2cli.core import starting as room

    room.start(sys.argv[1:], processes=processes, device=device, share_cores=share_cores)


def one_of(option: str, value: str | None, options: tuple[str, ...]) -> None:
    """Refuse a value that is not among the options; None: not given."""
    if value is not None and value not in options:
        raise SetupError(f"{option} is one of {', '.join(options)}, not '{value}'")


def check_drawing(precision: str | None, solver: str | None) -> None:
    """SetupError for words that `sample` and `eval` do not know."""
    one_of("--precision", precision, ("fp32", "tf32", "bf16", "fp16"))
    one_of("--solver", solver, ("em", "euler", "heun", "edm"))


def prompts_of(
    texts: Sequence[str] | None, source: "Path | None", negative: str | None
) -> "Prompts | None":
    """What images are drawn of: --prompt, or --prompts; None: neither was given."""
    if texts and source is not None:
        raise SetupError("--prompt and --prompts: give one of them")
    if not texts and source is None:
        if negative is not None:
            raise SetupError("--negative-prompt goes with --prompt or --prompts")
        return None
    from sra2cli.data.prompts import of_texts, read_prompts

    if source is not None:
        return read_prompts(source, negative)
    return of_texts(texts or (), negative)


def chosen_source(
    image: str | None,
    label: str | None,
    split: str | None,
    classes_from: str | None,
    *,
    captions: str | None = None,
    skip_uncaptioned: bool = False,
) -> "Choice":
    """How a source is to be read."""
    from sra2cli.data.sources import Choice

    one_of("--classes-from", classes_from, ("folders", "dataset.json"))
    return Choice(
        image=image,
        label=label,
        split=split,
        classes_from=classes_from,
        captions=captions,
        uncaptioned="skip" if skip_uncaptioned else None,
    )


def refuse_given(ctx: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse the first of these options, by their parameters' names, that was given."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise SetupError(f"{parameter.opts[0]} {why}")


def parse_interval(text: str, option: str = "--interval") -> tuple[float, float]:
    """ "0:0.7" → (0.0, 0.7)."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise SetupError(f"{option} is a:b, as 0:0.7; not '{text}'") from None
    return low, high


def show(result: dict[str, Any], as_json: bool, title: str) -> None:
    """The result on stdout: JSON, or its plain values as a table."""
    from sra2cli.core import console

    if as_json:
        console.print_json(result)
        return
    rows = [
        (key, shown(value)) for key, value in result.items() if not isinstance(value, dict | None)
    ]
    console.print_table(title, ("", ""), rows)


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sra2 {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):  # whatever the locale, an arrow or umlaut can be said
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
