# shellcheck shell=bash
# What the job scripts share. A script sources this file first; it reads the settings of one site from
# sites/$HPC_ALPA_SITE.sh and then offers
#
#   launch [-n RANKS] COMMAND...   COMMAND on one rank per device (all devices, or the first RANKS)
#   alone COMMAND...               COMMAND once, on the first node
#   finish CODE [ARGUMENT...]      end the job; after a stop signal, hand over to its next run
#
# Variables that a user may set (all are optional but the first):
#   HPC_ALPA_SITE           the machine: a name from sites/
#   HPC_ALPA_BACKEND        cuda or host; the site's choice if unset
#   HPC_ALPA_ENV            a file to source before anything runs, such as .venv/bin/activate
#   HPC_ALPA_PYTHON         the interpreter (python)
#   HPC_ALPA_SCRIPT         the training script (examples/train_gpt.py)
#   HPC_ALPA_OUT            where results go (out/JOBNAME-JOBID)
#   HPC_ALPA_DB             the cost database (out/SITE.h5)
#   HPC_ALPA_CLUSTER        the machine to plan for: a TOML file or a preset (plan: required)
#   HPC_ALPA_PLAN           a plan to train by (the planner's)
#   HPC_ALPA_SRUN           more options for srun or mpiexec, such as --mpi=pmix
#   HPC_ALPA_MAX_RESTARTS   how often a job that runs out of time goes on by itself (0)
#   HPC_ALPA_DRY_RUN        print the launch commands instead of running them

die() {
    echo "error: $1" >&2
    exit 2
}

# ---- the site -------------------------------------------------------------------------------------

load_site() {
    local here=$1 name=${HPC_ALPA_SITE:-}
    local known
    known=$(cd "$here/sites" && printf '%s ' *.sh)
    [ -n "$name" ] || die "HPC_ALPA_SITE is not set. Known sites: ${known//.sh/}"
    [ -f "$here/sites/$name.sh" ] || die "no site '$name' in $here/sites. Known sites: ${known//.sh/}"

    # What a site file may set, and what holds if it does not.
    SITE_SCHEDULER=slurm        # slurm or pbs
    SITE_BACKEND=cuda           # cuda or host
    SITE_RANKS_PER_NODE=4       # one rank per device
    SITE_CPUS_PER_TASK=1        # as the scheduler counts them (hardware threads on some machines)
    SITE_CORES_PER_RANK=        # physical cores, if fewer than that
    SITE_SUBMIT=()              # options of sbatch or qsub
    SITE_GPU_SUBMIT=()          # the same, only with the cuda backend
    SITE_LAUNCH=()              # options of srun or mpiexec
    SITE_GPU_LAUNCH=()
    SITE_GPU_PREFIX=()          # a command in front of the program, on each rank
    SITE_RESTART=requeue        # requeue or successor: how a job goes on after its time limit
    site_environment() { :; }   # export what every rank needs
    site_gpu_environment() { :; }
    # shellcheck disable=SC1090
    source "$here/sites/$name.sh"

    BACKEND=${HPC_ALPA_BACKEND:-$SITE_BACKEND}
    case $BACKEND in
        host) ;;
        cuda)
            SITE_SUBMIT+=("${SITE_GPU_SUBMIT[@]}")
            SITE_LAUNCH+=("${SITE_GPU_LAUNCH[@]}")
            ;;
        *) die "HPC_ALPA_BACKEND is '$BACKEND'; it must be cuda or host" ;;
    esac
}

# ---- inside a job ---------------------------------------------------------------------------------

