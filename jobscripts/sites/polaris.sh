# shellcheck shell=bash disable=SC2034
# Polaris (ALCF): 4 A100, 32 cores, Slingshot, PBS.
# Add -A PROJECT, and -l select=N:system=polaris, -l walltime=... for more than polaris.pbs asks.
# Sources: argonne-lcf/user-guides docs/polaris: nccl.md [N], using-gpus.md (2026-08-19) [G].
SITE_SCHEDULER=pbs
SITE_RANKS_PER_NODE=4
SITE_CPUS_PER_TASK=8
SITE_LAUNCH=(--depth=8 --cpu-bind depth)                # [G]
# [G] set_affinity_gpu_polaris.sh: GPU 3 - local rank. All four stay visible, in the order of the ranks.
SITE_GPU_PREFIX=(env "CUDA_VISIBLE_DEVICES=3,2,1,0")
# [N] 2 to 3 times faster for some programs; others hang (Megatron-DeepSpeed), and then
# HPC_ALPA_POLARIS_NCCL=no leaves NCCL's own choice.
site_gpu_environment() {
    [ "${HPC_ALPA_POLARIS_NCCL:-yes}" = yes ] || return 0
    export NCCL_NET_GDR_LEVEL=${NCCL_NET_GDR_LEVEL:-PHB}
    export NCCL_CROSS_NIC=${NCCL_CROSS_NIC:-1}
    export NCCL_COLLNET_ENABLE=${NCCL_COLLNET_ENABLE:-1}
    export NCCL_NET="${NCCL_NET:-AWS Libfabric}"
    export FI_CXI_DISABLE_HOST_REGISTER=${FI_CXI_DISABLE_HOST_REGISTER:-1}
    export FI_MR_CACHE_MONITOR=${FI_MR_CACHE_MONITOR:-userfaultfd}
    export FI_CXI_DEFAULT_CQ_SIZE=${FI_CXI_DEFAULT_CQ_SIZE:-131072}
    local libraries=/soft/libraries/aws-ofi-nccl/v1.9.1-aws/lib:/soft/libraries/hwloc/lib
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}
