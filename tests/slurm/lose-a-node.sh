#!/usr/bin/env bash
# lose-a-node.sh NASHFLOCK SCENARIO OUT: runs the scenario on four nodes and kills one of them with all
# that runs on it, slurmd included, once requests are being served.
set -euo pipefail
nashflock=$1 scenario=$2 out=$3
srun -N4 -n4 --no-kill --kill-on-bad-exit=0 --wait=0 \
    "$nashflock" run "$scenario" --nodes slurm --out "$out" >"$out.stdout" 2>"$out.stderr" &
for _ in $(seq 200); do
    [ -e "$out/requests.parquet.partial" ] && break
    sleep 0.1
done
sleep 1.5
# What runs on node 3 shares the host name's namespace with its slurmd.
of_node=$(readlink "/proc/$(cat "$(dirname "$SLURM_CONF")/run/slurmd.node3.pid")/ns/uts")
killed=()
for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/ns/uts" 2>/dev/null)" = "$of_node" ]; then
        killed+=("${process#/proc/}")
    fi
done
kill -KILL "${killed[@]}"
echo "killed ${#killed[@]} processes of node3"
for _ in $(seq 600); do
    [ -e "$out/summary.json" ] && break
    sleep 0.1
done
# srun itself goes on until Slurm has noticed that the node is gone.
cat "$out.stderr" >&2
