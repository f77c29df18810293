#!/usr/bin/env bash
# One or several hosts, by Open MPI's mpirun, started once on any of them. Gradients travel over
# NCCL or gloo; MPI starts the ranks and, with mpi4py installed, tells them where rank 0 listens
# (without it: mpirun -x MASTER_ADDR=host0). MPICH's and Intel's mpiexec do as well, with their own
# options (-f HOSTFILE, -genv MASTER_ADDR host0).
#
#   launch/mpirun.sh [largebatch train's options, in place of TRAIN below]
#
# --- edit from here -------------------------------------------------------------------------------
RANKS=${RANKS:-32}       # of all hosts together
HOSTFILE=${HOSTFILE:-}   # lines such as "host0 slots=8"; empty: this host alone
TRAIN=(
    --recipe=lars-resnet50-imagenet-8k
    --data.root=/data/imagenet
    --run.dir=/shared/runs/resnet50-8k # on a file system that all hosts see
)
# --- to here --------------------------------------------------------------------------------------
set -euo pipefail
if [ $# -gt 0 ]; then TRAIN=("$@"); fi
exec mpirun -n "$RANKS" ${HOSTFILE:+--hostfile "$HOSTFILE"} ${MPIRUN_OPTIONS:-} \
    python -m largebatch train "${TRAIN[@]}"
