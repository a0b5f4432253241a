#!/usr/bin/env bash
# One process on this machine, on all of its devices.
#
#   launch/local.sh [--dry-run] CONFIG [FLAGS...]
#   launch/local.sh configs/digits.py --config.seeds=3
#
# CPU devices are emulated: JAX_NUM_CPU_DEVICES=8 launch/local.sh ... PYTHON=... chooses a Python (.venv's, or python3).
# Tested on: Linux, CPU, 1 and 8 emulated devices.
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
