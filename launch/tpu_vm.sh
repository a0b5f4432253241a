#!/usr/bin/env bash
# A Cloud TPU slice whose VMs are reached by ssh: the same command on all of its workers.
#
#   TPU=NAME ZONE=ZONE launch/tpu_vm.sh [--dry-run] CONFIG [FLAGS...]
#   TPU=v5e-16 ZONE=us-west4-a launch/tpu_vm.sh configs/cifar100.py --workdir=/mnt/shared/run --config.cache_dir=/mnt/shared/cache
#
# Once before: create the slice (gcloud compute tpus tpu-vm create), mount a file system that all workers share (Filestore,
# or a bucket by Cloud Storage FUSE), and install on all workers:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL cnn2gnn_jax && cd cnn2gnn_jax && make install'
# FOLDER is where the repository is there (cnn2gnn_jax). Give the same command again after a maintenance event: it goes on.
# Google Cloud advises GKE for new work: see gke.sh.
# Tested on: nothing but --dry-run.
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
