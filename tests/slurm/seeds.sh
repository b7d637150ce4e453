#!/usr/bin/env bash
# seeds.sh NASHFLOCK SCENARIO: submits the scenario with two seeds as an array, and waits for both runs.
set -euo pipefail
"$1" launch slurm "$2" --tasks 2 --array 3,5
for _ in $(seq 600); do
    [ -z "$(squeue -h)" ] && break
    sleep 0.1
done
squeue -h
cat ./*.log >&2
