"""The rule language: how an operator's dims relate, as factors.

    b i k+, b k+ j -> b i j        a matrix product: split along k, the output is a partial sum
    b k> -> b                      split along k, the output is a partial max

Letters are factors; `.` is a 0-d operand, an empty side is no operand, `1` a unit dim, `(a b)` one
dim made of two factors. Marks: `k+` a partial sum, `k>` a partial max, `k^` may not be split, `k@`
the kernel is told where its tile starts, `k!` a fused operator that runs in phases when split
along k.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

from hpc_alpa.ir.types import TensorType

Dim = tuple[str, ...]
ALL = ((0,),)  # the operand sets of an operator that is linear, or increasing, in its only operand
LETTERS = "abcdefgmnopqruwxyz"
_TOKEN = re.compile(r"\(|\)|[a-z]\w*[+>^@~!]*|1|\.")


@dataclass(frozen=True)
class Rule:
    """A rule bound to shapes.

    Attributes:
        inputs, output: for each operand and dim, its factors, major first.
        marks: marks of each factor, `{"k": "+@"}`.
        sizes: extent of each factor.
        sums: sets of operands; one that is partial along an axis makes the output partial there.
        maxima: the same for partial maxima.
    """

    text: str
    inputs: tuple[tuple[Dim, ...], ...]
    output: tuple[Dim, ...]
    marks: Mapping[str, str]
    sizes: Mapping[str, int]
    sums: tuple[tuple[int, ...], ...] = ()
    maxima: tuple[tuple[int, ...], ...] = ()

    def marked(self, factor: str, mark: str) -> bool:
        """Whether the factor carries the mark."""
        return mark in self.marks[factor]

    @cached_property
    def output_factors(self) -> frozenset[str]:
        return frozenset(f for dim in self.output for f in dim)

    @cached_property
    def located(self) -> tuple[str, ...]:
        """Factors that only inputs have and whose tile's start the kernel needs."""
        return tuple(f for f in self.sizes if self.marked(f, "@") and f not in self.output_factors)

    def __str__(self) -> str:
        return self.text


def names(count: int) -> list[str]:
    """The first factor letters."""
    return list(LETTERS[:count])


def side(factors: Iterable[str]) -> str:
    """One operand's text; `.` when it has no dims."""
    return " ".join(factors) or "."


@cache
def parse_rule(
    text: str,
) -> tuple[tuple[tuple[Dim, ...], ...], tuple[Dim, ...], Mapping[str, str]]:
    """The operands' dims, the output's dims, and the marks of each factor."""
    marks: dict[str, str] = {}

    def operand(part: str) -> tuple[Dim, ...]:
        dims: list[Dim] = []
        group: list[str] | None = None
        for token in _TOKEN.findall(part):
            if token == "(":
                group = []
            elif token == ")":
                dims.append(tuple(group or ()))
                group = None
            elif token == "1":
                dims.append(())
            elif token != ".":
                factor = token.rstrip("+>^@~!")
                marks[factor] = marks.get(factor, "") + token[len(factor) :]
                if group is None:
                    dims.append((factor,))
                else:
                    group.append(factor)
        return tuple(dims)

    left, right = text.split("->")
    inputs = tuple(operand(p) for p in left.split(",")) if left.strip() else ()
    return inputs, operand(right), marks


@lru_cache(maxsize=65536)
def bind(
    text: str,
    inputs: tuple[TensorType, ...],
    output: TensorType,
    sums: tuple[tuple[int, ...], ...] = (),
    maxima: tuple[tuple[int, ...], ...] = (),
    sizes: tuple[tuple[str, int], ...] = (),
) -> Rule:
    """Give a rule's factors their extents.

    Args:
        sums, maxima: see `Rule`.
        sizes: extents of the factors that shapes do not give, those of a group.
    """
    operands, out, marks = parse_rule(text)
    found = dict(sizes)
    shapes = [t.shape for t in inputs] + [output.shape]
    every = [*operands, out]
    assert [len(d) for d in every] == [len(s) for s in shapes], (text, inputs, output)
    for dims, shape in zip(every, shapes, strict=True):
        for dim, extent in zip(dims, shape, strict=True):
            if len(dim) == 1:
                assert found.setdefault(dim[0], extent) == extent, (text, inputs, output)
    for dims, shape in zip(every, shapes, strict=True):
        for dim, extent in zip(dims, shape, strict=True):
            assert math.prod(found[f] for f in dim) == extent, (text, inputs, output)
    produced = {f for dim in out for f in dim}
    for factor in found:
        kinds = set(marks[factor])
        assert factor in produced or kinds & set("+>^!"), (
            f"{text}: what does a split of {factor} mean?"
        )
        assert factor not in produced or not kinds & set("+>"), f"{text}: {factor} is in the output"
    # A bool has no sum.
    sums = tuple(s for s in sums if all(inputs[k].dtype != "bool" for k in s))
    return Rule(text, operands, out, marks, found, sums, maxima)


