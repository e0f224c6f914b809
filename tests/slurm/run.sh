#!/usr/bin/env bash
# run.sh COMMAND...: start Slurm on this machine alone, run the command with it, and stop it again; says why it was skipped where that
# cannot be. Nothing is written outside a temporary folder but the Debian packages slurm-wlm and munge, where they are missing.
set -euo pipefail
skip() { echo "SKIPPED: no Slurm here: $1"; exit 0; }

[ "$(id -u)" = 0 ] || skip "its daemons are started by root"
if ! command -v slurmctld slurmd munged > /dev/null; then
    command -v apt-get > /dev/null || skip "neither slurm-wlm nor apt"
    { timeout 60 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 120 apt-get install -y --no-install-recommends slurm-wlm munge; } \
        > /tmp/slurm-install.log 2>&1 || skip "apt could not install slurm-wlm and munge: $(tail -1 /tmp/slurm-install.log)"
fi

ROOT=$(mktemp -d /tmp/slurm.XXXXXX)
HOST=$(hostname -s)
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }
pids=()
stop() {
    squeue --noheader --format=%A 2> /dev/null | xargs --no-run-if-empty scancel --full --signal=KILL || true
    for _ in $(seq 20); do
        [ -z "$(squeue --noheader 2> /dev/null)" ] && break
        sleep 0.5
    done
    kill "${pids[@]}" 2> /dev/null || true
    wait 2> /dev/null || true
    rm -rf "$ROOT"
}
trap stop EXIT

mkdir -p "$ROOT"/{state,spool,log}
chmod 755 "$ROOT"
head -c 1024 /dev/urandom > "$ROOT/munge.key"
chmod 400 "$ROOT/munge.key"
munged --foreground --force --key-file="$ROOT/munge.key" --socket="$ROOT/munge.socket" --pid-file="$ROOT/munge.pid" \
    --log-file="$ROOT/log/munged" --seed-file="$ROOT/munge.seed" > "$ROOT/log/munged.out" 2>&1 &
pids+=($!)

# Two partitions over the same node: a job in "urgent" takes its cores from those in "main", which are requeued.
cat > "$ROOT/slurm.conf" << EOF
ClusterName=one
SlurmctldHost=$HOST
SlurmctldAddr=127.0.0.1
SlurmctldPort=$(port)
SlurmdPort=$(port)
AuthType=auth/munge
AuthInfo=socket=$ROOT/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool
SlurmctldPidFile=$ROOT/slurmctld.pid
SlurmdPidFile=$ROOT/slurmd.pid
SlurmctldLogFile=$ROOT/log/slurmctld
SlurmdLogFile=$ROOT/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=30
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$(nproc --all) State=UNKNOWN
PartitionName=main Nodes=$HOST Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=$HOST MaxTime=60 State=UP PriorityTier=10
EOF
export SLURM_CONF="$ROOT/slurm.conf"
slurmctld -D > "$ROOT/log/slurmctld.out" 2>&1 &
pids+=($!)
slurmd -D > "$ROOT/log/slurmd.out" 2>&1 &
pids+=($!)

for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%t 2> /dev/null | sort -u)" = idle ] && break
    sleep 0.5
done
if [ "$(sinfo --noheader --format=%t 2> /dev/null | sort -u)" != idle ]; then
    tail -n 5 "$ROOT"/log/*
    skip "it did not start"
fi
"$@"
