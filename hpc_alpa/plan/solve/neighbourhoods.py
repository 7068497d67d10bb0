"""Large-neighbourhood search under memory that follows time: most nodes stay, some choose again.

A neighbourhood is grown from a node along pairs, near in the order of the program first. Its nodes
choose again by `lagrange`, under what the others leave of the memory, and with the prices that the
whole program had; what is better is kept.
"""

import heapq
import time
from collections.abc import Callable

import numpy as np

from hpc_alpa.plan.solve import lagrange
from hpc_alpa.plan.solve.intervals import Intervals
from hpc_alpa.plan.solve.messages import Messages
from hpc_alpa.plan.solve.pairwise import Pairwise
from hpc_alpa.plan.solve.problem import FloatArray, IntArray

_SIZES = (40, 100, 250, 600)  # nodes of a neighbourhood
_ROUNDS = 40
_FAR = 0.3  # how much a node far from the first in the order is avoided, by chance


def improve(
    program: Pairwise,
    intervals: Intervals,
    choices: IntArray,
    prices: FloatArray,
    end: float,
    rng: np.random.Generator,
    report: Callable[[float], None] = lambda seconds: None,
) -> IntArray:
    """Choices that fit and cost no more, until `end` of `time.perf_counter()`."""
    x = choices.copy()
    free = np.flatnonzero([len(cost) > 1 for cost in program.node])
    gain = np.ones(len(_SIZES))  # seconds saved per second of work, by size, as seen lately
    while time.perf_counter() < end and len(free):
        which = int(rng.choice(len(_SIZES), p=gain / gain.sum()))
        nodes = _grow(program, int(rng.choice(free)), _SIZES[which], rng)
        begin = time.perf_counter()
        saved = _again(program, intervals, x, nodes, prices, end, rng)
        rate = saved / max(time.perf_counter() - begin, 1e-6)
        gain[which] = max(0.8 * gain[which] + 0.2 * rate, 0.02 * gain.max(), 1e-12)
        if saved:
            report(saved)
    return x


def _again(
    program: Pairwise,
    intervals: Intervals,
    x: IntArray,
    nodes: IntArray,
    prices: FloatArray,
    end: float,
    rng: np.random.Generator,
) -> float:
    """Let the nodes choose again; changes `x` and returns the seconds saved, or 0."""
    part = _part(program, nodes, x)
    messages = Messages(part, range(len(nodes)))
    before = messages.seconds(x[nodes])
    found = lagrange.search(messages, intervals.part(nodes, x), before, _ROUNDS, end, rng, prices)
    if found.choices is None or not found.seconds < before - 1e-9 * abs(before):
        return 0.0
    x[nodes] = found.choices
    return before - found.seconds


def _part(program: Pairwise, nodes: IntArray, x: IntArray) -> Pairwise:
    """The program of some nodes, with the pairs to others as costs under their choices."""
    place = {v: i for i, v in enumerate(nodes.tolist())}
    part = Pairwise([], [{} for _ in place])
    for v, i in place.items():
        cost = program.node[v]
        for u, table in program.pair[v].items():
            j = place.get(u)
            if j is None:
                cost = cost + table[:, x[u]]
            else:
                part.pair[i][j] = table
        part.node.append(cost)
    return part


def _grow(program: Pairwise, first: int, size: int, rng: np.random.Generator) -> IntArray:
    """Nodes around the first one, in order."""
    inside: set[int] = set()
    heap = [(0.0, first)]
    seen = {first}
    spread = max(1.0, _FAR * len(program.node))
    while heap and len(inside) < size:
        _, v = heapq.heappop(heap)
        inside.add(v)
        for u in program.pair[v]:
            if u not in seen and len(program.node[u]) > 1:
                seen.add(u)
                heapq.heappush(heap, (abs(u - first) / spread + rng.random(), u))
    near = first
    step = 1
    while len(inside) < min(size, len(program.node)) and step < len(program.node):
        for u in (near - step, near + step):
            if 0 <= u < len(program.node) and len(program.node[u]) > 1:
                inside.add(u)
        step += 1
    return np.array(sorted(inside), np.int64)
