"""SRA 2 against SiT on the digits: fd-digits at half and at the end, for several seeds.

    python benchmarks/digits.py                 # seeds 0, 1, 2; about seven minutes on two cores

Both runs of a seed share data order, noise and start. Prints a table and the ratios, and writes
benchmarks/results/digits.json.
"""

import argparse
import datetime
import json
from pathlib import Path

from sra2cli.core import console
from sra2cli.core.environment import environment
from sra2cli.demo.digits import demo

RESULTS = Path(__file__).parent / "results" / "digits.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-digits"))
    arguments = parser.parse_args()
    rows, cells = [], []
    for seed in arguments.seeds:
        result = demo(arguments.out / f"seed{seed}", seed=seed)
        found = {(row["run"], row["steps"]): row for row in result["rows"]}
        for steps in sorted({steps for _, steps in found}):
            sit, sra2 = found["digits-sit", steps], found["digits-sra2", steps]
            ratio = sra2["fd_digits"] / sit["fd_digits"]
            rows.append({"seed": seed, "steps": steps, "ratio": ratio, "sit": sit, "sra2": sra2})
            cells.append(
                (
                    str(seed),
                    f"{steps:,}",
                    f"{sit['fd_digits']:.2f}",
                    f"{sra2['fd_digits']:.2f}",
                    f"{ratio:.2f}",
                    f"{sit['accuracy']:.1%}",
                    f"{sra2['accuracy']:.1%}",
                )
            )
    header = ("seed", "steps", "SiT", "SiT + SRA 2", "ratio", "accuracy SiT", "accuracy SRA 2")
    console.print_table("fd-digits, lower is better", header, cells)
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"date": datetime.date.today().isoformat(), "environment": environment(), "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    console.say(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
