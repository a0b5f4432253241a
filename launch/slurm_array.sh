#!/usr/bin/env bash
# Slurm: a sweep as a job array, one shard a task, each on a GPU.
#
#   sbatch --array=1-4 --time=12:00:00 launch/slurm_array.sh SWEEP --out=DIR [FLAGS...]
#   launch/slurm_array.sh --dry-run SWEEP --out=DIR [FLAGS...]
#
# SWEEP is as configs/sweeps/table1.py:smoke. The array counts from 1 to the number of shards; to run some shards of four
# again, SHARDS=4 sbatch --array=2,3. Submit it from the repository. DIR and the cache must be on a file system that all
# nodes share: give --config.cache_dir=DIR unless ~/.cache is. PYTHON=... chooses a Python (.venv's, or python3).
# A minute before the time is up, and where the task is preempted, the running cell's state is saved, and Slurm is asked to
# queue the task again. Cells that share a teacher stay together: beyond so many shards the others have nothing to do.
# Tested on: --dry-run, and without Slurm: programs in place of srun and scontrol.
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
trap : TERM # meant for the sweep; this shell is to see how it ends
code=0
"${command[@]}" || code=$?
if [[ $code -eq 75 ]]; then
  # By this name it is the one task; the job's number may stand for the whole array.
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
