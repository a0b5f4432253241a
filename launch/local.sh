#!/usr/bin/env bash
# Starts a run as one process on this machine. It uses all devices of the machine.
#
#   launch/local.sh [--dry-run] CONFIG [FLAGS...]
#   launch/local.sh configs/digits.py --config.seeds=3
#
# To emulate 8 devices on a CPU, set JAX_NUM_CPU_DEVICES=8. PYTHON is the Python to use (that of .venv, or else python3).
# Tested on: Linux, CPU, with 1 and 8 emulated devices.
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

command=("$python" -m cnn2gnn_jax.main "--config=$config" "$@")
if [[ -n $dry ]]; then
  printf '%q ' "${command[@]}" && echo
  exit
fi
exec "${command[@]}"
