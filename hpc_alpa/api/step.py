"""`parallelize`: a train step that runs on all ranks of the job."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from hpc_alpa.api import planning
from hpc_alpa.api.arguments import Arguments
from hpc_alpa.api.compile import (
    Compiled,
    Options,
    Step,
    compile_step,
    make_plan,
    require_fit,
    trace_step,
)
from hpc_alpa.api.create import Creation, Leaf, Uniform
from hpc_alpa.api.machine import find_cluster, find_costs
from hpc_alpa.api.start import start
from hpc_alpa.arrays import Arrays
from hpc_alpa.cluster import Cluster
from hpc_alpa.comm.protocol import Communicator
from hpc_alpa.cost import Cost
from hpc_alpa.errors import DataError, PlanError
from hpc_alpa.lower import Program
from hpc_alpa.plan.plan import Plan
from hpc_alpa.pytree import tree_map
from hpc_alpa.runtime.distributed import DistributedArray, gather
from hpc_alpa.runtime.engine import Engine
from hpc_alpa.runtime.executor import Record
from hpc_alpa.runtime.runner import Runner
from hpc_alpa.search.follow import follow_plan
from hpc_alpa.sharding import ShardingSpec
from hpc_alpa.simulate import Simulation, simulate
from hpc_alpa.step import split_batch
from hpc_alpa.trace import trace

log = logging.getLogger(__name__)


class ParallelStep:
    """A step function that runs on all ranks. Made by `parallelize`.

    Attributes:
        plan: the plan of the last call.
        record: what the last call did on this process's (first) rank.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: Options,
        cluster: Cluster | str | Path | None,
        costs: Cost | str | Path | None,
        plan: Plan | str | Path | None,
        backend: str,
        follow: ParallelStep | None,
        deterministic: bool,
    ) -> None:
        self.function, self.options, self.follow = function, options, follow
        self._cluster, self._costs, self._given = cluster, costs, plan
        self._backend, self._deterministic = backend, deterministic
        self._started: tuple[Runner, Arrays] | None = None
        self._compiled: dict[object, tuple[Compiled, Engine]] = {}
        self._last: tuple[Compiled, Engine] | None = None
        self._types: tuple[tuple[str, str], ...] = ()
        self._replans = 0
        self.record = Record()
        self.records: dict[int, Record] = {}

    # ---------------------------------------------------------------------------- user's calls
    def create(self, init: Callable[[int], Any], seed: int) -> Any:
        """The state `init(seed)`, made in tiles when the step first runs. Collective.

        Args:
            init: written with `hpc_alpa.random`, whose values do not depend on the sharding.
        """
        runner = self.runner
        traced = trace(init, (seed,), ("seed",), allow_float64=True)
        creation = Creation(traced, seed)
        leaves = [
            DistributedArray(
                v.type, runner, self.arrays, weak=traced.outputs[k].weak, pending=Leaf(creation, k)
            )
            for k, v in enumerate(traced.graph.outputs)
        ]
        return traced.out_tree.unflatten(leaves)

    def __call__(
        self,
        state: Any,
        batch: Any,
        *arguments: Any,
        measure_memory: bool = False,
        timeline: bool = False,
    ) -> Any:
        """Run one step. Collective over all ranks; a state that it renews is donated.

        Args:
            batch: the same global arrays on all ranks, the batch dim first, or a `Batch`.
            arguments: replicated values.
            measure_memory, timeline: fill `record.peak_bytes` and `record.events`.

        Returns:
            What the function returns, with `DistributedArray` leaves.
        """
        given = Arguments.of(state, batch, *arguments)
        compiled, engine = self._prepare(given)
        rows = given.row_readers()
        inputs = {}
        for k, value in enumerate([*given.leaves, *compiled.captured]):
            # An evaluation step gives no new state: the old one lives on.
            inputs[k] = engine.place(k, value, rows.get(k), bool(compiled.returns_state))
        outputs, self.records = engine.run(inputs, measure_memory=measure_memory, timeline=timeline)
        self.record = next(iter(self.records.values()))
        results = [
            engine.wrap(k, shards, compiled.weak_outputs[k]) for k, shards in enumerate(outputs)
        ]
        return compiled.out_tree.unflatten(results)

    @property
    def plan(self) -> Plan:
        """The plan of the last call; a `PlanError` before the first."""
        return self._current()[0].plan

    @property
    def program(self) -> Program:
        """The program of this process's first rank."""
        return self._current()[1].programs[self.runner.here[0]]

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs of all ranks."""
        return self._current()[1].programs

    def explain(self) -> str:
        """The plan as a text for people."""
        from hpc_alpa.api.explain import explain

        compiled, engine = self._current()
        return explain(compiled.plan, engine.programs, compiled.names)

    def simulate(self) -> Simulation:
        """The last call's programs in modelled seconds. Local.

        Raises:
            CostError: there are no costs, as a plan that was given needs none to run.
        """
        cluster = find_cluster(self._cluster, self.runner.size)
        return simulate(self.programs, find_costs(self._costs, cluster, self.runner.hosts))

    def gather_records(self) -> tuple[Record, ...]:
        """What the last call did on each rank. Collective."""

        def collect(comm: Communicator) -> list[Record]:
            mine = self.records[comm.rank]
            return comm.all_gather_objects(mine) if comm.size > 1 else [mine]

        return tuple(next(iter(self.runner.each(collect).values())))

    def prepare(self, state: Any, batch: Any, *arguments: Any) -> Plan:
        """Trace, plan and compile for these arguments without running. Collective."""
        return self._prepare(Arguments.of(state, batch, *arguments))[0].plan

    # --------------------------------------------------------------------------------- set-up
    @property
    def runner(self) -> Runner:
        return self._start()[0]

    @property
    def arrays(self) -> Arrays:
        return self._start()[1]

    def _start(self) -> tuple[Runner, Arrays]:
        """Join the job when it is first needed. Collective."""
        if self._started is None:
            followed = self.follow
            self._started = (
                start(self._backend, self._cluster, self._deterministic)
                if followed is None
                else followed._start()
            )
        return self._started

    def _current(self) -> tuple[Compiled, Engine]:
        if self._last is None:
            raise PlanError("the step has no plan before its first call (or `prepare`)")
        return self._last

    def _prepare(self, given: Arguments) -> tuple[Compiled, Engine]:
        if given.signature not in self._compiled:
            self._say_why(given.types)
            self._compiled[given.signature] = self._compile(given)
        self._last = self._compiled[given.signature]
        self._types = given.types
        return self._last

    def _say_why(self, types: tuple[tuple[str, str], ...]) -> None:
        """A new shape, dtype, structure or static value re-plans, and says which leaf."""
        if not self._compiled:
            return
        self._replans += 1
        before = dict(self._types)
        changed = [
            f"{path} is {type}, it was {before.get(path, 'absent')}"
            for path, type in types
            if before.get(path) != type
        ] or ["a static value or the structure changed"]
        message = f"planning again: {changed[0]}"
        if self._replans > 1:
            warnings.warn(f"{message}; this is re-plan number {self._replans}", stacklevel=4)
        else:
            log.warning("%s", message)

    def _compile(self, given: Arguments) -> tuple[Compiled, Engine]:
        runner, state = self.runner, given.parts[0]
        pending = [x.pending for x in state if isinstance(x, DistributedArray)]
        creations = {p.creation for p in pending if isinstance(p, Leaf)}
        creation = creations.pop() if len(creations) == 1 else None

        def traced() -> Step:
            tree = given.trees[0]
            allowed = self.options.allow_float64
            return trace_step(self.function, given.examples(), len(state), tree, allowed)

        if (target := planning.target()) is not None:
            planning.stop(target, traced, self._cluster, self._costs, self.options)
        self._agree(given.digest())

        def work() -> Compiled:
            step = traced()
            plan = self._plan(step)
            init = creation.traced if creation else None
            return compile_step(step, plan, init, in_order=self.arrays.name == "cuda")

        compiled = runner.first(work)
        engine = Engine(
            compiled.programs, runner, self.arrays, compiled.input_types, compiled.output_types
        )
        if creation is not None:
            self._create(creation, compiled, state)
        return compiled, engine

    def _plan(self, step: Step) -> Plan:
        size = self.runner.size
        if self.follow is not None:
            return self._follow(step)
        if self._given is not None:
            given = self._given if isinstance(self._given, Plan) else Plan.load(self._given)
            cluster, cost = find_cluster(self._cluster, size), None
            if self._costs is not None:
                cost = find_costs(self._costs, cluster, self.runner.hosts)
            require_fit(given, step, cluster, cost, size)
            return given
        cluster = find_cluster(self._cluster, size)
        cost = find_costs(self._costs, cluster, self.runner.hosts)
        if cluster is None:
            cluster = cost.cluster
        return make_plan(step, cluster, cost, size, self.options)

    def _follow(self, step: Step) -> Plan:
        """The plan of an evaluation step on the placement of the step it follows."""
        assert self.follow is not None
        compiled, engine = self.follow._current()
        base = compiled.plan
        batch = frozenset(step.graph.inputs[k] for k in step.batch_positions)
        rows = min((v.type.shape[0] for v in batch), default=1)
        slots = base.num_microbatches if rows % base.num_microbatches == 0 else 1
        divided = split_batch(step.graph, batch, slots, step.renewed)
        held = []
        for stage in base.stages:
            placed = engine.programs[stage.devices[0]].inputs
            held.append(
                {
                    step.graph.inputs[p.position]: ShardingSpec.parse(p.spec)
                    for p in placed
                    if p.position < compiled.num_state_leaves
                }
            )
        return follow_plan(divided, base, held, self.follow._costs_to_follow())

    def _costs_to_follow(self) -> Cost:
        """The costs of this step; a plan that was given without runs without, so bytes must do."""
        if self._given is not None and self._costs is None:
            return Uniform()
        return find_costs(
            self._costs, find_cluster(self._cluster, self.runner.size), self.runner.hosts
        )

    def _create(self, creation: Creation, compiled: Compiled, leaves: tuple[Any, ...]) -> None:
        """Run the creation and hand its tiles to the state's leaves."""
        traced = creation.traced
        maker = Engine(
            compiled.creation,
            self.runner,
            self.arrays,
            [v.type for v in traced.graph.inputs],
            [v.type for v in traced.graph.outputs],
        )
        values = [creation.seed, *traced.captured]
        outputs, _ = maker.run({k: maker.place(k, v) for k, v in enumerate(values)})
        for leaf in leaves:
            if isinstance(leaf, DistributedArray) and isinstance(leaf.pending, Leaf):
                position = leaf.pending.position
                leaf.layout = maker.output_layouts[position]
                leaf.shards = outputs[position]
                leaf.pending = None

    def _agree(self, mine: str) -> None:
        """All ranks call with the same types and the same batch: their digests are compared."""

        def compare(comm: Communicator) -> list[str]:
            return list(comm.all_gather_objects(mine)) if comm.size > 1 else [mine]

        found = next(iter(self.runner.each(compare).values()))
        other = [r for r, d in enumerate(found) if d != found[0]]
        if other:
            raise DataError(
                f"ranks {other} call the step with another batch, or other types, than rank 0: "
                "give all ranks the same global arrays, or a hpc_alpa.Batch that reads rows"
            )


