"""What the commands share: the app, options, errors as one line, results on stdout."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from sra2cli import __version__
from sra2cli.core.errors import SetupError, UserError

app = typer.Typer(
    name="sra2",
    help="Train, sample and judge latent diffusion transformers with representation alignment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    try:
        yield
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        from sra2cli.core.console import say

        say("stopped: run the same command again to go on")
        sys.exit(130)
    except MemoryError:
        fail(UserError("out of memory: try a smaller --batch or train.micro_batch"))
    except RuntimeError as error:
        from sra2cli.core import launcher, processes

        if type(error).__name__ == "OutOfMemoryError":
            fail(UserError("the GPU is out of memory: try a smaller --batch or train.micro_batch"))
        gone = processes.peer_lost(error) if launcher.launched() else None
        if gone is not None:
            fail(gone)
        raise
    except OSError as error:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(UserError("the disk is full: free some space and run the same command again"))
        if error.filename and error.errno in (
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
        ):
            fail(SetupError(f"cannot use {error.filename}: {error.strerror}"))
        raise


def pick_device(wanted: str | None) -> str:
    """The device asked for, or cuda if there is one; refuses one that is not there."""
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise SetupError(f"unknown device '{wanted}': cpu, cuda or cuda:N")
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


def refuse_given(ctx: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse the first of these options, by their parameters' names, that was given."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise SetupError(f"{parameter.opts[0]} {why}")


def parse_interval(text: str) -> tuple[float, float]:
    """ "0:0.7" → (0.0, 0.7)."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise SetupError(f"--interval is a:b, as 0:0.7; not '{text}'") from None
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
    pass
