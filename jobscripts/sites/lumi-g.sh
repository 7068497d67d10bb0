# shellcheck shell=bash disable=SC2034
# LUMI-G (CSC): 4 MI250X = 8 GCD, 64 cores of which 63 are for jobs, Slingshot.
# The GPU backend is CUDA; here the host backend runs, one rank per GCD's share of the cores.
# Add --account=PROJECT.
# Sources: lumi-userguide docs/runjobs/scheduled-jobs/lumig-job.md [L]; WarpX Tools/machines/lumi-csc.
SITE_BACKEND=host
SITE_RANKS_PER_NODE=8                                   # [L]
SITE_CPUS_PER_TASK=6                                    # [L] first and last core of each 8 stay free
SITE_SUBMIT=(--partition=standard-g --gpus-per-node=8)  # [L] the partition wants its GPUs asked for
SITE_LAUNCH=(--cpu-bind="mask_cpu:7e000000000000,7e00000000000000,7e0000,7e000000,7e,7e00,\
7e00000000,7e0000000000")                               # [L]
