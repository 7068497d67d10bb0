"""Values of a choice program: who makes them in which spec, who needs them in which.

Equal layers have equal values: what depends on specs alone is made once for all of them, so their
arrays are the same objects, and the solvers take them for what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hpc_alpa.ir.graph import Var
from hpc_alpa.plan.paths import Paths
from hpc_alpa.plan.solve.problem import LOOP, FloatArray, IntArray, Reader, Value, Window
from hpc_alpa.sharding import ShardingSpec, Strategy
from hpc_alpa.step.rows import Rows

Specs = tuple[ShardingSpec, ...]
Choices = tuple[ShardingSpec, ...] | tuple[Strategy, ...]


@dataclass(frozen=True)
class Needed:
    """A node that reads a value: as operand `at` of its equation, or as it is (`None`)."""

    node: int
    choices: Choices
    at: int | None
    window: Window

    @property
    def specs(self) -> Specs:
        """The spec that it needs under each of its choices."""
        if self.at is None:
            return self.choices  # type: ignore[return-value]
        return tuple(s.inputs[self.at] for s in self.choices)  # type: ignore[union-attr]


@dataclass(frozen=True, eq=False)
class Form:
    """What equal values share.

    Attributes:
        nbytes: of the whole value.
        sources, targets: the classes of specs that it is made in, and those needed.
    """

    nbytes: int
    sources: Specs
    targets: Specs
    produced: IntArray
    needed: tuple[IntArray, ...]
    conversion: FloatArray


@dataclass
class Values:
    """Makes the values of one stage.

    Attributes:
        slots: number of microbatches: how often what the loop reads is converted.
        bucket: bytes that travel together where a value is converted once a step; 0 for alone.
        forms: of the values made, in order.
    """

    paths: Paths
    rows: Rows
    slots: int
    bucket: int
    forms: list[Form] = field(default_factory=list)
    _known: dict[object, tuple[Form, object]] = field(default_factory=dict)

    def value(
        self, v: Var, node: int, choices: Choices, readers: Sequence[Needed], name: str
    ) -> Value:
        """The value that a node makes under `choices`, with who reads it."""
        # The choices of equal equations are one object (`choices_of_equation`), which is kept here.
        ends = (choices, *(r.choices for r in readers))
        key = (
            v.type,
            tuple(map(id, ends)),
            tuple((r.at, r.window) for r in readers),
            self.rows.dims[v],
        )
        if key not in self._known:
            self._known[key] = self._form(v, choices, readers), ends
        form, _ = self._known[key]
        self.forms.append(form)
        windows = {r.window for r in readers}
        return Value(
            node,
            form.produced,
            tuple(Reader(r.node, n, r.window) for r, n in zip(readers, form.needed, strict=True)),
            form.conversion,
            holdable=windows.issuperset(LOOP),
            name=name,
        )

    def _form(self, v: Var, choices: Choices, readers: Sequence[Needed]) -> Form:
        made = tuple(s.output if isinstance(s, Strategy) else s for s in choices)
        wanted = [r.specs for r in readers]
        sources = tuple(dict.fromkeys(made))
        targets = tuple(dict.fromkeys(s for specs in wanted for s in specs))
        if any(r.window in LOOP for r in readers):
            conversion = self.slots * self.paths.matrix(v.type, sources, targets)
        else:
            conversion = 1 * self.paths.matrix(v.type, sources, targets, self.bucket)
        if self.rows.dims[v]:
            ways = [[self.rows.converts(v, p, t) for t in targets] for p in sources]
            conversion[~np.array(ways)] = np.inf
        at_source = {s: k for k, s in enumerate(sources)}
        at_target = {s: k for k, s in enumerate(targets)}
        return Form(
            v.type.nbytes,
            sources,
            targets,
            np.array([at_source[s] for s in made]),
            tuple(np.array([at_target[s] for s in specs]) for specs in wanted),
            conversion,
        )
