#!/usr/bin/env bash
# Everything that wants a GPU, by one command, on a machine with an NVIDIA GPU and no network:
#
#     benchmarks/gpu.sh [--out FOLDER] [--half 1|2] [--minutes 10] [--only PART ...] [--rehearse]
#
# It builds the package in place for this GPU and runs, in ten minutes of an H200, what shows that the
# kernels are right (half 1: the tests marked `gpu`, compute-sanitizer) and then how fast they are (half
# 2: the benchmarks). A half takes five minutes; each builds what is not built yet. What was skipped, and
# why, is printed at the end. FOLDER/gpu.json and FOLDER/gpu.md have it all. gpu_suite.py lists the parts.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu_suite.py "$@"
