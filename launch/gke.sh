#!/usr/bin/env bash
# Google Kubernetes Engine: TPU slices or GPUs of a cluster, by xpk (pip install xpk).
#
#   CLUSTER=NAME TPU_TYPE=v5litepod-16 IMAGE=IMAGE launch/gke.sh [--dry-run] CONFIG [FLAGS...]
#
# Once before: xpk cluster create --cluster=NAME --tpu-type=..., with a file system that all nodes share (xpk storage
# attach; STORAGE names it below), and an image that holds the repository and its requirements at /cnn2gnn_jax.
# PROJECT and ZONE are gcloud's own unless set; DEVICE_TYPE=h100-8 instead of TPU_TYPE takes GPUs. NAME is the workload's.
# A workload that is preempted or loses a node is started again up to RESTARTS (100) times, and goes on.
# Tested on: nothing but --dry-run.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

dry=
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
[[ $# -ge 1 && $1 != -* && -n ${CLUSTER:-} && -n ${IMAGE:-} && -n ${TPU_TYPE:-}${DEVICE_TYPE:-} ]] || usage
config=$1 && shift

there=$(printf '%q ' python -m cnn2gnn_jax.main "--config=$config" --distributed "$@")
command=(xpk workload create "--cluster=$CLUSTER" "--workload=${NAME:-cnn2gnn}" "--docker-image=$IMAGE"
  "--max-restarts=${RESTARTS:-100}" "--command=cd /cnn2gnn_jax && $there")
[[ -n ${TPU_TYPE:-} ]] && command+=("--tpu-type=$TPU_TYPE") || command+=("--device-type=$DEVICE_TYPE")
[[ -n ${PROJECT:-} ]] && command+=("--project=$PROJECT")
[[ -n ${ZONE:-} ]] && command+=("--zone=$ZONE")
[[ -n ${STORAGE:-} ]] && command+=("--storage=$STORAGE")
if [[ -n $dry ]]; then
  printf '%q ' "${command[@]}" && echo
  exit
fi
exec "${command[@]}"
