"""The compiled part of `messages`: one pass over the nodes, the bound, objectives, and stars.

Import it late: only what is not solved at once pays for Numba. All kernels are in this file, since
Numba's cache on disk looks at the time of the file that a kernel is in, not of those that it calls.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np

from hpc_alpa.plan.solve.problem import FloatArray, IntArray

F = TypeVar("F", bound=Callable[..., Any])
_compiled: Callable[[F], F] = numba.njit(cache=True)


class Pairs(NamedTuple):
    """Pairs laid out flat.

    Args:
        ends: nodes [pair, 2]; the first is the earlier one.
        table: seconds [choice of the first, of the second], end to end.
        first: entry of each pair in `table`.
        message: of each pair, its first message: to the first node, and then to the second.
        of, start: pairs of each node.
    """

    ends: IntArray
    table: FloatArray
    first: IntArray
    message: IntArray
    of: IntArray
    start: IntArray


class Stars(NamedTuple):
    """Stars laid out flat; a port is a node of a star, the first one that of its producer.

    Args:
        table: conversion [made, needed], end to end; `turned`: [needed, made].
        first: entry of each star in both.
        sizes: [star, (classes made, classes needed)].
        ports: first port of each star, and the number of ports.
        star, node: of each port.
        least, most: of the nodes at the star's other ports, for each port.
        classes: of each choice at each port, end to end, and so are the messages to the ports.
        message: first of both, for each port.
        of, start: ports of each node.
    """

    table: FloatArray
    turned: FloatArray
    first: IntArray
    sizes: IntArray
    ports: IntArray
    star: IntArray
    node: IntArray
    least: IntArray
    most: IntArray
    classes: IntArray
    message: IntArray
    of: IntArray
    start: IntArray


class Room(NamedTuple):
    """What `rest_of_star` works in: costs of the classes made and needed, sums, F and g of `stars`.

    Args:
        made: [made class]; `needed`: [reader, needed class].
        sums: of `needed`, [set of readers, needed class].
        best, group: F and g [set of readers, made class].
        out: the result.
    """

    made: FloatArray
    needed: FloatArray
    sums: FloatArray
    best: FloatArray
    group: FloatArray
    out: FloatArray

    @classmethod
    def of(cls, stars: Stars) -> "Room":
        """Enough for the largest star."""
        made, needed = stars.sizes.max(axis=0, initial=1).tolist()
        readers = int(np.diff(stars.ports).max(initial=1)) - 1
        shapes = (made, (readers, needed), (2**readers, needed), (2**readers, made))
        return cls(*(np.empty(shape) for shape in (*shapes, shapes[-1], max(made, needed))))


@_compiled
def rest_of_star(
    stars: Any, message: Any, node: Any, start: Any, port: int, fixed: int, choices: Any, room: Any
) -> None:
    """Least of the star less its other messages, for each class at the port, into `room.out`.

    The nodes before this one take their `choices` if `fixed` is 1, those behind it if it is -1.
    """
    made, needed, sums, best, group, out = room
    s, own = stars.star[port], stars.node[port]
    begin, num_readers = stars.ports[s], stars.ports[s + 1] - stars.ports[s] - 1
    num_made, num_needed = stars.sizes[s, 0], stars.sizes[s, 1]
    for p in range(num_made):
        made[p] = 0.0 if port == begin else np.inf
    for u in range(num_readers):
        for t in range(num_needed):
            needed[u, t] = np.inf
    for q in range(begin, begin + num_readers + 1):
        if q == port:
            continue
        v, m = stars.node[q], stars.message[q]
        some, every = 0, start[v + 1] - start[v]
        if (fixed == 1 and v < own) or (fixed == -1 and v > own):
            some, every = choices[v], choices[v] + 1
        for k in range(some, every):
            if node[start[v] + k] < np.inf:
                t = stars.classes[m + k]
                if q == begin:
                    made[t] = min(made[t], -message[m + k])
                else:
                    needed[q - begin - 1, t] = min(needed[q - begin - 1, t], -message[m + k])
    skip = 1 << (port - begin - 1) if port > begin else 0
    everyone = (1 << num_readers) - 1 - skip
    entry = stars.first[s]
    for t in range(num_needed):
        sums[0, t] = 0.0
    for p in range(num_made):
        best[0, p] = made[p]
    for readers in range(1, everyone + 1):
        if readers & skip:
            continue
        low, last = readers & -readers, 0
        while low >> (last + 1):
            last += 1
        rest = readers ^ low
        for p in range(num_made):
            group[readers, p] = best[readers, p] = np.inf
        for t in range(num_needed):
            total = sums[rest, t] + needed[last, t]
            sums[readers, t] = total
            if total < np.inf:
                row = entry + t * num_made
                for p in range(num_made):
                    group[readers, p] = min(group[readers, p], total + stars.turned[row + p])
        part = rest
        while True:
            for p in range(num_made):
                seconds = group[part | low, p] + best[rest ^ part, p]
                best[readers, p] = min(best[readers, p], seconds)
            if part == 0:
                break
            part = (part - 1) & rest
    if port == begin:
        for p in range(num_made):
            out[p] = best[everyone, p]
        return
    for t in range(num_needed):
        out[t] = np.inf
    part = everyone
    while True:
        for p in range(num_made):
            less = best[everyone ^ part, p]
            if less < np.inf:
                row = entry + p * num_needed
                for t in range(num_needed):
                    out[t] = min(out[t], less + stars.table[row + t] + sums[part, t])
        if part == 0:
            break
        part = (part - 1) & everyone


@_compiled
def one_pass(
    node: Any,
    start: Any,
    pairs: Any,
    message: Any,
    stars: Any,
    star_message: Any,
    room: Any,
    forward: bool,
    choices: Any,
    choose: bool,
) -> None:
    """Nodes in order, or against it. A choice that no choice of a neighbour allows becomes inf."""
    ends, table, first, message_first = pairs.ends, pairs.table, pairs.first, pairs.message
    num_nodes = len(start) - 1
    most = 1
    for v in range(num_nodes):
        most = max(most, start[v + 1] - start[v])
    total, under = np.empty(most), np.empty(most)
    for step in range(num_nodes):
        v = step if forward else num_nodes - 1 - step
        s = start[v]
        size = start[v + 1] - s
        behind = ahead = 0
        for k in range(size):
            total[k] = node[s + k]
        for i in range(pairs.start[v], pairs.start[v + 1]):
            e = pairs.of[i]
            a, b = ends[e, 0], ends[e, 1]
            size_a, size_b = start[a + 1] - start[a], start[b + 1] - start[b]
            to_a = message_first[e]
            to_b = to_a + size_a
            second = b == v
            mine = to_b if second else to_a
            if second == forward:
                behind += 1
                for k in range(size):
                    message[mine + k] = np.inf
                if second:
                    for p in range(size_a):
                        if node[start[a] + p] == np.inf:
                            continue
                        row = first[e] + p * size_b
                        less = message[to_a + p]
                        for t in range(size_b):
                            message[mine + t] = min(message[mine + t], table[row + t] - less)
                else:
                    for p in range(size_a):
                        row = first[e] + p * size_b
                        for t in range(size_b):
                            if node[start[b] + t] < np.inf:
                                seconds = table[row + t] - message[to_b + t]
                                message[mine + p] = min(message[mine + p], seconds)
                for k in range(size):
                    if message[mine + k] == np.inf:
                        node[s + k] = np.inf
                        message[mine + k] = 0.0
            else:
                ahead += 1
            for k in range(size):
                total[k] += message[mine + k]
        for i in range(stars.start[v], stars.start[v + 1]):
            q = stars.of[i]
            mine = stars.message[q]
            if stars.least[q] < v if forward else stars.most[q] > v:
                behind += 1
                rest_of_star(stars, star_message, node, start, q, 0, choices, room)
                for k in range(size):
                    least = room.out[stars.classes[mine + k]]
                    if least == np.inf:
                        node[s + k] = np.inf
                    star_message[mine + k] = least if least < np.inf else 0.0
            if stars.most[q] > v if forward else stars.least[q] < v:
                ahead += 1
            for k in range(size):
                total[k] += star_message[mine + k]
        for k in range(size):
            if node[s + k] == np.inf:
                total[k] = np.inf
        if choose:
            for k in range(size):
                under[k] = total[k]
            for i in range(pairs.start[v], pairs.start[v + 1]):
                e = pairs.of[i]
                a, b = ends[e, 0], ends[e, 1]
                size_a, size_b = start[a + 1] - start[a], start[b + 1] - start[b]
                if b == v and forward:
                    row, mine = first[e] + choices[a] * size_b, message_first[e] + size_a
                    for k in range(size):
                        under[k] += table[row + k] - message[mine + k]
                elif a == v and not forward:
                    row, mine = first[e] + choices[b], message_first[e]
                    for k in range(size):
                        under[k] += table[row + k * size_b] - message[mine + k]
            for i in range(stars.start[v], stars.start[v + 1]):
                q = stars.of[i]
                if stars.least[q] < v if forward else stars.most[q] > v:
                    fixed, mine = 1 if forward else -1, stars.message[q]
                    rest_of_star(stars, star_message, node, start, q, fixed, choices, room)
                    for k in range(size):
                        under[k] += room.out[stars.classes[mine + k]] - star_message[mine + k]
            best, chosen = np.inf, 0
            for k in range(size):
                if under[k] < best:
                    best, chosen = under[k], k
            choices[v] = chosen
        if not ahead:
            continue
        share = 1.0 / max(behind, ahead)
        for i in range(pairs.start[v], pairs.start[v + 1]):
            e = pairs.of[i]
            a, b = ends[e, 0], ends[e, 1]
            if (b == v) != forward:
                mine = message_first[e] + (start[a + 1] - start[a] if b == v else 0)
                for k in range(size):
                    if total[k] < np.inf:
                        message[mine + k] -= share * total[k]
        for i in range(stars.start[v], stars.start[v + 1]):
            q = stars.of[i]
            if stars.most[q] > v if forward else stars.least[q] < v:
                mine = stars.message[q]
                for k in range(size):
                    if total[k] < np.inf:
                        star_message[mine + k] -= share * total[k]


@_compiled
def bound_of(
    node: Any,
    start: Any,
    pairs: Any,
    message: Any,
    stars: Any,
    star_message: Any,
    room: Any,
    above: Any,
) -> float:
    """The sum of the least entries; `above` gets what each choice adds to that of its factors."""
    ends, table, first, message_first = pairs.ends, pairs.table, pairs.first, pairs.message
    bound = 0.0
    for k in range(len(node)):
        above[k] = node[k]
    for e in range(len(ends)):
        a, b = ends[e, 0], ends[e, 1]
        size_a = start[a + 1] - start[a]
        for p in range(size_a):
            above[start[a] + p] += message[message_first[e] + p]
        for t in range(start[b + 1] - start[b]):
            above[start[b] + t] += message[message_first[e] + size_a + t]
    for q in range(len(stars.node)):
        v = stars.node[q]
        for k in range(start[v + 1] - start[v]):
            above[start[v] + k] += star_message[stars.message[q] + k]
    for v in range(len(start) - 1):
        least = np.inf
        for k in range(start[v], start[v + 1]):
            least = min(least, above[k])
        if least == np.inf:
            return np.inf
        bound += least
        for k in range(start[v], start[v + 1]):
            above[k] -= least
    for e in range(len(ends)):
        a, b = ends[e, 0], ends[e, 1]
        size_a, size_b = start[a + 1] - start[a], start[b + 1] - start[b]
        to_a = message_first[e]
        rows, columns = np.full(size_a, np.inf), np.full(size_b, np.inf)
        for p in range(size_a):
            if node[start[a] + p] == np.inf:
                continue
            for t in range(size_b):
                if node[start[b] + t] == np.inf:
                    continue
                entry = table[first[e] + p * size_b + t]
                entry -= message[to_a + p] + message[to_a + size_a + t]
                rows[p], columns[t] = min(rows[p], entry), min(columns[t], entry)
        least = np.inf
        for p in range(size_a):
            least = min(least, rows[p])
        if least == np.inf:
            return np.inf
        bound += least
        for p in range(size_a):
            above[start[a] + p] += rows[p] - least
        for t in range(size_b):
            above[start[b] + t] += columns[t] - least
    unused = np.zeros(1, np.int64)
    for q in range(len(stars.node)):
        v, mine = stars.node[q], stars.message[q]
        rest_of_star(stars, star_message, node, start, q, 0, unused, room)
        least = np.inf
        for k in range(start[v + 1] - start[v]):
            if node[start[v] + k] < np.inf:
                least = min(least, room.out[stars.classes[mine + k]] - star_message[mine + k])
        if least == np.inf:
            return np.inf
        if q == stars.ports[stars.star[q]]:
            bound += least
        for k in range(start[v + 1] - start[v]):
            entry = room.out[stars.classes[mine + k]] - star_message[mine + k]
            above[start[v] + k] += entry - least
    return bound


@_compiled
def objective_of(node: Any, start: Any, pairs: Any, stars: Any, choices: Any) -> float:
    """Seconds of one choice per node."""
    total = 0.0
    for v in range(len(start) - 1):
        total += node[start[v] + choices[v]]
    for e in range(len(pairs.ends)):
        a, b = pairs.ends[e, 0], pairs.ends[e, 1]
        size_b = start[b + 1] - start[b]
        total += pairs.table[pairs.first[e] + choices[a] * size_b + choices[b]]
    for s in range(len(stars.first)):
        begin, end = stars.ports[s], stars.ports[s + 1]
        p = stars.classes[stars.message[begin] + choices[stars.node[begin]]]
        for q in range(begin + 1, end):
            t = stars.classes[stars.message[q] + choices[stars.node[q]]]
            paid = False
            for r in range(begin + 1, q):
                paid |= stars.classes[stars.message[r] + choices[stars.node[r]]] == t
            if not paid:
                total += stars.table[stars.first[s] + p * stars.sizes[s, 1] + t]
    return total


@_compiled
def apply(
    node: Any, start: Any, pairs: Any, table: Any, message: Any, stars: Any, star_message: Any
) -> None:
    """Write the messages into the costs, and those of pairs into their tables."""
    for e in range(len(pairs.ends)):
        a, b = pairs.ends[e, 0], pairs.ends[e, 1]
        size_a, size_b = start[a + 1] - start[a], start[b + 1] - start[b]
        to_a = pairs.message[e]
        to_b = to_a + size_a
        for t in range(size_b):
            node[start[b] + t] += message[to_b + t]
        for p in range(size_a):
            node[start[a] + p] += message[to_a + p]
            for t in range(size_b):
                table[pairs.first[e] + p * size_b + t] -= message[to_a + p] + message[to_b + t]
    for q in range(len(stars.node)):
        v = stars.node[q]
        for k in range(start[v + 1] - start[v]):
            node[start[v] + k] += star_message[stars.message[q] + k]
