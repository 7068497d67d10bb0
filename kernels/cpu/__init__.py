"""The kernels for host processors, compiled by Numba at the first call with each element type.

Compiled code is kept on disk (see `compile.py`), so the second process on a host loads it in
milliseconds.
"""
