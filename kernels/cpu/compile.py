"""How every CPU kernel is compiled and cached.

Where the machine code is kept: in $NUMBA_CACHE_DIR if that is set, else in `__pycache__` beside the
kernel's source, else (an installation the user may not write) in the user's cache directory,
`~/.cache/numba`. Entries are keyed by processor model and features, so hosts of different kinds may
share a directory; on a cluster whose home is slow to read, set NUMBA_CACHE_DIR to a node-local one.
Where none of the three can be written each process compiles for itself.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums may be reordered, so that reductions run on vector lanes. Not nnan and not ninf: masked
# logits are -inf, and a NaN has to reach the loss, where it is seen.
FAST = frozenset({"reassoc", "contract", "arcp", "nsz", "afn"})
# For what must be the same bits in a vector loop, in its scalar rest and on every processor.
STRICT: frozenset[str] = frozenset()


@functools.cache
def _sources_digest() -> str:
    """Digest of all files whose functions a kernel may have inlined."""
    here = Path(__file__).parent
    files = sorted((*here.glob("*.py"), *(here.parent / "scalar").glob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache, which looks at the kernel's own file, made to see those it inlines too."""

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _sources_digest())


def compiled(flags: frozenset[str] = FAST, inline: bool = False) -> Callable[[Function], Function]:
    """Decorator: compile by Numba at the first call with each set of types; runs without the GIL.

    Args:
        flags: LLVM's fast-math flags.
        inline: force LLVM to inline it into its callers. Such a helper needs no cache entry of its
        own.
    """

    def decorate(function: Function) -> Function:
        # error_model: Python's would raise on a division by zero, and that branch stops
        # vectorisation
        dispatcher = numba.njit(
            fastmath=set(flags), error_model="numpy", nogil=True, forceinline=inline
        )(function)
        if not inline:
            try:
                dispatcher._cache = _Cache(function)
            except RuntimeError:  # no place that can be written: Numba's locators have all refused
                pass
        return dispatcher  # type: ignore[no-any-return]

    return decorate


@compiled(inline=True)
def store(buffer: Any, target: Any) -> None:
    """Copy the head of `buffer` to `target`.

    Kernels compute into a small buffer and copy it: LLVM asks at run time whether output and input
    overlap, and for one that works in place it would fall back to a scalar loop, ten times slower
    where there is an exp.
    """
    for j in range(target.size):
        target[j] = buffer[j]


@compiled(inline=True)
def fill(target: Any, value: Any) -> None:
    """Set all of `target`, a slice: an index that starts at 0 needs no test for negative ones."""
    for j in range(target.size):
        target[j] = value


# Elements of such a buffer where there are no rows: with its inputs it stays in the first cache.
BLOCK = 1024


def flat(x: Any) -> Any:
    """A contiguous array as one dim, without a copy."""
    assert x.flags.c_contiguous, f"kernels take C-contiguous arrays, got strides {x.strides}"
    return x.reshape(-1)
