#!/bin/bash
# usage: up.sh FOLDER PORT [NODES=2] [CPUS=4]
# A private Slurm on loopback: NODES virtual nodes on this machine, one slurmd each, without systemd and
# cgroups. Everything it writes is under FOLDER; it uses the ports PORT to PORT + NODES. Needs root and
# Debian's slurm-wlm and munge. Prints the line that points Slurm's commands at it; down.sh ends it.
set -euo pipefail
folder=$1 port=$2 nodes=${3:-2} cpus=${4:-4}
last=$((nodes - 1)) host=$(hostname -s)
mkdir -p "$folder"/{state,log,munge}
chmod 755 "$folder" "$folder/munge"

# Credentials of its own: key, socket and daemon.
socket=$folder/munge/socket
dd if=/dev/urandom of="$folder/munge/key" bs=1 count=1024 status=none
chmod 600 "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"

cat > "$folder/slurm.conf" <<EOF
ClusterName=private
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
# a requeued job waits for as long as credentials live, by default two minutes
AuthInfo=socket=$socket,cred_expire=20
CredType=cred/munge
MpiDefault=pmi2
# one machine plays all nodes: nothing here may depend on cgroups or on real core counts
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=30
KillWait=5
MinJobAge=300
MailProg=/bin/true
TmpFS=$folder/tmp/%n
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdSpoolDir=$folder/spool/%n
SlurmdPidFile=$folder/spool/%n.pid
SlurmdLogFile=$folder/log/%n.log
NodeName=n[0-$last] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] \
CPUs=$cpus RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
EOF

export SLURM_CONF=$folder/slurm.conf
slurmctld -f "$SLURM_CONF" -c
for i in $(seq 0 "$last"); do
    mkdir -p "$folder/spool/n$i" "$folder/tmp/n$i"
    slurmd -f "$SLURM_CONF" -N "n$i"
done
for _ in $(seq 1 120); do
    if [ "$(sinfo --noheader --format=%T 2>/dev/null | sort -u)" = idle ]; then
        echo "SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.25
done
echo "error: the nodes of the private Slurm are not idle after 30 s; logs are in $folder/log" >&2
sinfo >&2 || true
tail -n 5 "$folder"/log/*.log >&2
exit 1
