#!/usr/bin/env bash
# The commands for several processes on one machine: one for each GPU, or on the CPU where there is none (accelerate then takes
# DDP in the place of FSDP2, without a word).
#
#     examples/multi_gpu.sh [PROCESSES [MODEL DATA]]
#
# MODEL and DATA are those of `hf-neuroplastic train`; without them a small model and the demonstration's corpus are made.
set -euo pipefail
loop=$(dirname "$0")/accelerate_loop.py
processes=${1:-2}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
model=${2:-$scratch/model} data=${3:-$scratch/corpus} output=${OUTPUT:-$scratch/out}
python=${PYTHON:-python}
torchrun=("$python" -m torch.distributed.run --standalone --nproc_per_node "$processes")
accelerate=("$python" -m accelerate.commands.launch --num_processes "$processes" --num_machines 1 --mixed_precision no
    --dynamo_backend no)
steps=(--steps "${STEPS:-400}")

if [ $# -lt 3 ]; then
    "$python" -c "
import sys
from pathlib import Path
from hf_neuroplastic.audio import write_corpus
from hf_neuroplastic.audio.demo import save_small_model
save_small_model(Path(sys.argv[1]), 0)
write_corpus(sys.argv[2], utterances={'train': 16, 'dev': 8, 'eval': 8})" "$model" "$data"
fi

echo "== a loop of accelerate's, DDP, by torchrun and by accelerate launch"
"${torchrun[@]}" "$loop" "${steps[@]}"
"${accelerate[@]}" --multi_gpu "$loop" "${steps[@]}"

echo "== the same loop, FSDP2"
"${accelerate[@]}" --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy NO_WRAP "$loop" "${steps[@]}"

echo "== a detector, DDP"
"${torchrun[@]}" -m hf_neuroplastic train --model "$model" --data "$data" --output "$output" --seconds 1 "${steps[@]}"
