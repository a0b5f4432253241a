#!/usr/bin/env bash
# Slurm: one task a GPU, on any number of nodes.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --time=12:00:00 launch/slurm.sh CONFIG [FLAGS...]
#   launch/slurm.sh --dry-run CONFIG [FLAGS...]
#
# Submit it from the repository. Workdir and cache must be on a file system that all nodes share: give --workdir=DIR and
# --config.cache_dir=DIR unless runs/ and ~/.cache are. PYTHON=... chooses a Python (.venv's, or python3).
# A minute before the time is up, and where the job is preempted, the run saves and exits with code 75, and Slurm is asked
# to queue it again; a job that loses a node Slurm queues again by itself.
# Tested on: nothing but --dry-run. JAX finds the other tasks by Slurm's own variables.
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
trap : TERM # meant for the tasks; this shell is to see how they end
code=0
"${command[@]}" || code=$?
if [[ $code -eq 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
