#!/usr/bin/env bash
# One or several hosts, by DeepSpeed's launcher (pip install 'largebatch[deepspeed]'), started once.
# DeepSpeed's engine works under every other launcher too, and its launcher with every engine.
#
#   launch/deepspeed.sh [largebatch train's options, in place of TRAIN below]
#
# --- edit from here -------------------------------------------------------------------------------
NPROC=${NPROC:-8}       # ranks on each host
HOSTFILE=${HOSTFILE:-}  # lines such as "host0 slots=8", hosts reached by ssh; empty: this host alone
TRAIN=(
    --recipe=lars-resnet50-imagenet-8k
    --data.root=/data/imagenet
    --run.dir=/shared/runs/resnet50-8k # on a file system that all hosts see
    --distributed.engine=deepspeed
    --distributed.zero_stage=1         # or --distributed.deepspeed_config=ds_config.json
)
# --- to here --------------------------------------------------------------------------------------
set -euo pipefail
if [ $# -gt 0 ]; then TRAIN=("$@"); fi
exec deepspeed ${HOSTFILE:+--hostfile "$HOSTFILE"} --num_gpus="$NPROC" --no_local_rank \
    --module largebatch train "${TRAIN[@]}"
