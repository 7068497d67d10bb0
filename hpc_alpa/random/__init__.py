"""Random values keyed by (seed, step, name, index in the whole array).

The same key gives the same values under every plan, on every number of ranks, and in a trace as on
plain arrays: nothing has a state. `name` tells values of one step apart (two layers, two names).
"""

from hpc_alpa.random.dropout import dropout
from hpc_alpa.random.values import bernoulli, bits, normal, stream_key, uniform

__all__ = ["bernoulli", "bits", "dropout", "normal", "stream_key", "uniform"]
