"""Graph to graph."""

from hpc_alpa.transform.simplify import drop_dead, merge_equal, simplify
from hpc_alpa.transform.vjp import gradient

__all__ = ["drop_dead", "gradient", "merge_equal", "simplify"]
