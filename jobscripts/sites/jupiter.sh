# shellcheck shell=bash disable=SC2034
# JUPITER Booster (JSC): 4 GH200, 288 cores, 4 NDR200.
# Add --account=PROJECT.
# Sources: apps.fz-juelich.de/jsc/hps/jupiter/{configuration,batchsystem}.html [J];
#          PIConGPU etc/picongpu/jedi-jsc/gh200.tpl (2024-10-24) [P].
SITE_RANKS_PER_NODE=4
SITE_CPUS_PER_TASK=72                                   # inferred: 288 cores, 4 superchips
SITE_SUBMIT=(--partition=booster --exclusive)           # [J], [P]
SITE_GPU_SUBMIT=(--gres=gpu:4)                          # [J]
SITE_LAUNCH=(--threads-per-core=1)                      # [P]
SITE_GPU_LAUNCH=(--gpu-bind=none)
SITE_RESTART=successor                                  # [J] requeueing is switched off
site_gpu_environment() {
    export UCX_RC_TIMEOUT=${UCX_RC_TIMEOUT:-3000000us}                    # [P]
}
