"""Bytes that a program holds, by replaying what happens to its buffers.

Names share storage as they do when the program runs on NumPy arrays: views and the only term of a
sum look at their input's memory, the targets of one reduction lie in one buffer. A storage goes
with its last name. What an instruction needs only while it runs (packed copies, gathered pieces
before they are put in order, copies of what lies apart and is sent) counts while it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from hpc_alpa.ir.types import TensorType, numpy_dtype
from hpc_alpa.lower.effect import shared_input
from hpc_alpa.lower.liveness import body_touches
from hpc_alpa.lower.messages import piece_of
from hpc_alpa.lower.program import (
    AllGather,
    Allocate,
    AllReduce,
    AllToAll,
    Body,
    Broadcast,
    Free,
    Kernel,
    Program,
    Recv,
    ReduceScatter,
    Region,
    Run,
    Send,
    Wait,
    at,
)
from hpc_alpa.lower.rank import Counts
from hpc_alpa.ops.contraction import split_equation
from hpc_alpa.simulate.layout import Layout


@dataclass(frozen=True)
class Memory:
    """Bytes over one step of one rank.

    Attributes:
        after: live bytes after each instruction.
        peak: most bytes at once, kernels within a body and temporary copies included.
    """

    after: tuple[int, ...]
    peak: int


def replay(program: Program) -> Memory:
    """Bytes after every instruction of a checked program, and their peak."""
    return _Replay(program, {}).memory()


def peak_bytes(program: Program) -> int:
    """Most bytes that one rank holds at once."""
    return replay(program).peak


def peaks(programs: Sequence[Program], counts: Sequence[Counts] = ()) -> tuple[int, ...]:
    """`peak_bytes` of each program; ranks that do the same on other tiles are replayed once.

    Args:
        counts: of each, how many pieces of messages a piece stands for, where not one.
    """
    found: dict[object, int] = {}
    result = []
    for k, p in enumerate(programs):
        stands = counts[k] if counts else {}
        form = _form(p), tuple(stands.items())
        if form not in found:
            found[form] = _Replay(p, stands).memory().peak
        result.append(found[form])
    return tuple(result)


@dataclass(frozen=True, slots=True)
class _Tile:
    """A named array: where it lies, and how."""

    storage: int
    layout: Layout
    dtype: str


@dataclass
class _Change:
    """What a run of a body does to buffers that lie as they did when it was found.

    Attributes:
        live, peak: bytes, from those that are live before.
        fresh: bytes of each new storage that stays; they are numbered after those from before.
        made, dropped: names that there are, and that there are no more, with their storage.
        dead: storages from before that go.
        fixed: whether a name is among them that is the same for all microbatches.
    """

    fresh: tuple[int, ...]
    made: tuple[tuple[str, int, Layout, str], ...]
    dropped: tuple[tuple[str, int], ...]
    dead: tuple[int, ...]
    fixed: bool
    live: int = 0
    peak: int = 0


@dataclass(frozen=True)
class _Names:
    """Names of a body.

    Attributes:
        fixed, each: that may be there before it, the same in all microbatches and with one in each.
        freed: of these, what it frees.
        made: that it leaves, besides.
    """

    fixed: tuple[str, ...]
    each: tuple[str, ...]
    freed: tuple[str, ...]
    made: tuple[str, ...]


def _names_of(body: Body) -> _Names:
    read, _ = body_touches(body)
    updated = (k.output for k in body.kernels if k.op.name in IN_PLACE)
    before = dict.fromkeys((*read, *updated))
    freed = {n for k in body.kernels for n in k.frees}
    made = dict.fromkeys(k.output for k in body.kernels if k.output not in freed)
    return _Names(
        tuple(n for n in before if not n.endswith("@")),
        tuple(n for n in before if n.endswith("@")),
        tuple(n for n in before if n in freed),
        tuple(n for n in made if n not in before),
    )


def _change(
    before: Mapping[str, _Tile | None],
    after: Mapping[str, _Tile | None],
    places: Mapping[int, int],
    replay: _Replay,
) -> _Change:
    """What has happened between two states.

    Args:
        places: number of each storage from before.
    """
    numbers = dict(places)
    made, dropped = [], []
    for n, tile in after.items():
        old = before.get(n)
        if tile is None and old is not None:
            dropped.append((n, places[old.storage]))
        elif tile is not None and old is None:
            place = numbers.setdefault(tile.storage, len(numbers))
            made.append((n, place, tile.layout, tile.dtype))
        else:
            assert tile == old, f"a body gives {n} other memory"
    fresh = tuple(replay.nbytes[s] for s in numbers if s not in places)
    dead = tuple(k for s, k in places.items() if s not in replay.names)
    changed = {*(n for n, *_ in made), *(n for n, _ in dropped)}
    fixed = any(not n.endswith("@") for n in changed)
    return _Change(fresh, tuple(made), tuple(dropped), dead, fixed)


class _Replay:
    def __init__(self, program: Program, counts: Counts) -> None:
        self.program = program
        self.counts = counts
        self.tiles: dict[str, _Tile] = {}
        self.names: dict[int, int] = {}  # how many names a storage has
        self.nbytes: dict[int, int] = {}
        self.fresh = count()
        self.live = 0  # bytes of all storages
        self.staged: dict[str, int] = {}  # ticket: bytes of a copy that its message is made of
        self.copies = 0  # bytes of all of these
        self.peak = 0
        self.names_of = {name: _names_of(body) for name, body in program.bodies.items()}
        self.changes: dict[object, _Change] = {}
        self.version = 0  # of how the names that are the same for all microbatches lie
        self.known: dict[str, tuple[int, object, dict[int, int]]] = {}
        self.numbered: dict[object, int] = {}
        for p in program.inputs:
            self.allocate(p.buffer, p.type)

    def memory(self) -> Memory:
        self.note()
        after = []
        for i in self.program.instructions:
            HANDLERS[type(i)](self, i)
            self.note()
            after.append(self.live)
        return Memory(tuple(after), self.peak)

    def note(self, temporary: int = 0) -> None:
        self.peak = max(self.peak, self.live + self.copies + temporary)

    # ------------------------------------------------------------------------------------ names
    def allocate(self, name: str, type: TensorType, layout: Layout | None = None) -> None:
        """A name for new memory."""
        storage = self.storage(type.nbytes)
        self.put(name, _Tile(storage, layout or Layout.c_order(type.shape), type.dtype))

    def storage(self, nbytes: int) -> int:
        made = next(self.fresh)
        self.names[made], self.nbytes[made] = 0, nbytes
        self.live += nbytes
        return made

    def put(self, name: str, tile: _Tile) -> None:
        self.version += "@" not in name
        self.names[tile.storage] += 1
        if name in self.tiles:
            self.drop(name)
        self.tiles[name] = tile

    def drop(self, name: str) -> None:
        self.version += "@" not in name
        storage = self.tiles.pop(name).storage
        self.names[storage] -= 1
        if not self.names[storage]:
            self.live -= self.nbytes.pop(storage)
            del self.names[storage]

    # ---------------------------------------------------------------------------------- kernels
    def run(self, i: Run) -> None:
        """A body does the same to equal buffers, so its kernels are gone through once for each."""
        m, names = i.microbatch, self.names_of[i.body]
        fixed, known = self.fixed(i.body, names)
        places = dict(known)
        lie: list[object] = [i.body, fixed]
        for n in names.each:
            tile = self.tiles.get(f"{n}{m}")
            if tile is None:
                lie.append(None)
            else:
                place = places.setdefault(tile.storage, len(places))
                lie.append((place, tile.layout, tile.dtype))
        for n in names.freed:
            freed = self.tiles.get(at(n, m))
            if freed is not None:
                lie.append((self.nbytes[freed.storage], self.names[freed.storage]))
        key = tuple(lie)
        change = self.changes.get(key)
        if change is None:
            before = {n: self.tiles.get(at(n, m)) for n in (*names.fixed, *names.each)}
            live, peak, self.peak = self.live, self.peak, 0
            self.kernels(i)
            after = {n: self.tiles.get(at(n, m)) for n in (*before, *names.made)}
            change = self.changes[key] = _change(before, after, places, self)
            change.live, change.peak = self.live - live, self.peak - live - self.copies
            self.peak = max(self.peak, peak)
            self.version += change.fixed
            return
        self.peak = max(self.peak, self.live + self.copies + change.peak)
        self.live += change.live
        self.version += change.fixed
        ids = [*places]
        for nbytes in change.fresh:
            ids.append(made := next(self.fresh))
            self.names[made], self.nbytes[made] = 0, nbytes
        for n, place, layout, dtype in change.made:
            name = at(n, m)
            self.tiles[name] = _Tile(ids[place], layout, dtype)
            self.names[ids[place]] += 1
        for n, place in change.dropped:
            del self.tiles[at(n, m)]
            self.names[ids[place]] -= 1
        for place in change.dead:
            del self.names[ids[place]], self.nbytes[ids[place]]

    def fixed(self, body: str, names: _Names) -> tuple[object, dict[int, int]]:
        """How a body's names that are the same for all microbatches lie, and their storages."""
        version, key, places = self.known.get(body, (-1, None, {}))
        if version != self.version:
            places = {}
            lie: list[object] = []
            for n in names.fixed:
                tile = self.tiles.get(n)
                if tile is None:
                    lie.append(None)
                else:
                    place = places.setdefault(tile.storage, len(places))
                    lie.append((place, tile.layout, tile.dtype))
            key = self.numbered.setdefault(tuple(lie), len(self.numbered))
            self.known[body] = self.version, key, places
        return key, places

    def kernels(self, i: Run) -> None:
        """A run, kernel by kernel."""
        m = i.microbatch
        for kernel in self.program.bodies[i.body].kernels:
            self.kernel(kernel, m)
            self.note()
            for n in kernel.frees:
                self.drop(at(n, m))

    def kernel(self, k: Kernel, m: int | None) -> None:
        out = at(k.output, m)
        if k.op.name in IN_PLACE and out in self.tiles:
            return
        source = shared_input(k)
        if source is None:
            layout = _dot_layout(k) if k.op.name == "dot_general" else None
            self.allocate(out, k.type, layout)
            return
        tile = self.tiles[at(source, m)]
        layout = VIEWS.get(k.op.name, _same)(k, tile.layout)
        if layout is None:
            self.allocate(out, k.type)
        else:
            self.put(out, _Tile(tile.storage, layout, k.type.dtype))

    # ------------------------------------------------------------------------------ collectives
    def all_reduce(self, i: AllReduce) -> None:
        parts = [self.tiles[n] for n in i.sources]
        bucket = self.storage(sum(map(_nbytes, parts)))
        for p, target in zip(parts, i.targets, strict=True):
            self.put(target, _Tile(bucket, Layout.c_order(p.layout.shape), p.dtype))

    def all_gather(self, i: AllGather) -> None:
        n = len(i.group)
        parts = [self.tiles[s] for s in i.sources]
        packed = sum(map(_nbytes, parts))
        row = sum(p.layout.size for p in parts)
        gathered = self.storage(n * packed)
        self.names[gathered] += 1  # held while the instruction runs
        runs = i.runs or (1,) * len(parts)
        for p, target, dim, r in zip(parts, i.targets, i.dims, runs, strict=True):
            inner = Layout.c_order(p.layout.shape)
            pieces = Layout((n, *inner.shape), (row, *inner.strides))
            self.joined(target, pieces, dim, gathered, p.dtype, r)
        self.note(packed)
        self.release(gathered)

    def reduce_scatter(self, i: ReduceScatter) -> None:
        n = len(i.group)
        parts = [self.tiles[s] for s in i.sources]
        packed = sum(map(_nbytes, parts))
        bucket = self.storage(packed // n)
        for p, target, dim in zip(parts, i.targets, i.dims, strict=True):
            shape = [s // n if d == dim else s for d, s in enumerate(p.layout.shape)]
            self.put(target, _Tile(bucket, Layout.c_order(shape), p.dtype))
        self.note(packed)

    def all_to_all(self, i: AllToAll) -> None:
        n, p = len(i.group), self.tiles[i.source]
        shape = list(p.layout.shape)
        shape[i.split_dim] //= n
        out = self.storage(_nbytes(p))
        self.names[out] += 1
        pieces = Layout.c_order((n, *shape))
        self.joined(i.target, pieces, i.concat_dim, out, p.dtype, i.runs)
        self.note(_nbytes(p))
        self.release(out)

    def joined(
        self, target: str, pieces: Layout, dim: int, storage: int, dtype: str, runs: int
    ) -> None:
        """Pieces (n, *tile) put together along a dim of the tile: a view where that is in order."""
        n, *shape = pieces.shape
        whole = [n * s if d == dim else s for d, s in enumerate(shape)]
        apart = pieces.reshape((n, *shape[:dim], runs, shape[dim] // runs, *shape[dim + 1 :]))
        assert apart is not None, "taking a dim apart is a view"
        layout = apart.move_dim(0, dim + 1).reshape(whole)
        if layout is None:
            self.allocate(target, TensorType(tuple(whole), dtype))
        else:
            self.put(target, _Tile(storage, layout, dtype))

    def release(self, storage: int) -> None:
        """Give up an instruction's own hold of a storage."""
        self.names[storage] -= 1
        if not self.names[storage]:
            self.live -= self.nbytes.pop(storage)
            del self.names[storage]

    def broadcast(self, i: Broadcast) -> None:
        if i.source:
            tile = self.tiles[i.source]
            self.note(0 if tile.layout.is_contiguous else _nbytes(tile))
            return
        self.allocate(i.target, next(p.type for p in self.program.outputs if p.buffer == i.target))

    # --------------------------------------------------------------------------------- messages
    def start(self, i: Send | Recv) -> None:
        tile = self.tiles[i.buffer]
        if not _window(tile.layout, i.region).is_contiguous:
            number = piece_of(i.ticket)[0] if self.counts else 0
            nbytes = self.counts.get((i.channel, number), 1) * i.nbytes
            self.staged[i.ticket] = nbytes
            self.copies += nbytes

    def wait(self, i: Wait) -> None:
        self.copies -= self.staged.pop(i.ticket, 0)

    def frees(self, i: Free) -> None:
        for n in i.buffers:
            self.drop(n)


def _form(p: Program) -> tuple[object, ...]:
    """All that the bytes of a program depend on."""
    bodies = tuple(
        (b.name, tuple((k.op.name, k.inputs, k.output, k.type, k.frees) for k in b.kernels))
        for b in p.bodies.values()
    )
    placed = tuple((x.buffer, x.type) for x in (*p.inputs, *p.outputs))
    return bodies, placed, tuple(FORM[type(i)](i) for i in p.instructions)


def _extents(region: Region) -> tuple[int, ...]:
    return tuple(b - a for a, b in region)


FORM: dict[type, Callable[[Any], tuple[object, ...]]] = {  # alphabetical
    AllGather: lambda i: ("all_gather", i.sources, i.targets, i.dims, len(i.group), i.runs),
    AllReduce: lambda i: ("all_reduce", i.sources, i.targets),
    AllToAll: lambda i: (
        ("all_to_all", i.source, i.target, i.split_dim, i.concat_dim, len(i.group), i.runs)
    ),
    Allocate: lambda i: ("allocate", i.buffer, i.type),
    Broadcast: lambda i: ("broadcast", i.source, i.target),
    Free: lambda i: ("free", i.buffers),
    Recv: lambda i: ("recv", i.buffer, _extents(i.region), i.ticket),
    ReduceScatter: lambda i: ("reduce_scatter", i.sources, i.targets, i.dims, len(i.group)),
    Run: lambda i: ("run", i.body, i.microbatch),
    Send: lambda i: ("send", i.buffer, _extents(i.region), i.ticket),
    Wait: lambda i: ("wait", i.ticket),
}

HANDLERS: dict[type, Callable[[_Replay, Any], None]] = {
    AllGather: _Replay.all_gather,
    AllReduce: _Replay.all_reduce,
    AllToAll: _Replay.all_to_all,
    Allocate: lambda r, i: r.allocate(i.buffer, i.type),
    Broadcast: _Replay.broadcast,
    Free: _Replay.frees,
    Recv: _Replay.start,
    ReduceScatter: _Replay.reduce_scatter,
    Run: _Replay.run,
    Send: _Replay.start,
    Wait: _Replay.wait,
}


# ------------------------------------------------------------------------------------- layouts
def _same(k: Kernel, x: Layout) -> Layout:
    return x


def _part(k: Kernel, x: Layout) -> Layout:
    return x.window(k.type.shape)


# Layout of a view from its input's; None where NumPy has to copy.
VIEWS: dict[str, Callable[[Kernel, Layout], Layout | None]] = {  # alphabetical
    "accumulate": _same,
    "accumulate_max": _same,
    "broadcast": lambda k, x: x.broadcast(k.type.shape, k.params["dims"]),  # type: ignore[arg-type]
    "enter": _same,
    "reshape": lambda k, x: x.reshape(k.type.shape),
    "slice": _part,
    "slot": _part,
    "transpose": lambda k, x: x.transpose(k.params["perm"]),  # type: ignore[arg-type]
}
IN_PLACE = ("accumulate", "accumulate_max", "stack")


def _dot_layout(k: Kernel) -> Layout:
    """A product is made in the order (batch, m, n), and looked at in the order asked for."""
    a, b, out = split_equation(str(k.params["equation"]))
    made = [x for x in out if x in a and x in b]
    made += [x for x in out if x in a and x not in b]
    made += [x for x in out if x in b and x not in a]
    shape = dict(zip(out, k.type.shape, strict=True))
    return Layout.c_order([shape[x] for x in made]).transpose([made.index(x) for x in out])


def _window(layout: Layout, region: Region) -> Layout:
    return layout.window(_extents(region)) if region else layout


def _nbytes(tile: _Tile) -> int:
    return tile.layout.size * numpy_dtype(tile.dtype).itemsize
