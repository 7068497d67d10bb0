"""Abstract solvers: arrays in, a proven choice out. No graph, mesh or cost model is known here.

`problem` and `highs` (integer program), `eliminate` (exact elimination, tables over kept nodes),
`enumerate` (brute force, for tests), `layers` (clustering), `stages` (slicing).
"""
