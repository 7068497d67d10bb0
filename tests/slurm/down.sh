#!/bin/bash
# usage: down.sh FOLDER [PID]
# End what up.sh started in FOLDER, and nothing else: its jobs, then its daemons by their pid files.
# With PID only when that process has gone: so that tests which are killed leave nothing behind.
set -uo pipefail
folder=$1
while [ -n "${2:-}" ] && kill -0 "$2" 2>/dev/null; do sleep 1; done
export SLURM_CONF=$folder/slurm.conf
pids() { cat "$folder"/spool/*.pid "$folder/slurmctld.pid" "$folder/munge/pid" 2>/dev/null; }
alive() { for pid in $(pids); do if kill -0 "$pid" 2>/dev/null; then echo "$pid"; fi; done; }

timeout 10 scancel --partition=all 2>/dev/null
for _ in $(seq 1 20); do
    [ -z "$(timeout 10 squeue --noheader 2>/dev/null)" ] && break
    sleep 0.25
done
for pid in $(alive); do kill "$pid"; done
for _ in $(seq 1 20); do [ -z "$(alive)" ] && exit 0; sleep 0.25; done
for pid in $(alive); do kill -9 "$pid"; done
exit 0
