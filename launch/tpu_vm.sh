#!/usr/bin/env bash
# Starts a run on a Cloud TPU slice. It runs the same command by ssh on all workers of the slice.
#
#   TPU=NAME ZONE=ZONE launch/tpu_vm.sh [--dry-run] CONFIG [FLAGS...]
#   TPU=v5e-16 ZONE=us-west4-a launch/tpu_vm.sh configs/cifar100.py --workdir=/mnt/shared/run --config.cache_dir=/mnt/shared/cache
#
# Before the first run, create the slice (gcloud compute tpus tpu-vm create), mount a file system that all workers share
# (Filestore, or a bucket with Cloud Storage FUSE), and install the repository on all workers:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL cnn2gnn_jax && cd cnn2gnn_jax && make install'
# FOLDER is the folder of the repository on the workers (cnn2gnn_jax). After a maintenance event, run the same command
# again: it continues the run. Google Cloud recommends GKE for new work, see gke.sh.
# Tested on: no TPU, only with --dry-run.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

dry=
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
[[ $# -ge 1 && $1 != -* && -n ${TPU:-} && -n ${ZONE:-} ]] || usage
config=$1 && shift

there=$(printf '%q ' .venv/bin/python -m cnn2gnn_jax.main "--config=$config" --distributed "$@")
command=(gcloud compute tpus tpu-vm ssh "$TPU" "--zone=$ZONE" --worker=all
  "--command=cd $(printf '%q' "${FOLDER:-cnn2gnn_jax}") && $there")
if [[ -n $dry ]]; then
  printf '%q ' "${command[@]}" && echo
  exit
fi
exec "${command[@]}"
