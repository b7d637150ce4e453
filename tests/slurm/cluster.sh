#!/usr/bin/env bash
# cluster.sh DIR NODES COMMAND...: runs COMMAND on a Slurm cluster of its own, NODES nodes on this machine.
#
# Every node has its host name nodeK, its address 127.0.1.K and its slurmd. All of it lives in fresh
# network, process and mount namespaces: nothing of it is reachable from outside, no file outside DIR is
# touched, and no process outlives this script. Needs root, and slurm-wlm and munge as Debian has them.
set -euo pipefail
if [ -z "${INSIDE_CLUSTER:-}" ]; then
    INSIDE_CLUSTER=1 exec unshare --net --mount --uts --pid --fork --mount-proc --kill-child \
        bash "${BASH_SOURCE[0]}" "$@"
fi
dir=$(realpath -m "$1") nodes=$2
shift 2
mkdir -p "$dir"/{state,spool,log,run}
chmod 755 "$dir" "$dir"/{state,spool,log,run}
hostname control
ip link set lo up
# With loopback addresses alone getaddrinfo refuses even 127.0.0.1.
ip addr add 10.99.0.1/32 dev lo
{
    echo "127.0.0.1 localhost control"
    for k in $(seq "$nodes"); do echo "127.0.1.$k node$k"; done
} >"$dir/hosts"
mount --bind "$dir/hosts" /etc/hosts

(umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
/usr/sbin/munged --key-file="$dir/munge.key" --socket="$dir/run/munge.sock" \
    --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" \
    --seed-file="$dir/run/munged.seed" --num-threads=2 ${MUNGE_FLAGS:-}
{
    cat <<CONF
ClusterName=test
SlurmctldHost=control(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/run/munge.sock,cred_expire=5
CommunicationParameters=EnableIPv4
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1,batch_sched_delay=0
ReturnToService=1
MailProg=/bin/true
SlurmdTimeout=3
SlurmctldTimeout=10
InactiveLimit=0
KillWait=2
UnkillableStepTimeout=60
MessageTimeout=2
TCPTimeout=1
CONF
    for k in $(seq "$nodes"); do
        echo "NodeName=node$k NodeAddr=127.0.1.$k Port=$((17000 + k)) CPUs=$(nproc) RealMemory=512 State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=node[1-$nodes] Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES"
} >"$dir/slurm.conf"
# slurmd probes /sys/fs/cgroup even with linuxproc unless the plugin is named.
echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
export SLURM_CONF="$dir/slurm.conf"
/usr/sbin/slurmctld -c
for k in $(seq "$nodes"); do
    mkdir -p "$dir/spool/node$k"
    unshare --uts sh -c "hostname node$k && exec /usr/sbin/slurmd -N node$k"
done
idle=0
for _ in $(seq 300); do
    idle=$(sinfo -h -N -o '%T' 2>/dev/null | grep -c '^idle$' || true)
    [ "$idle" = "$nodes" ] && break
    sleep 0.1
done
if [ "$idle" != "$nodes" ]; then
    echo "only $idle of $nodes nodes are idle" >&2
    tail -n 20 "$dir"/log/*.log >&2
    exit 1
fi
"$@"
