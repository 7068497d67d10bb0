# shellcheck shell=bash disable=SC2034
# Leonardo Booster (CINECA): 4 A100-64, 32 Ice Lake cores, 2 dual-port HDR100.
# Add --account=PROJECT. QOS: boost_qos_dbg (30 minutes), boost_qos_lprod (long).
# Source: WarpX Tools/machines/leonardo-cineca/job.sh (2026-07-01).
SITE_RANKS_PER_NODE=4
SITE_CPUS_PER_TASK=8
SITE_SUBMIT=(--partition=boost_usr_prod --ntasks-per-socket=4 --mem=494000)
# Not the source's --gpus-per-task=1: a task that sees one GPU cannot reach its peers by CUDA IPC.
SITE_GPU_SUBMIT=(--gpus-per-node=4 --gres=gpu:4)
SITE_LAUNCH=(--cpu-bind=cores)
SITE_GPU_LAUNCH=(--gpu-bind=none)
