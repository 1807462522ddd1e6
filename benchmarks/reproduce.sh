#!/usr/bin/env bash
# Every published number, by the command that measures it. Each line can be run alone; a killed one goes on when it is run
# again. DATA: a folder with cnn_dailymail.jsonl, c4_en.jsonl and spec_bench.jsonl (any JSONL with a `text` field will do).
#
#   bash benchmarks/reproduce.sh study     README's figure, docs/results/study.md; one GPU of 80 GB, 35 minutes
#   bash benchmarks/reproduce.sh cpu       figures/laptop, docs/results/cpu.md; two cores, two hours
#   bash benchmarks/reproduce.sh gpu       docs/results/performance.md; one GPU of 80 GB, half an hour
#   bash benchmarks/reproduce.sh drafts    the ablations of drafts that read the target; one GPU or more, six minutes a run
#   bash benchmarks/reproduce.sh switches  drafts with one thing changed at a time; one GPU, three minutes a run
#   bash benchmarks/reproduce.sh shipped   the draft that ships; two GPUs, 35 minutes
#   bash benchmarks/reproduce.sh trees     docs/results/trees.md, docs/results/rules.md; one GPU, nine runs of five minutes
#   bash benchmarks/reproduce.sh original  eval.sh: the original study; a network, a GPU, hours
set -euo pipefail
DATA=${DATA:-.}
OUT=${OUT:-runs/published}
cnn=$DATA/cnn_dailymail.jsonl
all=("$cnn" "$DATA/c4_en.jsonl" "$DATA/spec_bench.jsonl")

cpu() {
    # the figures of figures/, their notebooks, README's picture; `make figures` draws them
    make records STUDY="--dataset $cnn $DATA/c4_en.jsonl --end 12 --min-prompt-len 128 --new-tokens 64" RECORDS="$OUT/figures"
    # docs/results/cpu.md: transformers' own methods and other systems' rules
    python benchmarks/bench_peers.py --dataset "$cnn" --end 16 --min-prompt-len 128 --new-tokens 64 --T 0.6 --B 8 auto --use_bfs \
        --mode auto dTree --methods chain3 Sequoia EAGLE-2 OPT-Tree --peers generate "lookup 3" --output "$OUT/peers"
    # docs/concepts/lossless.md: how many greedy texts are those of `generate`
    python benchmarks/bench_peers.py --end 56 --new-tokens 64 --T 0 --B 8 auto --mode auto dTree --peers generate \
        --output "$OUT/rounding"
    # docs/results/cpu.md: which child policy is fastest
    dynasurge sweep --dataset "$cnn" --end 12 --policy sampled topk hybrid --use_bfs --T 0.6 0.8 1 --growmap growmaps/2x2.pt \
        --output "$OUT/policies"
    # the priors that ship: two rounds, each on half of the prompts; the optimal growmaps
    mkdir -p "$OUT"
    awk 'NR % 2' dynasurge/assets/demo_prompts.jsonl > "$OUT/odd.jsonl"
    awk 'NR % 2 == 0' dynasurge/assets/demo_prompts.jsonl > "$OUT/even.jsonl"
    dynasurge calibrate acceptance "$OUT/first.json" --dataset "$OUT/odd.jsonl"
    dynasurge calibrate acceptance "$OUT/acceptance.json" --dataset "$OUT/even.jsonl" --priors "$OUT/first.json"
    dynasurge calibrate ranks "$OUT/ranks.json" --T 0.9
}

gpu() {
    # docs/results/drafts.md, docs/data/draft-7b, docs/data/padded-7b; docs/results/performance.md, docs/data/7b, docs/data/peers-7b
    local seven=(--dataset "$cnn" --min-prompt-len 128 --target demo-7b --compile --T 0 0.6 1 --B 64 --mode auto dTree --use_bfs)
    dynasurge sweep "${seven[@]}" --end 100 --methods EAGLE-2 --output "$OUT/draft-7b"
    dynasurge sweep "${seven[@]}" --end 100 --draft demo-7b --output "$OUT/padded-7b"
    dynasurge sweep "${seven[@]}" --end 60 --methods chain3 Sequoia EAGLE-2 OPT-Tree DySpec --output "$OUT/7b"
    # transformers' own methods; the first compilation takes minutes
    python benchmarks/bench_peers.py "${seven[@]}" --end 6 --fill --peers generate "compiled generate" "lookup 5" \
        --output "$OUT/peers-7b"
    # two GPUs: the same rows by one process and by two; a target spread over both
    local shared=(-m dynasurge sweep "${seven[@]}" --dataset "$DATA/c4_en.jsonl" --end 96 --T 0.6 --mode dTree)
    local two=(-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no)
    for round in 1 2; do
        CUDA_VISIBLE_DEVICES=0 python "${shared[@]}" --output "$OUT/one-$round"
        python "${two[@]}" "${shared[@]}" --output "$OUT/two-$round"
    done
    dynasurge sweep --dataset "$cnn" --end 8 --min-prompt-len 128 --target demo-7b --device-map auto --T 0.6 --B 64 \
        --mode auto dTree --output "$OUT/spread"
    # the latency curve, the memory floor, memory over 10,000 steps
    python benchmarks/bench_passes.py --target demo-7b --engines eager graphs compiled --widths 1 17 33 65 129 --steps 10000
}

