# shellcheck shell=bash disable=SC2034
# A Slurm without GPUs, such as the private one of tests/slurm: host backend, MPICH from PyPI.
SITE_BACKEND=host
SITE_RANKS_PER_NODE=2
SITE_CPUS_PER_TASK=1
# MPICH's own launcher protocol; Slurm's other plugins do not know it.
SITE_LAUNCH=(--mpi=pmi2)
