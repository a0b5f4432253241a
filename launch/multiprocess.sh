#!/usr/bin/env bash
# Starts a run as several processes on this machine. On a CPU each process emulates devices; on GPUs each has one GPU.
#
#   [PROCESSES=2] [DEVICES=4] launch/multiprocess.sh [--dry-run] CONFIG [FLAGS...]
#   PROCESSES=2 DEVICES=4 launch/multiprocess.sh configs/digits.py
#   PROCESSES=8 DEVICES=gpu launch/multiprocess.sh configs/cifar100.py
#
# DEVICES is the number of devices that each process emulates, or gpu. PORT (12321) is the port of the first process.
# SIGTERM is passed on to all processes. The exit code is the highest of theirs; after 75 the same command continues the run.
# Use this script to try a run of several machines on one machine. For other runs local.sh is faster.
# Tested on: Linux, CPU, with 2 processes of 4 emulated devices. Not tested on GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

dry=
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
[[ $# -ge 1 && $1 != -* ]] || usage
config=$1 && shift
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
processes=${PROCESSES:-2} devices=${DEVICES:-4} port=${PORT:-12321}

pids=()
# The shell itself does not end at a signal: it waits for the processes and reports their exit code.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((k = 0; k < processes; k++)); do
  if [[ $devices == gpu ]]; then
    environment=("CUDA_VISIBLE_DEVICES=$k")
  else
    environment=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices")
  fi
  command=(env "${environment[@]}" "$python" -m cnn2gnn_jax.main "--config=$config" "--coordinator=localhost:$port"
    "--processes=$processes" "--process_id=$k" "$@")
  if [[ -n $dry ]]; then
    printf '%q ' "${command[@]}" && echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done

worst=0
for pid in "${pids[@]}"; do
  code=0
  # `wait` returns early when the trap runs, so ask until the process is gone.
  while kill -0 "$pid" 2>/dev/null; do
    wait "$pid" && code=0 || code=$?
  done
  wait "$pid" 2>/dev/null || code=$?
  ((code > worst)) && worst=$code
done
exit "$worst"