trees() {
    # docs/results/trees.md, docs/results/rules.md, docs/data/trees
    for T in 0 0.6 0.9; do
        for B in 16 32 64; do
            dynasurge sweep --dataset "${all[@]}" --end 40 --new-tokens 40 --every 4 --T "$T" --B "$B" --fill --mode dTree \
                --use_bfs --methods Sequoia prototype DySpec OPT-Tree --output "$OUT/trees/T$T-B$B"
        done
    done
    # docs/results/rules.md: rules on the same static trees
    python benchmarks/bench_rules.py "$cnn" --end 120 --T 0.6 0.9 1 --shapes chain4 2ary3 3x5 4x4 optimal15 dTree
    python benchmarks/bench_optimum.py "$cnn" --end 60 --T 0.9 1
    dynasurge table "$OUT"/trees/* --trees
    dynasurge table "$OUT"/trees/* --predictions
    # docs/results/trees.md: kinds of prompt
    dynasurge sweep --dataset "$DATA/spec_bench.jsonl" --end 100 --new-tokens 64 --T 0 0.6 --mode dTree --use_bfs --B auto \
        --output "$OUT/spec"
}

drafts() {
    # one text for all: GPUS processes share its shards, and each batch of a run
    local gpus=${GPUS:-1} launch
    launch=(python -m torch.distributed.run --nproc_per_node "$gpus" -m tools.train_draft)
    "${launch[@]}" sample --out "$OUT/samples" --sample-tokens 20971520
    ablation() {  # a name, flags; killed runs go on
        "${launch[@]}" train-features --samples "$OUT/samples" --prompts "${all[@]}" --max-tokens "${TOKENS:-80000000}" \
            --eval-every 800 --out "$OUT/$1" "${@:2}"
    }
    ablation eagle-1
    ablation inject-1 --inject --residual both
    ablation inject-2 --inject --residual both --layers 2
    ablation eagle-2 --residual both --layers 2
    # the second round: more text, smaller batches, a reduced vocabulary
    "${launch[@]}" sample --out "$OUT/more-samples" --sample-tokens 71303168
    second() {
        "${launch[@]}" train-features --samples "$OUT/more-samples" --prompts "${all[@]}" --inject --residual both \
            --draft-vocab 32768 --depths 6 --batch-rows 64 --max-tokens "${TOKENS:-80000000}" --eval-every 1000 \
            --out "$OUT/$1" "${@:2}"
    }
    second two --layers 2
    second two-lk --layers 2 --loss lk
    second two-fast --layers 2 --muon-lr 0.02
    second four --layers 4
    second long --layers 2 --muon-lr 0.0125 --batch-rows 256 --max-tokens 200298913
}

switches() {
    # docs/results/drafts.md: one thing changed at a time, at equal tokens; 26 GiB of GPU memory
    local launch=(python -m torch.distributed.run --nproc_per_node "${GPUS:-1}" -m tools.train_draft)
    "${launch[@]}" sample --out "$OUT/few-samples" --sample-tokens 16777216
    switch() {
        "${launch[@]}" train-features --samples "$OUT/few-samples" --prompts "$cnn" --layers 2 --draft-vocab 32768 --depths 6 \
            --batch-rows 64 --loss-every 2 --max-tokens 16000000 --eval-every 1000 --out "$OUT/$1" "${@:2}"
    }
    switch base --inject --residual both
    switch features --inject --residual features
    switch kl --inject --residual both --tv-end-weight 0
    switch adamw --inject --residual both --optimizer adamw
    switch blind --inject --residual both --blind
    # not run yet
    switch tokens --residual both --blind
    switch alone --inject --residual both --no-carry
}

shipped() {
    # the draft that ships: a run, and a second one that goes on with new text
    local launch=(python -m torch.distributed.run --nproc_per_node "${GPUS:-1}" -m tools.train_draft)
    further() {
        "${launch[@]}" train-features --inject --residual both --layers 2 --draft-vocab 32768 --depths 6 --batch-rows 128 "$@"
    }
    "${launch[@]}" sample --out "$OUT/first-samples" --sample-tokens 48234496
    further --samples "$OUT/first-samples" --max-tokens 252641281 --out "$OUT/first"
    "${launch[@]}" sample --out "$OUT/new-samples" --sample-tokens 52428800 --seed 20261130
    further --samples "$OUT/new-samples" --init "$OUT/first/draft" --muon-lr 0.008 --max-tokens 522495327 --out "$OUT/shipped"
    python -m tools.train_draft evaluate --draft "$OUT/shipped/draft" --prompts "${all[@]}"
}

study() {
    # 80 articles and 60 web pages of at least 128 tokens. A folder each: a sweep that goes on has the same flags
    local seven=(bash eval.sh --target demo-7b --compile)
    "${seven[@]}" --dataset "$cnn" --end 80 --T 0.9 --output "$OUT/cnn-0.9"
    "${seven[@]}" --dataset "$DATA/c4_en.jsonl" --end 60 --T 0.9 --output "$OUT/c4-0.9"
    "${seven[@]}" --dataset "$cnn" --end 80 --T 0.6 --output "$OUT/cnn-0.6"
    dynasurge publish "$OUT/cnn-0.6" "$OUT/cnn-0.9" "$OUT/c4-0.9" --contexts 12 --output "$OUT/study"
}

original() {
    bash eval.sh --output "$OUT/eval"
}

for part in "${@:?name one or more of: study cpu gpu drafts switches shipped trees original}"; do
    case $part in
        cpu | gpu | drafts | switches | shipped | trees | study | original) "$part" ;;
        *) echo "error: $part is unknown; name one or more of: study cpu gpu drafts switches shipped trees original" >&2; exit 2 ;;
    esac
done
