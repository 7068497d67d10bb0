# shellcheck shell=bash disable=SC2034
# JUWELS Booster (JSC): 4 A100-40, 2 x 24 cores EPYC 7402 in NPS-4, 4 HDR200.
# Add --account=PROJECT.
# Sources: WarpX Tools/machines/juwels-jsc (2026-07-01) [W]; FZJ-JSC/tutorial-multi-gpu [T]; JSC pages [J].
SITE_RANKS_PER_NODE=4
SITE_CPUS_PER_TASK=12                                   # [J]
SITE_SUBMIT=(--partition=booster)                       # [W]
SITE_GPU_SUBMIT=(--gres=gpu:4)                          # [W]
# [J] GPUs 0..3 hang on NUMA domains 3, 1, 7, 5.
SITE_LAUNCH=("--cpu-bind=map_ldom:3,1,7,5")
SITE_GPU_LAUNCH=(--gpu-bind=none)
site_gpu_environment() {
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-ib0}                  # [J]
    export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-50}                         # [J]
    export UCX_RC_TIMEOUT=${UCX_RC_TIMEOUT:-4s}                           # [J]
}
