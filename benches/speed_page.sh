#!/bin/sh
# Prints docs/speed.md, in about six minutes on an otherwise idle machine:
#   benches/speed_page.sh [PYTHON] > docs/speed.md
# PYTHON is one that has torch; without it the forward pass has no control.
set -eu
cd "$(dirname "$0")/.."
fenced() { printf '```text\n'; "$@"; printf '```\n\n'; }
cat benches/speed_page.md
cargo bench --quiet -p agents --bench expert
printf '\n## Whole forward pass\n\n`cargo bench --bench forward`: 8 windows of 32 tokens through books-moe-8e2k, equilibrium routing and its\n'
printf 'certificates included, beside a dense model of the prototype'"'"'s sizes in PyTorch (`benches/torch_dense.py`).\n'
printf 'Median of nine rounds, least to most.\n\n'
if [ $# -gt 0 ]; then fenced cargo bench --quiet --bench forward -- --python "$1"; else fenced cargo bench --quiet --bench forward; fi
printf '## A model of the sizes of OLMoE-1B-7B\n\n`cargo bench --bench olmoe_shape`: 6.9 billion weights drawn from a seed, experts in 4 bits.\n\n'
fenced cargo bench --quiet --bench olmoe_shape
printf '## Resident memory of a run\n\n`cargo bench --bench resident`: the quickstart, coordinator alone; its workers are other processes.\n\n'
fenced cargo bench --quiet --bench resident
cargo run --quiet --release --manifest-path benches/libraries/Cargo.toml
