#!/usr/bin/env bash
# Starts a run with Slurm, with one task for each GPU, on any number of nodes.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --time=12:00:00 launch/slurm.sh CONFIG [FLAGS...]
#   launch/slurm.sh --dry-run CONFIG [FLAGS...]
#
# Submit it from the repository. The workdir and the cache must be on a file system that all nodes share. If runs/ and
# ~/.cache are not, set --workdir=DIR and --config.cache_dir=DIR. PYTHON is the Python to use (that of .venv, or else
# python3).
# One minute before its time is up, or when it is preempted, the run saves its state and exits with code 75. This script
# then asks Slurm to queue the job again. If a job loses a node, Slurm itself queues it again.
# JAX finds the other tasks by Slurm's environment variables.
# Tested on: no cluster, only with --dry-run.
#SBATCH --job-name=cnn2gnn
#SBATCH --gpus-per-task=1
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

dry=
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
[[ $# -ge 1 && $1 != -* ]] || usage
config=$1 && shift
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}

command=(srun "$python" -m cnn2gnn_jax.main "--config=$config" --distributed "$@")
if [[ -n $dry ]]; then
  printf '%q ' "${command[@]}" && echo
  exit
fi
trap : TERM # the signal is for the tasks; this shell must stay alive to read their exit code
code=0
"${command[@]}" || code=$?
if [[ $code -eq 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