job_environment() {
    if [ -n "${HPC_ALPA_ENV:-}" ]; then
        [ -f "$HPC_ALPA_ENV" ] || die "HPC_ALPA_ENV names $HPC_ALPA_ENV, which does not exist"
        set +u  # activation scripts read variables that may be unset
        # shellcheck disable=SC1090
        source "$HPC_ALPA_ENV"
        set -u
    fi
    PYTHON=${HPC_ALPA_PYTHON:-python}
    JOB_ID=${SLURM_JOB_ID:-${PBS_JOBID:-$$}}
    JOB_NAME=${SLURM_JOB_NAME:-${PBS_JOBNAME:-job}}
    OUT=${HPC_ALPA_OUT:-out/${JOB_NAME%.*}-${JOB_ID%%.*}}
    DB=${HPC_ALPA_DB:-out/$HPC_ALPA_SITE.h5}
    # shellcheck disable=SC2034  # the scripts read it
    SCRIPT=${HPC_ALPA_SCRIPT:-examples/train_gpt.py}
    mkdir -p "$OUT" "$(dirname "$DB")"

    RANKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-$SITE_RANKS_PER_NODE}
    CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-$SITE_CPUS_PER_TASK}
    if [ "$SITE_SCHEDULER" = pbs ]; then
        NODES=$(sort -u "${PBS_NODEFILE:-/dev/null}" | wc -l)
    else
        NODES=${SLURM_JOB_NUM_NODES:-1}
    fi
    RANKS=$((NODES * RANKS_PER_NODE))

    # Slurm >= 22.05: srun does not take over the --cpus-per-task of sbatch.
    export SRUN_CPUS_PER_TASK=$CPUS_PER_TASK
    # Numba and BLAS threads. With a GPU the host only steers.
    if [ "$BACKEND" = host ]; then
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SITE_CORES_PER_RANK:-$CPUS_PER_TASK}}
    else
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        # MPI carries the control messages between hosts, NCCL the data between GPUs.
        export MPICH_GPU_SUPPORT_ENABLED=${MPICH_GPU_SUPPORT_ENABLED:-0}
        export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-${TMPDIR:-/tmp}/cupy-${USER:-$UID}}
        site_gpu_environment
    fi
    # Parallel file systems often lack locks; compiled kernels belong on the node's own disk.
    export HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-FALSE}
    export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-${TMPDIR:-/tmp}/numba-${USER:-$UID}}
    site_environment

    echo "site $HPC_ALPA_SITE, backend $BACKEND, $NODES nodes x $RANKS_PER_NODE ranks x $CPUS_PER_TASK cpus"
    echo "python $(command -v "$PYTHON" || true), out $OUT, costs $DB"
}

# Fills CHOICES with the cluster, the plan and the costs that the variables name; what the program's
# arguments $@ name wins. Costs are never guessed.
choose() {
    CHOICES=()
    local given=" $* "
    if [[ -n "${HPC_ALPA_CLUSTER:-}" && "$given" != *' --cluster'[\ =]* ]]; then
        CHOICES+=(--cluster "$HPC_ALPA_CLUSTER")
    fi
    if [[ -n "${HPC_ALPA_PLAN:-}" && "$given" != *' --plan'[\ =]* ]]; then
        [ -f "$HPC_ALPA_PLAN" ] || die "HPC_ALPA_PLAN names $HPC_ALPA_PLAN, which does not exist"
        CHOICES+=(--plan "$HPC_ALPA_PLAN")
    fi
    if [[ "$given" != *' --costs'[\ =]* && "$given" != *' --analytic '* ]]; then
        [ -f "$DB" ] ||
            die "no cost database at $DB: run profile.sbatch first, set HPC_ALPA_DB, or add --analytic"
        CHOICES+=(--costs "$DB")
    fi
}

# Fills COMMAND with the launcher's command line for $1 ranks.
launcher() {
    local ranks=$1 nodes per_node
    per_node=$((ranks < RANKS_PER_NODE ? ranks : RANKS_PER_NODE))
    nodes=$(((ranks + per_node - 1) / per_node))
    local more=()
    read -ra more <<< "${HPC_ALPA_SRUN:-}"
    if [ "$SITE_SCHEDULER" = pbs ]; then
        COMMAND=(mpiexec -n "$ranks" --ppn "$per_node")
    else
        # One dead rank ends the step at once; ranks that linger after the first good end get a minute.
        COMMAND=(srun --nodes="$nodes" --ntasks="$ranks" --ntasks-per-node="$per_node"
            --kill-on-bad-exit=1 --wait=60)
    fi
    COMMAND+=("${SITE_LAUNCH[@]}" "${more[@]}")
    if [ "$BACKEND" = cuda ]; then COMMAND+=("${SITE_GPU_PREFIX[@]}"); fi
}

