#!/usr/bin/env bash
# Several hosts, by torchrun with c10d rendezvous: start this same command on every host.
#
#   launch/torchrun_hosts.sh [largebatch train's options, in place of TRAIN below]
#
# --- edit from here -------------------------------------------------------------------------------
HOSTS=${HOSTS:-4}                   # number of hosts, all of which have to come
NPROC=${NPROC:-gpu}                 # ranks on each; gpu: one for every GPU
ENDPOINT=${ENDPOINT:-host0:29500}   # a host of the run, by the name the others reach, and a free port
RUN=${RUN:-resnet50-8k}             # the same on all hosts, another for every run
TRAIN=(
    --recipe=lars-resnet50-imagenet-8k
    --data.root=/data/imagenet
    --run.dir=/shared/runs/resnet50-8k # on a file system that all hosts see
)
# --- to here --------------------------------------------------------------------------------------
set -euo pipefail
if [ $# -gt 0 ]; then TRAIN=("$@"); fi
exec torchrun --nnodes="$HOSTS" --nproc-per-node="$NPROC" --rdzv-id="$RUN" \
    --rdzv-backend=c10d --rdzv-endpoint="$ENDPOINT" -m largebatch train "${TRAIN[@]}"
