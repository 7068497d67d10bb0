# shellcheck shell=bash disable=SC2034
# MareNostrum 5 ACC (BSC): 4 H100-64, 2 x 40 Sapphire Rapids cores, 4 NDR200.
# Add --account=PROJECT. QOS acc_debug for short tests. Do not set --mem.
# Source: BSC's MareNostrum 5 user guide.
SITE_RANKS_PER_NODE=4
SITE_CPUS_PER_TASK=20                                   # the submit plugin enforces 20 cores per GPU
SITE_SUBMIT=(--partition=acc --qos=acc_ehpc)
SITE_GPU_SUBMIT=(--gres=gpu:4)
SITE_LAUNCH=(--cpu-bind=cores)
SITE_GPU_LAUNCH=(--gpu-bind=none)
site_gpu_environment() {
    export UCX_NET_DEVICES=${UCX_NET_DEVICES:-mlx5_0:1,mlx5_1:1,mlx5_4:1,mlx5_5:1}
}
