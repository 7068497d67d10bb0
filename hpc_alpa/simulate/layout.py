"""How an array lies in memory, without the array: which operations give a view, as NumPy decides.

A layout is a shape with strides in elements. Views share the memory of what they look at; a reshape
of what is not in order has to copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape and strides, both in elements; a dim that is repeated has stride 0."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def c_order(cls, shape: Sequence[int]) -> Layout:
        """The last dim is next to each other."""
        strides = [1] * len(shape)
        for d in range(len(shape) - 1, 0, -1):
            strides[d - 1] = strides[d] * shape[d]
        return cls(tuple(shape), tuple(strides))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """In C order without gaps; strides of dims of one element do not count."""
        if self.size == 0:
            return True
        step = 1
        for n, s in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and s != step:
                return False
            step *= n
        return True

    def transpose(self, perm: Sequence[int]) -> Layout:
        return Layout(tuple(self.shape[d] for d in perm), tuple(self.strides[d] for d in perm))

    def move_dim(self, source: int, target: int) -> Layout:
        """`np.moveaxis`."""
        order = [d for d in range(len(self.shape)) if d != source]
        return self.transpose((*order[:target], source, *order[target:]))

    def window(self, shape: Sequence[int]) -> Layout:
        """A part of the array, of this shape."""
        return Layout(tuple(shape), self.strides)

    def broadcast(self, shape: Sequence[int], dims: Sequence[int]) -> Layout:
        """The array's dims become `dims` of `shape`, the others are repeated."""
        strides = [0] * len(shape)
        for k, d in enumerate(dims):
            strides[d] = self.strides[k] if self.shape[k] == shape[d] else 0
        return Layout(tuple(shape), tuple(strides))

    def reshape(self, shape: Sequence[int]) -> Layout | None:
        """A view of this shape, or None where only a copy has it.

        NumPy's `_attempt_nocopy_reshape` (numpy/_core/src/multiarray/shape.c).
        Dims of both shapes are gathered into runs of equal size; within a run of the old shape each
        dim must continue the next one.
        """
        if self.is_contiguous:
            return Layout.c_order(shape)
        old = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        strides: list[int] = [1] * len(shape)
        i = j = 0  # start of the run in the old and in the new shape
        while i < len(old) and j < len(shape):
            k, m = i + 1, j + 1
            have, want = old[i][0], shape[j]
            while have != want:
                if have < want:
                    have *= old[k][0]
                    k += 1
                else:
                    want *= shape[m]
                    m += 1
            for (_, step), (n, inner) in zip(old[i : k - 1], old[i + 1 : k], strict=True):
                if step != n * inner:
                    return None
            strides[m - 1] = old[k - 1][1]
            for d in range(m - 1, j, -1):
                strides[d - 1] = strides[d] * shape[d]
            i, j = k, m
        return Layout(tuple(shape), tuple(strides))
