"""What a body does to the buffers around it, found once per body instead of once per run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from hpc_alpa.errors import ProgramError
from hpc_alpa.lower.program import Body, Kernel, at
from hpc_alpa.step import FINISHED

UPDATES = FINISHED
"""Kernels that write into their output where it is there already, and make it where it is not."""

TABLES = ("reads", "creates", "updates", "frees")


def shared_input(kernel: Kernel) -> str | None:
    """The input whose memory a kernel's output shares: a view, or the only term of a sum."""
    only_term = kernel.op.name in UPDATES[:2] and kernel.params.get("slots") == 1
    return kernel.inputs[0] if kernel.op.view or only_term else None


@dataclass
class Effect:
    """Names by what happens to them, with the first kernel that does it.

    Attributes:
        reads: read, and not written by the body before.
        creates: written anew: they may not be live before.
        updates: written in place where they are live before, else created.
        frees: freed, and not created by the body.
        storage: whose memory is in what the body writes and leaves live: the number of the kernel
            that makes it, or the name of a buffer around the body.
    """

    body: Body
    reads: dict[str, int] = field(default_factory=dict)
    creates: dict[str, int] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)
    frees: dict[str, int] = field(default_factory=dict)
    storage: dict[str, int | str] = field(default_factory=dict)

    def kernel(self, table: str, name: str, microbatch: int | None) -> str:
        """`kernel 3 '...'`: the one that reads, creates, updates or frees a buffer."""
        found: dict[str, int] = getattr(self, table)
        return kernel_text(
            self.body, next(k for n, k in found.items() if at(n, microbatch) == name)
        )

    def names(self, table: str, microbatch: int | None) -> Iterable[str]:
        """The buffers of one of `TABLES` in one microbatch."""
        fixed, each = self._split[table]
        return (*fixed, *[f"{n}{microbatch}" for n in each]) if each else fixed

    @cached_property
    def _split(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        split = {}
        for table in TABLES:
            names: dict[str, int] = getattr(self, table)
            fixed = tuple(n for n in names if not n.endswith("@"))
            split[table] = fixed, tuple(n for n in names if n.endswith("@"))
        return split


def effect_of(body: Body, rank: int) -> Effect:
    """Walk through a body's kernels.

    Raises:
        ProgramError: a kernel reads or frees what one before it has freed, or writes over a value.
    """
    e = Effect(body)
    live: set[str] = set()
    dead: dict[str, int] = {}
    for k, kernel in enumerate(body.kernels):
        out = kernel.output
        for n in kernel.inputs:
            if n in dead:
                raise _freed(body, rank, k, "reads", n, dead[n])
            if n not in live:
                e.reads.setdefault(n, k)
        in_place = kernel.op.name in UPDATES or out in kernel.inputs
        if out in live and not in_place:
            raise ProgramError(
                f"rank {rank}, body {body.name}, {kernel_text(body, k)} writes {out}, which holds "
                "another value of the body; free it first, or write to another buffer"
            )
        if out not in live or kernel.op.name not in UPDATES:
            source = shared_input(kernel)
            e.storage[out] = k if source is None else e.storage.get(source, source)
        if out not in live and dead.pop(out, None) is None:
            (e.updates if in_place else e.creates).setdefault(out, k)
        live.add(out)
        for n in kernel.frees:
            if n in dead:
                raise _freed(body, rank, k, "frees", n, dead[n])
            if n not in live or n in e.updates:
                e.frees.setdefault(n, k)
            live.discard(n)
            dead[n] = k
    for n in dead:
        e.storage.pop(n, None)
    return e


def kernel_text(body: Body, k: int) -> str:
    """How a message calls a kernel."""
    return f"kernel {k} '{body.kernels[k]}'"


def _freed(body: Body, rank: int, k: int, verb: str, name: str, before: int) -> ProgramError:
    return ProgramError(
        f"rank {rank}, body {body.name}, {kernel_text(body, k)} {verb} {name}, which "
        f"{kernel_text(body, before)} has freed; free it once, after its last use"
    )
