"""The whole search: graph, cluster and costs in, a plan out."""

from hpc_alpa.search.request import Request
from hpc_alpa.search.search import search

__all__ = ["Request", "search"]
