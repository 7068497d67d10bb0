"""Reductions over the threads of a block, and launch sizes."""

from typing import Any

from numba import cuda

THREADS = 256  # the most in a block; blocks are powers of two
MAX_BLOCKS = 1024  # of a grid-stride loop: enough to fill 132 processors several times


def width(length: int) -> int:
    """Threads for a row of `length` elements: the power of two in 32..THREADS that covers it."""
    threads = 32
    while threads < min(length, THREADS):
        threads *= 2
    return threads


def grid(size: int) -> int:
    """Blocks of THREADS for a grid-stride loop over `size` elements."""
    return max(1, min((size + THREADS - 1) // THREADS, MAX_BLOCKS))


@cuda.jit(device=True)
def block_sum(shared: Any, value: Any) -> Any:
    """Sum of `value` over the block, in every thread; `shared` holds one element per thread."""
    thread = cuda.threadIdx.x
    shared[thread] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if thread < half:
            shared[thread] += shared[thread + half]
        cuda.syncthreads()
        half //= 2
    total = shared[0]
    # or the next reduction would write before the last thread has read
    cuda.syncthreads()
    return total


@cuda.jit(device=True)
def block_max(shared: Any, value: Any) -> Any:
    """Largest `value` of the block, in every thread; `shared` holds one element per thread."""
    thread = cuda.threadIdx.x
    shared[thread] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if thread < half:
            shared[thread] = max(shared[thread], shared[thread + half])
        cuda.syncthreads()
        half //= 2
    top = shared[0]
    cuda.syncthreads()
    return top
