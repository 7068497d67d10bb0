"""Where a sweep runs: the ranks, their hosts, and the host's loads that are worth measuring."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from threadpoolctl import ThreadpoolController

from hpc_alpa.comm import Communicator
from hpc_alpa.cost import Load
from hpc_alpa.profiler.clock import CLOCKS, Now


@dataclass(frozen=True)
class Setting:
    """What every measurement is handed.

    `ranks_by_host` lists the ranks of each host; `cores` are a host's usable cores; `backend` makes
    and computes with arrays; `seconds` is spent on one point.
    """

    world: Communicator
    ranks_by_host: tuple[tuple[int, ...], ...]
    cores: int
    backend: Any
    seconds: float = 0.02
    blas: ThreadpoolController = field(default_factory=ThreadpoolController)

    @property
    def oversubscribed(self) -> bool:
        """Whether some host has more ranks than cores."""
        return max(map(len, self.ranks_by_host)) > self.cores

    @cached_property
    def loads(self) -> tuple[Load, ...]:
        """Loads of the first host, the one that training will have first: all ranks, one rank, and
        powers of two between."""
        ranks = len(self.ranks_by_host[0])
        numbers = [ranks, 1, *(2**e for e in range(1, ranks.bit_length()) if 2**e < ranks)]
        return tuple(dict.fromkeys(Load.of(n, self.cores) for n in numbers))

    def clock_name(self, load: Load) -> str:
        """Which clock times compute under `load`."""
        return "cpu" if self.oversubscribed and load.threads == 1 else "wall"

    def now(self, load: Load) -> Now:
        return CLOCKS[self.clock_name(load)]

    @contextmanager
    def limited(self, load: Load) -> Iterator[None]:
        """BLAS with the load's number of threads."""
        with self.blas.limit(limits=load.threads, user_api="blas"):
            yield
