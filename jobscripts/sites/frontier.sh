# shellcheck shell=bash disable=SC2034
# Frontier (OLCF): 4 MI250X = 8 GCD, 64 cores of which 56 are for jobs, Slingshot.
# The GPU backend is CUDA; here the host backend runs, one rank per GCD's share of the cores.
# Add --account=PROJECT.
# Source: WarpX Tools/machines/frontier-olcf (submit.sh): 8 tasks of 7 cores per node.
SITE_BACKEND=host
SITE_RANKS_PER_NODE=8
SITE_CPUS_PER_TASK=7
SITE_LAUNCH=(--cpu-bind=cores)
