# shellcheck shell=bash disable=SC2034
# Alps (CSCS): 4 GH200 (72 cores each), Slingshot.
# Add --account=PROJECT, and --uenv or --environment for the software. In a container:
# HPC_ALPA_SRUN='--mpi=pmix --environment=FILE.toml' with PMIX_MCA_psec=^munge.
# Source: cscs-docs docs/running/slurm.md and docs/software/communication/nccl.md (2026-08-20).
SITE_RANKS_PER_NODE=4
SITE_CPUS_PER_TASK=72
SITE_SUBMIT=(--constraint='thp_never&nvidia_vboost_enabled')
# Not the source's --gpus-per-task=1, which leaves each rank one visible GPU and no CUDA IPC; without it
# all ranks see all four (slurm.md, section Affinity) and take the one of their local rank.
SITE_GPU_SUBMIT=(--gpus-per-node=4)
SITE_LAUNCH=(--cpu-bind=cores)
SITE_GPU_LAUNCH=(--gpu-bind=none)
# nccl.md, block nccl_env_vars. NCCL_NET_PLUGIN=ofi must not be set with uenv.
site_gpu_environment() {
    # Fails loudly instead of falling back to TCP; not for one node.
    if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then export NCCL_NET="${NCCL_NET:-AWS Libfabric}"; fi
    export NCCL_NET_GDR_LEVEL=${NCCL_NET_GDR_LEVEL:-PHB}
    export NCCL_CROSS_NIC=${NCCL_CROSS_NIC:-1}
    export NCCL_PROTO=${NCCL_PROTO:-^LL128}
    export NCCL_NCHANNELS_PER_NET_PEER=${NCCL_NCHANNELS_PER_NET_PEER:-4}  # many messages: pipelines
    export FI_CXI_DEFAULT_CQ_SIZE=${FI_CXI_DEFAULT_CQ_SIZE:-131072}
    export FI_CXI_DEFAULT_TX_SIZE=${FI_CXI_DEFAULT_TX_SIZE:-16384}
    export FI_CXI_DISABLE_HOST_REGISTER=${FI_CXI_DISABLE_HOST_REGISTER:-1}
    export FI_CXI_RX_MATCH_MODE=${FI_CXI_RX_MATCH_MODE:-software}
    export FI_MR_CACHE_MONITOR=${FI_MR_CACHE_MONITOR:-userfaultfd}
    # If it hangs: FI_CXI_RDZV_GET_MIN=0 FI_CXI_RDZV_THRESHOLD=0 FI_CXI_RDZV_EAGER_SIZE=0
}
