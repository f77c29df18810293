#!/usr/bin/env bash
# Everything that wants a GPU, by one command, on a machine with one NVIDIA GPU and no network:
#
#     benchmarks/gpu.sh [--out FOLDER] [--minutes 10] [--only PART ...] [--rehearse]
#
# It builds the package in place for this GPU, runs the tests marked `gpu` and every GPU benchmark,
# and writes FOLDER/gpu.json and FOLDER/gpu.md. gpu_suite.py lists the parts.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu_suite.py "$@"
