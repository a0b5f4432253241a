#!/usr/bin/env bash
# Starts a run on Google Kubernetes Engine, on TPU slices or GPUs of a cluster. It uses xpk (pip install xpk).
#
#   CLUSTER=NAME TPU_TYPE=v5litepod-16 IMAGE=IMAGE launch/gke.sh [--dry-run] CONFIG [FLAGS...]
#
# Before the first run, create the cluster (xpk cluster create --cluster=NAME --tpu-type=...), attach a file system that all
# nodes share (xpk storage attach), and build an image with the repository and its requirements in /cnn2gnn_jax.
#
# Optional variables:
#   DEVICE_TYPE    use GPUs, for example h100-8; set it instead of TPU_TYPE
#   STORAGE        the name of the attached file system
#   NAME           the name of the workload (cnn2gnn)
#   PROJECT, ZONE  those of Google Cloud; the default is gcloud's own setting
#   RESTARTS       how often a workload is restarted if it is preempted or loses a node (100); it continues where it was
#
# Tested on: no cluster, only with --dry-run.
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
