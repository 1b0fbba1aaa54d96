#!/usr/bin/env bash
# Training SiT-XL/2 on one CUDA machine; begins nothing after eight minutes. Run again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
PYTHONPATH=. exec "$PYTHON" benchmarks/gpu.py "$@"
