"""The `sra2` command: each file parses one command, imports its room, prints the result.

No room that imports torch is imported before a command runs, so that --help is instant.
"""

import sys

try:
    from sra2cli.cli import (
        ablate,
        cost,
        demo,
        doctor,
        evaluate,
        export,
        extract,
        figures,
        recipes,
        report,
        runs,
        sample,
        suggest,
        train,
        vae,
    )
    from sra2cli.cli.app import app, start
except KeyboardInterrupt:  # as in `start`, which is not there yet
    print("stopped", file=sys.stderr)
    sys.exit(130)

__all__ = [
    "ablate",
    "app",
    "cost",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "extract",
    "figures",
    "recipes",
    "report",
    "runs",
    "sample",
    "start",
    "suggest",
    "train",
    "vae",
]
