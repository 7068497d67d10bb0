# shellcheck shell=bash disable=SC2034
# Perlmutter (NERSC): 4 A100, one EPYC 7763 (64 cores, 128 hardware threads), Slingshot.
# Add --account=PROJECT_g (GPU projects end in _g). 80 GB GPUs: --constraint='gpu&hbm80g'.
# mpi4py on the site's MPI: MPICC="cc -target-accel=nvidia80 -shared" pip install --no-binary mpi4py mpi4py
# Sources: WarpX Tools/machines/perlmutter-nersc/perlmutter_gpu.sbatch (2026-07-01) [W];
#          NERSC/sc24-dl-tutorial submit_pm.sh (2025-02-05) [N].
SITE_RANKS_PER_NODE=4                                   # [W]
SITE_CPUS_PER_TASK=32                                   # [W] hardware threads
SITE_CORES_PER_RANK=16                                  # [W] 16 physical cores
SITE_SUBMIT=(--constraint=gpu --qos=regular --exclusive)  # [W]
SITE_GPU_SUBMIT=(--gpus-per-node=4)                     # [W]
SITE_LAUNCH=(--cpu-bind=cores)                          # [W]
SITE_GPU_LAUNCH=(--gpu-bind=none)                       # [W, N] a bound GPU hides its peers from NCCL
# [W] GPUs are numbered against the local ranks. All four stay visible, in the order of the ranks.
SITE_GPU_PREFIX=(env "CUDA_VISIBLE_DEVICES=3,2,1,0")
site_gpu_environment() {
    export MPICH_OFI_NIC_POLICY=${MPICH_OFI_NIC_POLICY:-GPU}              # [W]
    export FI_MR_CACHE_MONITOR=${FI_MR_CACHE_MONITOR:-userfaultfd}        # [N]
}