launch() {
    local ranks=$RANKS
    if [ "$1" = -n ]; then ranks=$2 && shift 2; fi
    local COMMAND
    launcher "$ranks"
    run_step "${COMMAND[@]}" "$@"
}

alone() {
    # Through the launcher too: on some machines the batch shell is not on a compute node.
    launch -n 1 "$@"
}

# Run a step in the background, so that the shell can act on the stop signal while it waits.
STOPPED=no
run_step() {
    { printf '+' && printf ' %q' "$@" && printf '\n'; } >&2
    if [ -n "${HPC_ALPA_DRY_RUN:-}" ]; then return 0; fi
    "$@" &
    local step=$! code=0
    while true; do
        wait "$step" && code=0 || code=$?
        # `wait` also returns when a trapped signal arrives; the step then lives on.
        kill -0 "$step" 2>/dev/null || return "$code"
    done
}

# ---- the end of the time limit --------------------------------------------------------------------

# The scripts ask for --signal=B:USR1@300: the batch shell alone is told, and passes SIGTERM to the ranks,
# whose program may save its state and end. (SIGTERM to srun itself would end the step at once.)
on_time_limit() {
    STOPPED=yes
    echo "Near the time limit: SIGTERM to the ranks."
    if [ "$SITE_SCHEDULER" = slurm ]; then scancel --signal=TERM "$JOB_ID"; fi
}

finish() {
    local code=$1 restarts=${HPC_ALPA_RESTARTS:-${SLURM_RESTART_COUNT:-0}}
    shift
    if [ "$STOPPED" = no ] || [ "${HPC_ALPA_MAX_RESTARTS:-0}" -eq 0 ]; then exit "$code"; fi
    if [ "$restarts" -ge "$HPC_ALPA_MAX_RESTARTS" ]; then
        echo "Restarted $restarts times, as often as HPC_ALPA_MAX_RESTARTS allows. The job ends here."
        exit "$code"
    fi
    if [ "$SITE_SCHEDULER" != slurm ]; then
        echo "No restart on $SITE_SCHEDULER: submit the job again by hand."
        exit "$code"
    fi
    echo "Restart $((restarts + 1)) of $HPC_ALPA_MAX_RESTARTS by $SITE_RESTART."
    "$SITE_RESTART" "$@"
    exit 0
}

requeue() {
    scontrol requeue "$JOB_ID"
    sleep 60  # Slurm ends this shell
}

# Where requeueing is switched off: the same job again, when this one has ended.
successor() {
    local limit log
    limit=$(squeue --noheader --jobs="$JOB_ID" --format=%l)
    log=$(scontrol show job --oneliner "$JOB_ID" | sed -n 's/.* StdOut=\([^ ]*\).*/\1/p')
    HPC_ALPA_RESTARTS=$((${HPC_ALPA_RESTARTS:-0} + 1)) HPC_ALPA_OUT=$OUT sbatch \
        --dependency="afterany:$JOB_ID" --time="$limit" --job-name="$JOB_NAME" \
        ${log:+--output="$log"} \
        --nodes="$NODES" --ntasks-per-node="$RANKS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" \
        ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} "${SITE_SUBMIT[@]}" \
        ${SLURM_JOB_PARTITION:+--partition="$SLURM_JOB_PARTITION"} \
        ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"} \
        "$HPC_ALPA_JOBSCRIPTS/$JOB.sbatch" "$@"
}

# ---- start ----------------------------------------------------------------------------------------

# start NAME: what every script does first. NAME is its own, without .sbatch.
start() {
    JOB=$1
    load_site "$HPC_ALPA_JOBSCRIPTS"
    cd "${SLURM_SUBMIT_DIR:-${PBS_O_WORKDIR:-$PWD}}" || die 'the folder of the submission is gone'
    job_environment
    trap on_time_limit USR1
}
