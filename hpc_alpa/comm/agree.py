"""Errors where ranks meet: one rank's error becomes an error of all of them."""

from __future__ import annotations

from hpc_alpa.comm.protocol import Communicator
from hpc_alpa.errors import CommError


def raise_together(comm: Communicator, error: Exception | None) -> None:
    """Return if no rank has an error, else raise on all. Collective over `comm`.

    The rank with the error raises its own; the others raise CommError with `rank r: ...`, so that
    nobody waits in the next collective for a rank that has left.
    """
    texts = comm.all_gather_objects(None if error is None else f"{type(error).__name__}: {error}")
    failed = [f"rank {comm.ranks[i]}: {text}" for i, text in enumerate(texts) if text is not None]
    if error is not None:
        raise error
    if failed:
        raise CommError("; ".join(failed))
