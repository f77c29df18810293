#!/usr/bin/env bash
# One host with several GPUs, by torchrun. Its rendezvous listens on every interface and trusts who
# comes: where others reach this host, `largebatch train --run.nproc=8` does the same without.
#
#   launch/torchrun.sh [largebatch train's options, in place of TRAIN below]
#
# --- edit from here -------------------------------------------------------------------------------
NPROC=${NPROC:-gpu} # ranks on this host; gpu: one for every GPU
TRAIN=(
    --recipe=lars-resnet50-imagenet-8k
    --data.root=/data/imagenet
    --run.dir=/runs/resnet50-8k
)
# --- to here --------------------------------------------------------------------------------------
set -euo pipefail
if [ $# -gt 0 ]; then TRAIN=("$@"); fi
exec torchrun --standalone --nproc-per-node="$NPROC" -m largebatch train "${TRAIN[@]}"
