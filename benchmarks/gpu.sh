#!/usr/bin/env bash
# Training SiT-XL/2 on one CUDA machine; begins nothing after eight minutes. Run again, it goes on.
# With REPA=DIR or SRA=DIR (their checkouts, and timm): then our step and sampling beside their code.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}."
"$PYTHON" benchmarks/gpu.py --seconds 480 "$@"
PEERS=(${REPA:+--repa "$REPA"} ${SRA:+--sra "$SRA"})
if [ ${#PEERS[@]} -gt 0 ]; then
  "$PYTHON" benchmarks/peers.py "${PEERS[@]}" --seconds $((480 - SECONDS))
fi