def parallelize(
    train_step: Callable[..., Any],
    *,
    method: str = "auto",
    num_microbatches: int | None = None,
    schedule: str | None = None,
    cluster: Cluster | str | Path | None = None,
    costs: Cost | str | Path | None = None,
    memory: float | None = None,
    plan: Plan | str | Path | None = None,
    pins: Mapping[str, str | Mapping[int, int]] | None = None,
    follow: ParallelStep | None = None,
    backend: str | None = None,
    allow_float64: bool = False,
    deterministic: bool = False,
    resharding: str = "send_recv",
    recompute: str | Collection[int] = "auto",
) -> ParallelStep:
    """Plan a train step over all ranks of the job, and run it there.

    Args:
        train_step: (state, batch, ...) -> new state, or (new state, metrics); plain NumPy with
            `hpc_alpa.nn` and one `hpc_alpa.value_and_grad`.
        method: `auto`, or `dpN`, `tpN`, `ppN` and products of them.
        num_microbatches: None searches.
        schedule: None or `auto` chooses; else a name in `hpc_alpa.schedule.SCHEDULES`.
        cluster: a `Cluster`, a TOML file or a preset; None describes the machine that runs.
        costs: a cost model, an HDF5 database of `hpc_alpa.profiler`, "analytic" (seconds from
            `cluster`) or "alpa" (Alpa's units, for one stage); None takes the database at
            `$HPC_ALPA_DB` or of this machine.
        memory: bytes of one device; None takes the cluster's.
        plan: a plan, or its file, instead of a search.
        pins: {name: spec, or {dim: mesh axis}}; a name is an input's path, or the line of the model
            that makes a value, "gpt.py:88"; the rest is searched.
        follow: run on the placement of that step's state (an evaluation step).
        backend: `host`, `cuda`, `local` (a cluster's devices as threads of this process), or
            `null` (moves nothing: the time of a step without communication; its numbers mean
            nothing); None or `auto` takes `$HPC_ALPA_BACKEND`, else `host`.
        deterministic: reductions combine in the order of the ranks, so two runs on processors of
            one model are equal bit for bit, wherever the ranks run.
        resharding: `send_recv` or `broadcast`, for values that cross stages.
        recompute: layers (`hpc_alpa.layer`) whose forward values backward makes again, for less
            memory: `none`, `all`, or their numbers; `auto` looks for them where memory is short,
            and takes none with a manual method.

    Returns:
        A `ParallelStep`; nothing is planned before its first call.
    """
    options = Options(
        method, num_microbatches, schedule or "auto", memory, dict(pins or {}), resharding,
        allow_float64, recompute if isinstance(recompute, str) else tuple(recompute),
    )  # fmt: skip
    return ParallelStep(
        train_step, options, cluster, costs, plan, backend or "auto", follow, deterministic
    )


def fetch(tree: Any) -> Any:
    """The tree with its `DistributedArray`s as whole NumPy arrays. Collective over all ranks."""
    return tree_map(lambda x: gather(x) if isinstance(x, DistributedArray) else x, tree)