def reshape_rule(
    source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[str, tuple[tuple[str, int], ...]]:
    """Text and sizes of a reshape's factors: the common refinement of the prefix products.

    Where the products do not divide each other the leading greatest common divisor may be split and
    the rest may not.
    """
    if 0 in source:
        # Nothing to split, and no products to refine.
        extents = (*source, *target)
        numbered = [f"k{n + 1}" for n in range(len(extents))]
        marked = [f"{f}^" for f in numbered]
        text = side(marked[: len(source)]) + " -> " + side(marked[len(source) :])
        return text, tuple(zip(numbered, extents, strict=True))
    sizes: list[tuple[str, int]] = []
    left: list[list[str]] = [[] for _ in source]
    right: list[list[str]] = [[] for _ in target]

    def new(extent: int, mark: str = "") -> str:
        sizes.append((f"k{len(sizes) + 1}", extent))
        return sizes[-1][0] + mark

    for a, b in _segments(source, target):
        a = [d for d in a if source[d] > 1]
        b = [d for d in b if target[d] > 1]
        if not a:
            continue
        cuts = sorted({1, *_prefix(source, a), *_prefix(target, b)})
        if all(y % x == 0 for x, y in zip(cuts, cuts[1:], strict=False)):
            for x, y in zip(cuts, cuts[1:], strict=False):
                factor = new(y // x)
                left[_holder(source, a, x)].append(factor)
                right[_holder(target, b, x)].append(factor)
            continue
        # Row-major order: the leading dims of both sides share their greatest common divisor.
        common = math.gcd(source[a[0]], target[b[0]])
        lead = new(common)
        for dims, shape, factors in ((a, source, left), (b, target, right)):
            factors[dims[0]].append(lead)
            for d in dims:
                rest = shape[d] // (common if d == dims[0] else 1)
                if rest > 1:
                    factors[d].append(new(rest, "^"))
    text = side(map(_dim_text, left)) + " -> " + side(map(_dim_text, right))
    return text, tuple(sizes)


def _segments(
    source: tuple[int, ...], target: tuple[int, ...]
) -> Iterable[tuple[list[int], list[int]]]:
    """The shortest runs of dims on both sides with equal products."""
    a = b = 0
    while a < len(source) or b < len(target):
        first_a, first_b, p, q = a, b, 1, 1
        if a < len(source):
            p, a = source[a], a + 1
        if b < len(target):
            q, b = target[b], b + 1
        while p != q:
            if p < q:
                p, a = p * source[a], a + 1
            else:
                q, b = q * target[b], b + 1
        yield list(range(first_a, a)), list(range(first_b, b))


def _prefix(shape: tuple[int, ...], dims: list[int]) -> list[int]:
    # Suffix products would do as well; cuts are counted from the major end.
    products, p = [], 1
    for d in dims:
        p *= shape[d]
        products.append(p)
    return products


def _holder(shape: tuple[int, ...], dims: list[int], cut: int) -> int:
    """The dim in which the factor that starts at this cut lies."""
    p = 1
    for d in dims:
        if p <= cut < p * shape[d]:
            return d
        p *= shape[d]
    raise AssertionError((shape, dims, cut))


def _dim_text(factors: list[str]) -> str:
    if not factors:
        return "1"
    return factors[0] if len(factors) == 1 else "(" + " ".join(factors) + ")"
