"""How many threads a rank may use: those of its share of the host's cores."""

from __future__ import annotations


def limit_threads(count: int) -> None:
    """Limit BLAS, OpenMP and Numba to `count` threads each; a lower limit that is set stays.

    Reaches the libraries loaded so far: call it again after importing one that brings its own BLAS
    or OpenMP (SciPy does). Numba's and OpenMP's limits are those of the calling thread.
    """
    import threadpoolctl

    try:
        import numba
    except ImportError:
        pass
    else:  # first, because it may load OpenMP
        numba.set_num_threads(min(count, numba.get_num_threads()))
    for library in threadpoolctl.ThreadpoolController().lib_controllers:
        if (library.num_threads or count + 1) > count:
            library.set_num_threads(count)
