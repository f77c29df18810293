#!/usr/bin/env bash
# Hosts that come and go, by torchrun: the run goes on from its last checkpoint with those that are
# left, at the same global batch, and takes in new ones. Start this same command on every host.
#
#   launch/torchrun_elastic.sh [largebatch train's options, in place of TRAIN below]
#
# --- edit from here -------------------------------------------------------------------------------
LEAST=${LEAST:-2}                   # the run waits for this many hosts
MOST=${MOST:-8}                     # and takes up to this many
NPROC=${NPROC:-gpu}                 # ranks on each; gpu: one for every GPU
ENDPOINT=${ENDPOINT:-host0:29500}   # a host that stays: it keeps the rendezvous
RUN=${RUN:-resnet50-8k}             # the same on all hosts, another for every run
RESTARTS=${RESTARTS:-100}           # times that ranks are started again
LAST_CALL=${LAST_CALL:-30}          # seconds that later hosts are waited for once LEAST have come
TRAIN=(
    --recipe=lars-resnet50-imagenet-8k
    --data.root=/data/imagenet
    --run.dir=/shared/runs/resnet50-8k # on a file system that all hosts see
    --checkpoint.every=500st           # what is lost with a host
    --distributed.timeout=300          # seconds until a silent rank is given up
)
# --- to here --------------------------------------------------------------------------------------
set -euo pipefail
if [ $# -gt 0 ]; then TRAIN=("$@"); fi
# Ranks meet at rank 0's address anew after every start: torchrun otherwise keeps to the first one's,
# which may be the host that was lost.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes="$LEAST:$MOST" --nproc-per-node="$NPROC" --max-restarts="$RESTARTS" \
    --rdzv-id="$RUN" --rdzv-backend=c10d --rdzv-endpoint="$ENDPOINT" \
    --rdzv-conf="last_call_timeout=$LAST_CALL" \
    -m largebatch train "${TRAIN[@]}"
