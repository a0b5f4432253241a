#!/usr/bin/env bash
# Starts a sweep as a job array of Slurm. Each task runs one shard of the sweep on one GPU.
#
#   sbatch --array=1-4 --time=12:00:00 launch/slurm_array.sh SWEEP --out=DIR [FLAGS...]
#   launch/slurm_array.sh --dry-run SWEEP --out=DIR [FLAGS...]
#
# SWEEP is a file with an optional word, for example configs/sweeps/table1.py:smoke. The array counts from 1 to the number of
# shards. To run the second and third of four shards again: SHARDS=4 sbatch --array=2,3 ...
# Submit it from the repository. DIR and the cache must be on a file system that all nodes share. If ~/.cache is not, set
# --config.cache_dir=DIR. PYTHON is the Python to use (that of .venv, or else python3).
# One minute before its time is up, or when it is preempted, a task saves the state of its current cell. This script then
# asks Slurm to queue the task again.
# Cells with the same teacher are in the same shard. If there are more shards than teachers, some shards may be empty.
# Tested on: no cluster, only with --dry-run and with programs that stand in for srun and scontrol.
#SBATCH --job-name=cnn2gnn-sweep
#SBATCH --ntasks=1
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
sweep=$1 && shift
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
shard=${SLURM_ARRAY_TASK_ID:-1}/${SHARDS:-${SLURM_ARRAY_TASK_COUNT:-1}}

command=(srun "$python" -m cnn2gnn_jax.sweep "--sweep=$sweep" "--shard=$shard" "$@")
if [[ -n $dry ]]; then
  printf '%q ' "${command[@]}" && echo
  exit
fi
trap : TERM # the signal is for the sweep; this shell must stay alive to read its exit code
code=0
"${command[@]}" || code=$?
if [[ $code -eq 75 ]]; then
  # This name means the one task. The number of the job alone may mean the whole array.
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
