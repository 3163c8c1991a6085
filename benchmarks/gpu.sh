#!/bin/sh
# What is owed to a GPU, in at most ten minutes: the tests marked `gpu`, pairs a second beside TRL in bfloat16 and with LoRA, and
# reward models on a pretrained model over more prompts than a CPU has time for.
#
#     sh benchmarks/gpu.sh [cuda|cpu] [OUT]     or  make gpu
#
# cpu: the same commands at a size that means nothing, to know that the script runs. OUT: folder of what was printed (out/gpu).
# Each part has its own time and its own file; one that fails or runs out of time does not keep the next from running.
DEVICE=${1:-cuda}
OUT=${2:-out/gpu}
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$OUT"
failed=0

part() { # NAME SECONDS COMMAND...
    name=$1 seconds=$2
    shift 2
    echo "== $name (at most $seconds s): $*"
    timeout "$seconds" "$@" >"$OUT/$name.txt" 2>&1
    code=$?
    tail -n 12 "$OUT/$name.txt"
    [ $code -eq 0 ] || { echo "== $name: failed ($code; 124 is out of time)"; failed=1; }
}

if [ "$DEVICE" = cuda ]; then
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "torch finds no CUDA device: sh benchmarks/gpu.sh cpu tries the script")' || exit 2
    size="--runs 3" claims="--set alpaca --way lora --seeds 1 --times 4"
else
    size="--tiny --threads 1 --runs 1" claims="--quick --way lora"
fi
part tests 150 "$PYTHON" -m pytest -q -m gpu tests/train
part speed 180 "$PYTHON" benchmarks/train_speed.py --device "$DEVICE" $size --part policy_all_pairs --part reward_all_pairs --json
part lora 120 "$PYTHON" benchmarks/train_speed.py --device "$DEVICE" $size --lora 16 --part policy_all_pairs --json
part claims 140 "$PYTHON" benchmarks/claims_pretrained.py $claims --out "$OUT/claims.json" --json
exit $failed
