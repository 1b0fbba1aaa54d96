"""The `sra2` command: each file parses one command, imports its room, prints the result.

No room that imports torch is imported before a command runs, so that --help is instant.
"""

from sra2cli.cli import ablate, cost, demo, evaluate, extract, figures, recipes, sample, train
from sra2cli.cli.app import app

__all__ = [
    "ablate",
    "app",
    "cost",
    "demo",
    "evaluate",
    "extract",
    "figures",
    "recipes",
    "sample",
    "train",
]
