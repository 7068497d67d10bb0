"""The kernels for NVIDIA GPUs, compiled by Numba CUDA; the other families run from `reference`.

Each function takes what its namesake in `cpu` takes, as device arrays (anything with
`__cuda_array_interface__`), and the stream to run on; it returns before the work is done. Each file
lists what it launches in `entry_points()`, which the compile gate turns into machine code for each
supported architecture on machines without a GPU.

Rules that a compiler does not check: one `cuda.shared.array` per source line, because Numba's
simulator takes two on one line for the same memory; no warp shuffle, which it does not have; and a
`syncthreads` is reached by all threads of a block or by none.
"""
