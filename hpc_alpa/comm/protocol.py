"""What every backend of `comm` offers: the field's collectives, in NCCL's words in snake case.

Arrays are contiguous in C order, of a dtype of `comm.dtypes`, and the same call is made with the
same shapes on all ranks of the group. `send` and `recv` only start: the array is the transfer's
until `wait` returns or `test` says True, and may not be written (nor, for `recv`, read) before.
No backend promises buffering: a send may complete only when its receive is posted.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

# numpy.ndarray on mpi and local; whatever the device accessor understands (cupy.ndarray) on nccl.
Array: TypeAlias = Any


class Request(Protocol):
    """A transfer that was started."""

    def wait(self) -> None:
        """Return when the array may be used again.

        On `nccl` the device waits, not the caller: work queued after `wait` runs after it.

        Raises:
            CommError: the two sides do not fit (length, dtype), or the transport failed.
        """

    def test(self) -> bool:
        """Whether the transfer is complete. Never blocks; drives progress."""


class Communicator(Protocol):
    """A group of ranks. Roots, sources and destinations are indices within the group."""

    @property
    def rank(self) -> int:
        """Index of the caller within the group."""

    @property
    def size(self) -> int:
        """Number of ranks in the group."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """Global ranks of the group, in the group's order."""

    def group(self, ranks: tuple[int, ...], name: str = "") -> Communicator:
        """The communicator of these global ranks, in this order. Collective over `ranks` only.

        Made once per tuple and process, then returned again; `name` labels it in messages. Ranks
        that share several groups make them in the same order.
        """

    def ordered(self) -> Communicator:
        """The same ranks, whose reductions combine terms in the order of the ranks. Collective.

        So the bits of a result depend on the terms alone, not on where the ranks run.

        Raises:
            CommError: this backend's library chooses the order.
        """

    def all_reduce(self, x: Array, op: str = "sum") -> None:
        """Combine `x` over the group, in place. Collective. `op`: sum, max or min.

        float16 and bfloat16 are combined in float32 (on nccl as the library does). bool takes max
        (any) and min (all). A NaN wins in max and min (on nccl: as the library does).
        """

    def all_gather(self, x: Array, out: Array) -> None:
        """`out[i]` becomes the `x` of rank i; `out.shape == (size, *x.shape)`. Collective."""

    def reduce_scatter(self, x: Array, out: Array, op: str = "sum") -> None:
        """`out` becomes the combined `x[rank]`; `x.shape == (size, *out.shape)`. Collective."""

    def all_to_all(self, x: Array, out: Array) -> None:
        """`out[i]` becomes `x[rank]` of rank i; both of shape `(size, ...)`. Collective."""

    def broadcast(self, x: Array, root: int = 0) -> None:
        """`x` becomes the root's, in place. Collective."""

    def send(self, x: Array, dest: int, channel: int = 0) -> Request:
        """Start sending `x`. First in, first out per (sender, receiver, channel)."""

    def recv(self, x: Array, source: int, channel: int = 0) -> Request:
        """Start receiving into `x`, which has the sender's dtype and number of elements."""

    def batch(self) -> AbstractContextManager[None]:
        """Start the sends and receives inside as one, so that their order does not matter.

        Needed on nccl wherever two ranks send to each other; without effect elsewhere.
        """

    def barrier(self) -> None:
        """Return when all ranks of the group have come. Collective."""

    def broadcast_object(self, obj: Any, root: int = 0) -> Any:
        """The root's object, a copy of it on the other ranks; they wait asleep. Collective."""

    def gather_objects(self, obj: Any, root: int = 0) -> list[Any] | None:
        """All ranks' objects in the group's order on the root, None elsewhere. Collective."""

    def all_gather_objects(self, obj: Any) -> list[Any]:
        """All ranks' objects in the group's order. Collective."""
