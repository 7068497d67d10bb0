"""Bodies for one element, plain Python, compiled by Numba for the CPU and for CUDA.

They contain no float literal but small integers: a literal is float64 to Numba and would drag a
float32 kernel into float64. Constants arrive as arguments of the kernel's own type.
"""
