#!/usr/bin/env bash
# Several processes on this machine: on CPU each with emulated devices, on GPUs each with one of its own.
#
#   [PROCESSES=2] [DEVICES=4] launch/multiprocess.sh [--dry-run] CONFIG [FLAGS...]
#   PROCESSES=2 DEVICES=4 launch/multiprocess.sh configs/digits.py
#   PROCESSES=8 DEVICES=gpu launch/multiprocess.sh configs/cifar100.py
#
# DEVICES is how many each emulates, or gpu. PORT (12321) is the first process's. SIGTERM goes to all of them. It exits
# with the highest code of theirs: 75 means that the same command goes on. For what one process can do, local.sh is
# faster; this is to try on one machine what is to run on many.
# Tested on: Linux, CPU, 2 processes of 4 emulated devices. Not tested on GPUs.
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
# Without a word about the signal of the shell itself, which waits for them and reports their code.
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
