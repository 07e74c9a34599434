#!/bin/sh
# A Slurm of one node on this machine, to try sweeps on (docs/scale.md). Root, on Debian, after
#   apt-get install --no-install-recommends slurm-wlm munge
# Usage: scripts/test_slurm.sh up|down|status       CPUS=2 (default: all) is what the node offers
set -eu

CONFIG=/etc/slurm/slurm.conf
STATE=/var/lib/slurm-test
LOGS=/var/log/slurm-test
MARK="# written by normlab's scripts/test_slurm.sh"
NODE=$(hostname -s)
CPUS=${CPUS:-$(nproc)}

# No cgroups (they are missing in many containers), no accounting database, daemons as root.
configure() {
    if [ -e "$CONFIG" ] && ! grep -qxF "$MARK" "$CONFIG"; then
        echo "$CONFIG is not of this script: is there a real Slurm on this machine?" >&2
        exit 1
    fi
    mkdir -p /etc/slurm "$STATE/ctld" "$STATE/d" "$LOGS"
    cat > "$CONFIG" <<CONF
$MARK
ClusterName=test
SlurmctldHost=$NODE(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=2
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/d
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
SlurmctldLogFile=$LOGS/slurmctld.log
SlurmdLogFile=$LOGS/slurmd.log
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$CPUS State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    grep -qw "$NODE" /etc/hosts || echo "127.0.0.1 $NODE" >> /etc/hosts
}

# Whether the process of a pid file is alive.
alive() { [ -s "$1" ] && kill -0 "$(cat "$1" 2>/dev/null)" 2>/dev/null; }

up() {
    configure
    mkdir -p /run/munge && chown munge: /run/munge
    alive /run/munge/munged.pid || su -s /bin/sh munge -c /usr/sbin/munged
    alive "$STATE/slurmctld.pid" || slurmctld
    alive "$STATE/slurmd.pid" || slurmd
    for _ in $(seq 30); do
        sinfo --noheader --format=%t 2>/dev/null | grep -qE 'idle|mix|alloc' && break
        sleep 1
    done
    status
}

down() {
    for pidfile in "$STATE/slurmd.pid" "$STATE/slurmctld.pid" /run/munge/munged.pid; do
        if alive "$pidfile"; then
            kill "$(cat "$pidfile")"
            while alive "$pidfile"; do sleep 0.2; done
        fi
    done
}

status() { sinfo && squeue; }

case "${1:-}" in
    up | down | status) "$1" ;;
    *) sed -n '2,4s/^# //p' "$0"; exit 2 ;;
esac
