"""`python -m sra2cli` is `sra2`."""

from sra2cli.cli import start

start()
