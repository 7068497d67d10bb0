#!/bin/bash
# usage: HPC_ALPA_SITE=SITE jobscripts/submit.sh [--dry-run] profile|plan|train|scaling
#                           [OPTION OF sbatch OR qsub ...] [-- ARGUMENT OF THE PROGRAM ...]
# Submit a job script with the options of the site, for example
#   HPC_ALPA_SITE=perlmutter jobscripts/submit.sh train --account=m1234_g --nodes=4 -- --layers 24
# Options given here come after the site's and win. --dry-run prints the command.
set -euo pipefail
HPC_ALPA_JOBSCRIPTS=$(cd "$(dirname "$0")" && pwd)
export HPC_ALPA_JOBSCRIPTS
# shellcheck source=jobscripts/common.sh
source "$HPC_ALPA_JOBSCRIPTS/common.sh"

dry_run=no
if [ "${1:-}" = --dry-run ]; then dry_run=yes && shift; fi
job=${1:-}
case $job in
    profile | plan | train | scaling) shift ;;
    *) die "the job is '$job'; it must be profile, plan, train or scaling" ;;
esac
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1") && shift; done
if [ "${1:-}" = -- ]; then shift; fi
load_site "$HPC_ALPA_JOBSCRIPTS"

if [ "$SITE_SCHEDULER" = pbs ]; then
    # qsub hands no arguments to a script and no environment unless told.
    export HPC_ALPA_JOB=$job HPC_ALPA_ARGUMENTS="$*"
    command=(qsub -V -N "hpc_alpa-$job" "${SITE_SUBMIT[@]}" "${options[@]}"
        "$HPC_ALPA_JOBSCRIPTS/$HPC_ALPA_SITE.pbs")
else
    ranks=$SITE_RANKS_PER_NODE
    if [ "$job" = plan ]; then ranks=1; fi
    command=(sbatch --job-name="hpc_alpa-$job"
        --ntasks-per-node="$ranks" --cpus-per-task="$SITE_CPUS_PER_TASK")
    if [ "${HPC_ALPA_MAX_RESTARTS:-0}" -gt 0 ] && [ "$SITE_RESTART" = requeue ]; then
        command+=(--requeue)
    fi
    command+=("${SITE_SUBMIT[@]}" "${options[@]}" "$HPC_ALPA_JOBSCRIPTS/$job.sbatch" "$@")
fi
printf '%q ' "${command[@]}"
printf '\n'
if [ $dry_run = no ]; then exec "${command[@]}"; fi
