"""sra2 doctor."""

import sys
from dataclasses import asdict

from sra2cli.cli import options as o
from sra2cli.cli.app import app, user_errors


@app.command()
def doctor(json: o.Json = False) -> None:
    """What this machine has, and where to put what is missing. Never touches the network."""
    with user_errors():
        from sra2cli.core import console
        from sra2cli.doctor.machine import machine, torch_lines
        from sra2cli.doctor.packages import optional, pinned

        of_torch, whole = torch_lines()
        lines = [*machine(), *of_torch, *optional(), pinned()]
        if whole:
            from sra2cli.doctor.weights import weights

            lines += weights()
        if json:
            console.print_json({"torch_works": whole, "lines": [asdict(line) for line in lines]})
        else:
            rows = [
                (line.state, line.name, line.said + (f" → {line.remedy}" if line.remedy else ""))
                for line in lines
            ]
            console.print_columns(rows)
        if not whole:
            sys.exit(1)
