"""How windows run on a spatial dim that is split: each tile with rows of its neighbours.

A convolution of rows that are split over mesh axis 0, on two devices:

    device 0  its last rows ─┐             ┌─ tile, and a row of device 1's ─ convolution
                             all_gather of edges
    device 1  its first rows ┘             └─ tile, and a row of device 0's ─ convolution

Tiles become a part of the batch (`ops.halo`), and the equation runs on them as on more examples.
Two split dims are exchanged one after the other, so that corners arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hpc_alpa.ir.build import Builder
from hpc_alpa.ir.graph import Eqn, Graph, Var
from hpc_alpa.ops.halo import HALOS
from hpc_alpa.ops.windows import halo
from hpc_alpa.sharding.conversions import Move
from hpc_alpa.sharding.spec import MeshShape, ShardingSpec, num_tiles
from hpc_alpa.sharding.steps import Exchange, Interior, Phase
from hpc_alpa.sharding.strategies import Strategy, rule_of


@dataclass(frozen=True)
class Split:
    """A spatial dim in tiles: the value's dim, the mesh axes, and the windows along it."""

    dim: int
    axes: tuple[int, ...]
    tiles: int
    window: int
    stride: int
    before: int

    def rows(self, need: str) -> tuple[int, int]:
        """See `ops.windows.halo`."""
        return halo(need, self.window, self.stride, self.before)


def splits(e: Eqn, strategy: Strategy, mesh: MeshShape) -> tuple[Split, ...]:
    """The spatial dims whose tiles need their neighbours under a strategy."""
    params, rule = e.params_dict, rule_of(e)
    w = e.output if e.op.name == "conv_grad_weight" else e.inputs[-1]
    window = params.get("window") or w.type.shape[:-2]
    found = []
    rows = zip(window, params["strides"], params["padding"], strict=True)
    for d, (k, stride, (before, _)) in enumerate(rows):
        factor = f"p{d}"
        axes = strategy.axes_of(factor) if factor in rule.sizes else ()
        if axes and rule.marked(factor, "!"):
            found.append(Split(d + 1, axes, num_tiles(axes, mesh), k, stride, before))
    return tuple(found)


def halo_phases(e: Eqn, strategy: Strategy, mesh: MeshShape) -> tuple[Graph, tuple[Phase, ...]]:
    """The interior of an equation of windows, and its steps; see `sharding.phases`."""
    writer = _Writer(splits(e, strategy, mesh), strategy, mesh)
    b, halos, params = writer.b, HALOS[e.op.name], e.params_dict
    b.phase, b.origin, b.layer, b.source = e.phase, e.origin, e.layer, e.source
    operands = [b.input(t) for t in e.input_types]
    writer.specs.update(zip(operands, strategy.inputs, strict=True))
    fills = ("zero",) if params.get("kind") == "sum" else halos.fills
    for k, (need, fill) in enumerate(zip(halos.needs, fills, strict=True)):
        operands[k] = writer.with_neighbours(operands[k], need, fill)
    padding = list(params["padding"])
    for s in writer.splits:
        padding[s.dim - 1] = s.rows("both") if halos.padded else (0, 0)
    spec, type = strategy.output, e.output.type
    if halos.result is not None:
        for s in writer.splits:
            before, after = s.rows(halos.result)
            own = type.shape[s.dim] // s.tiles + before + after
            shape = [own if d == s.dim else n for d, n in enumerate(type.shape)]
            type, spec = type.with_shape((s.tiles * shape[0], *shape[1:])), _folded(spec, s)
    out = b.emit(e.op.name, *operands, type=type, **{**params, "padding": tuple(padding)})
    writer.ran(out, spec)
    if halos.result is not None:
        for s in reversed(writer.splits):
            before, after = s.rows(halos.result)
            out = b.halo_unfold(out, dim=s.dim, tiles=s.tiles, before=before, after=after)
            writer.ran(out, _unfolded(writer.specs[b.eqns[-1].inputs[0]], s))
    assert writer.specs[out] == strategy.output, (e, strategy, writer.specs[out])
    return b.build((out,)), tuple(writer.steps)


@dataclass
class _Writer:
    """Writes the interior, and how each of its values lies."""

    splits: tuple[Split, ...]
    strategy: Strategy
    mesh: MeshShape
    b: Builder = field(default_factory=Builder)
    specs: dict[Var, ShardingSpec] = field(default_factory=dict)
    steps: list[Phase] = field(default_factory=list)

    def ran(self, out: Var, spec: ShardingSpec) -> None:
        """The last equation, whose specs are known: the roles of the whole are not its own."""
        e = self.b.eqns[-1]
        inputs = tuple(self.specs[v] for v in e.inputs)
        self.steps.append(Interior(e, Strategy(self.strategy.roles, inputs, spec)))
        self.specs[out] = spec

    def with_neighbours(self, x: Var, need: str, fill: str) -> Var:
        """An operand with its tiles as parts of the batch, and with what they need around them."""
        for s in self.splits:
            before, after = s.rows(need)
            operands = [x]
            if before + after:
                edges = self.b.halo_edges(x, dim=s.dim, tiles=s.tiles, before=before, after=after)
                dims = self.specs[x].dims
                spread = (*dims[: s.dim], s.axes, (), *dims[s.dim + 1 :])
                self.ran(edges, self._like(x, spread))
                self.gather(edges, s)
                operands.append(edges)
            spec = _folded(self.specs[x], s)
            x = self.b.halo_fold(
                *operands, dim=s.dim, tiles=s.tiles, before=before, after=after, fill=fill
            )
            self.ran(x, spec)
        return x

    def _like(self, x: Var, dims: tuple[tuple[int, ...], ...]) -> ShardingSpec:
        held = self.specs[x]
        return ShardingSpec(dims, held.partial, held.kind)

    def gather(self, edges: Var, s: Split) -> None:
        """Every device gets the edges of all tiles of its group; the minor axis first."""
        for a in reversed(s.axes):
            source = self.specs[edges]
            target = source.with_dim(s.dim, source.dims[s.dim][:-1])
            self.steps.append(Exchange(edges, Move("all_gather", (a,), s.dim, 0, source, target)))
            self.specs[edges] = target


def _folded(spec: ShardingSpec, s: Split) -> ShardingSpec:
    """Tiles of the dim as the major part of the batch."""
    return spec.with_dim(s.dim, ()).with_dim(0, (*s.axes, *spec.dims[0]))


def _unfolded(spec: ShardingSpec, s: Split) -> ShardingSpec:
    return spec.with_dim(0, spec.dims[0][len(s.axes) :]).with_dim(s.dim, s.axes)
