#!/usr/bin/env bash
# Training SiT-XL/2 on one CUDA machine, under nine minutes; run again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
PYTHONPATH=. exec "$PYTHON" benchmarks/gpu.py "$@"
