#!/usr/bin/env bash
# The whole study with one command: autoregressive decoding, static and dynamic trees, without and with ETV, at six
# temperatures on two datasets. Writes records, one table and the figures to runs/eval. Run it again to go on after a kill.
#
#   bash eval.sh                     the demo pair, on every GPU of this machine; the datasets need a network
#   bash eval.sh --quick             a small version in a few minutes: demo pair, bundled prompts, no network, no GPU
#   bash eval.sh --target demo-7b --compile      at the cost of LLaMA-7B, without a hub; one GPU of 80 GB
#   bash eval.sh --draft JackFram/llama-68m --target huggyllama/llama-7b --output runs/llama      as published
#
# Every flag of `dynasurge sweep` can be added and replaces those below. PYTHON: another environment's interpreter.
# LAUNCH: how to start processes, for several machines (docs/guides/gpus.md): LAUNCH="accelerate launch --num_machines 2 ..."
set -euo pipefail
for flag in "$@"; do  # before anything is installed
    if [ "$flag" = --help ] || [ "$flag" = -h ]; then
        sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0"
        exit 0
    fi
done
root=$(dirname "$0")
growmaps=$root/growmaps
growmaps=${growmaps#./}  # a path is part of a setting's name

if [ -z "${PYTHON:-}" ]; then
    env -u PYTHON make --silent --directory "$root" install
    PYTHON=$root/.venv/bin/python
fi

study=(--dataset cnn c4 --end 200 --prompt-len 128 --min-prompt-len 128 --new-tokens 128 --M 384
    --T 0 0.6 0.85 0.9 0.95 1.0 --P 1.0 --use_bfs --B 16 32 64 auto
    --growmap "$growmaps"/{4x8-tree,8x8-tree,optimal63,optimal127}.pt
    --output runs/eval)
quick=(--dataset demo --end 4 --new-tokens 64 --M 384
    --T 0 0.6 --P 1.0 --use_bfs --B 4 8 16
    --growmap "$growmaps"/{2x2,4x8-tree,optimal15}.pt
    --output runs/eval-quick)

flags=("${study[@]}")
passed=()
for flag in "$@"; do
    if [ "$flag" = --quick ]; then flags=("${quick[@]}"); else passed+=("$flag"); fi
done

launch=("$PYTHON")
if [ -n "${LAUNCH:-}" ]; then
    read -ra launch <<< "$LAUNCH"
elif ! [[ " ${passed[*]-} " =~ \ --device(-map)?[=\ ] ]]; then  # with either flag, the user chooses the device
    gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
    if [ "$gpus" -gt 1 ]; then
        launch+=(-m accelerate.commands.launch --multi_gpu --num_processes "$gpus"
            --num_machines 1 --mixed_precision no --dynamo_backend no)
    fi
fi
exec "${launch[@]}" -m dynasurge sweep "${flags[@]}" ${passed[@]+"${passed[@]}"}
