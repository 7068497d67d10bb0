"""Stage slicing: consecutive layers become stages on submeshes (Alpa, OSDI 2022, Sec. 5.2).

Alpa minimises T = sum of stage times + (B - 1) max, over slicings that use every device exactly.
Here the weights are the schedule's (`Pipeline`), transfers between stages count, and where values
cross a cut in one of several spec classes the slicing chooses the class on both sides of it:

    slice_stages()           one time per stage: cost[i, j, m] or cost[i, j, m, c]
    slice_with_separators()  a table per stage over (class entering, class leaving), and transfers
    Slicer                   the same, made once for several slicings

`sweep` holds the dynamic program and the search over the bound on the largest stage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from hpc_alpa.errors import InfeasibleError, PlanError
from hpc_alpa.plan.solve.problem import FloatArray, IntArray
from hpc_alpa.plan.solve.sweep import Choices, Sweep, Weights, best_slicing, smallest_excess

Tables = Mapping[tuple[int, int, int, int], FloatArray]
Rooms = Mapping[tuple[int, int, int, int], int | IntArray]
_UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Pipeline:
    """What a step of B microbatches takes under a schedule, in the unit of its stages.

        fill * sum(stages) + fill_transfer * sum(transfers)
        + period * (B - 1) * max(stage + period_transfer * transfer that leaves it)

    With the defaults and no transfers this is Alpa's T. `period_transfer` is 0 where transfers
    overlap with compute, 1 where a stage waits for what it sends.
    """

    num_microbatches: int
    fill: float = 1.0
    fill_transfer: float = 1.0
    period: float = 1.0
    period_transfer: float = 0.0

    def total(self, stages: Sequence[float], transfers: Sequence[float]) -> float:
        """Time of a step; `transfers[k]` is between stages k and k + 1."""
        leaving = [*transfers, 0.0]
        slowest = max(s + self.period_transfer * t for s, t in zip(stages, leaving, strict=True))
        filling = self.fill * sum(stages) + self.fill_transfer * sum(transfers)
        return filling + self.period * (self.num_microbatches - 1) * slowest


@dataclass(frozen=True)
class Stage:
    """Layers first..last on a submesh under a configuration, with the classes at its two cuts."""

    first: int
    last: int
    submesh: int
    configuration: int
    entering: int
    leaving: int
    seconds: float


@dataclass(frozen=True)
class Slicing:
    """Stages in the order of their layers, the transfers between them, and the time of a step."""

    total: float
    stages: tuple[Stage, ...]
    transfers: tuple[float, ...]


def slice_stages(
    cost: FloatArray,
    devices: Sequence[int],
    num_devices: int,
    pipeline: Pipeline,
    *,
    room: IntArray | None = None,
    in_flight: Sequence[int] | None = None,
    num_stages: int | None = None,
) -> Slicing:
    """The slicing of least total among those that use exactly `num_devices` devices.

    Args:
        cost: [i, j, m] or [i, j, m, c], time of layers i..j on submesh m (configuration c) for one
            microbatch; infinite where impossible; entries with j < i are not read.
        devices: of each submesh m.
        room: like cost, microbatches in flight that fit in the memory of the stage, at most.
        in_flight: [s - 1] = microbatches in flight on the stage that is s-th from the end, as from
            `reversed(peak_in_flight(schedule))`. Needed with `room`.
        num_stages: exactly so many; any number if None.

    Raises:
        InfeasibleError: no slicing exists; says whether devices or memory are to blame, and by
            how much.
    """
    full = cost[..., None] if cost.ndim == 3 else cost
    if full.ndim != 4 or full.shape[0] != full.shape[1] or full.shape[2] != len(devices):
        raise PlanError(
            f"stage costs of shape {cost.shape} for {len(devices)} submeshes: expected [layers, "
            "layers, submeshes] or [layers, layers, submeshes, configurations]"
        )
    first, last, submesh, configuration = np.nonzero(np.isfinite(full))
    rooms = np.full(full.shape, _UNLIMITED) if room is None else room.reshape(full.shape)
    at = (first, last, submesh, configuration)
    zero = np.zeros(len(first), np.int64)
    choices = Choices(
        first=first,
        last=last,
        devices=np.asarray(devices, np.int64)[submesh],
        entering=zero,
        leaving=zero,
        seconds=full[at],
        room=rooms[at],
        transfer=np.zeros((full.shape[0] + 1, 1, 1)),
    ).select(last >= first)
    tags = np.stack([submesh, configuration, zero, zero], axis=1)[last >= first]
    return _slice(choices, tags, num_devices, pipeline, room is not None, in_flight, num_stages)


def slice_with_separators(
    tables: Tables,
    transfer: Callable[[int, int, int], FloatArray],
    devices: Sequence[int],
    num_devices: int,
    pipeline: Pipeline,
    *,
    room: Rooms | None = None,
    in_flight: Sequence[int] | None = None,
    num_stages: int | None = None,
) -> Slicing:
    """The slicing of least total, with the spec classes at its cuts.

    Arguments as of `Slicer.of`; other arguments, and errors, as of `slice_stages`.
    """
    slicer = Slicer.of(tables, transfer, devices, room)
    return slicer.slice(num_devices, pipeline, in_flight=in_flight, num_stages=num_stages)


@dataclass(frozen=True, eq=False)
class Slicer:
    """The stages that there are to choose from, for several slicings.

    Args:
        tags: of each choice, submesh, configuration, entering class, leaving class.
        limited: whether memory is.
    """

    choices: Choices
    tags: IntArray
    limited: bool

    @classmethod
    def of(
        cls,
        tables: Tables,
        transfer: Callable[[int, int, int], FloatArray],
        devices: Sequence[int],
        room: Rooms | None = None,
    ) -> Self:
        """Stages with the spec classes at their cuts.

        Args:
            tables: (i, j, m, c) -> time [p, q] of layers i..j on submesh m, configuration c, when
                what enters at the cut before layer i lies in class p and what leaves after layer j
                in class q. The classes of a cut on a submesh are the same for all its tables. Left
                out where impossible.
            transfer: (cut, m, n) -> time [q, p] to bring what leaves submesh m in class q to
                submesh n in class p, at the cut before layer `cut`; infinite where impossible.
            devices: of each submesh m.
            room: (i, j, m, c) -> microbatches that fit, one number or [p, q].
        """
        num_layers = 1 + max(last for _, last, _, _ in tables)
        entering, leaving = _num_classes(tables, num_layers, len(devices))
        keys = list(tables)
        shapes = [tables[key].shape for key in keys]
        owner = np.repeat(np.arange(len(keys)), [p * q for p, q in shapes])
        grids = {shape: _grid(shape) for shape in set(shapes)}
        p, q = (np.concatenate(part) for part in zip(*(grids[s] for s in shapes), strict=True))
        first, last, submesh, configuration = np.array(keys, np.int64)[owner].T
        rooms = [
            np.broadcast_to(_UNLIMITED if room is None else room[key], shape).ravel()
            for key, shape in zip(keys, shapes, strict=True)
        ]
        choices = Choices(
            first=first,
            last=last,
            devices=np.asarray(devices, np.int64)[submesh],
            entering=_first_ports(entering)[submesh] + p,
            leaving=_first_ports(leaving)[submesh] + q,
            seconds=np.concatenate([tables[key].ravel() for key in keys]),
            room=np.concatenate(rooms),
            transfer=_transfers(transfer, entering, leaving),
        )
        finite = np.isfinite(choices.seconds)
        tags = np.stack([submesh, configuration, p, q], axis=1)[finite]
        return cls(choices.select(finite), tags, room is not None)

    def slice(
        self,
        num_devices: int,
        pipeline: Pipeline,
        *,
        in_flight: Sequence[int] | None = None,
        num_stages: int | None = None,
    ) -> Slicing:
        """The slicing of least total; arguments and errors as of `slice_stages`."""
        return _slice(
            *(self.choices, self.tags, num_devices, pipeline, self.limited, in_flight, num_stages)
        )


def _grid(shape: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    p, q = np.indices(shape)
    return p.ravel(), q.ravel()


def _num_classes(
    tables: Mapping[tuple[int, int, int, int], FloatArray], num_layers: int, num_submeshes: int
) -> tuple[IntArray, IntArray]:
    """Classes [cut, submesh] that the tables name: entering a stage there, and leaving one."""
    entering, leaving = np.zeros((2, num_layers + 1, num_submeshes), np.int64)
    for (first, last, submesh, _), table in tables.items():
        entering[first, submesh] = max(entering[first, submesh], table.shape[0])
        leaving[last + 1, submesh] = max(leaving[last + 1, submesh], table.shape[1])
    return entering, leaving


def _first_ports(num_classes: IntArray) -> IntArray:
    """First port of each submesh, and the number of ports: a port is a class on a submesh."""
    return np.concatenate([[0], np.cumsum(num_classes.max(axis=0))])


def _transfers(
    transfer: Callable[[int, int, int], FloatArray], entering: IntArray, leaving: IntArray
) -> FloatArray:
    """Times [cut, leaving port, entering port]; infinite between ports that a cut does not have."""
    sender, receiver = _first_ports(leaving), _first_ports(entering)
    times = np.full((len(entering), sender[-1], receiver[-1]), np.inf)
    for cut in range(1, len(entering) - 1):
        for m in np.flatnonzero(leaving[cut]).tolist():
            for n in np.flatnonzero(entering[cut]).tolist():
                block = np.asarray(transfer(cut, m, n), np.float64)
                q, p = leaving[cut, m], entering[cut, n]
                if block.ndim != 2 or block.shape[0] < q or block.shape[1] < p or (block < 0).any():
                    raise PlanError(
                        f"transfer times of shape {block.shape} at the cut before layer {cut} from "
                        f"submesh {m} to {n}: expected {q} leaving by {p} entering, none negative"
                    )
                times[cut, sender[m] : sender[m] + q, receiver[n] : receiver[n] + p] = block[:q, :p]
    return times


def _slice(
    choices: Choices,
    tags: IntArray,
    num_devices: int,
    pipeline: Pipeline,
    limited: bool,
    in_flight: Sequence[int] | None,
    num_stages: int | None,
) -> Slicing:
    """`tags[choice]` = submesh, configuration, entering class, leaving class."""
    most = num_stages or max(
        1, min(choices.num_layers, num_devices // int(choices.devices.min(initial=num_devices)))
    )
    if limited and (in_flight is None or len(in_flight) < most):
        raise PlanError(
            f"memory is limited, and up to {most} stages are possible: in_flight must say for "
            f"each, from the end, how many microbatches it holds, not {in_flight}"
        )
    need = np.array(in_flight[:most] if limited and in_flight else [0] * most, np.int64)
    weights = Weights(pipeline.fill, pipeline.fill_transfer, pipeline.period_transfer)

    def sweep(excess: int) -> Sweep:
        return Sweep(choices, num_devices, need - excess, weights, num_stages)

    found = best_slicing(sweep(0), pipeline.period * (pipeline.num_microbatches - 1))
    if found is None:
        raise _infeasible(sweep, choices, tags, num_devices, need, num_stages)
    stages = tuple(
        Stage(int(first), int(last), int(m), int(c), int(p), int(q), float(seconds))
        for first, last, seconds, (m, c, p, q) in (
            (choices.first[k], choices.last[k], choices.seconds[k], tags[k]) for k in found.choices
        )
    )
    total = pipeline.total([stage.seconds for stage in stages], found.transfers)
    return Slicing(total, stages, found.transfers)


def _infeasible(
    sweep: Callable[[int], Sweep],
    choices: Choices,
    tags: IntArray,
    num_devices: int,
    need: IntArray,
    num_stages: int | None,
) -> InfeasibleError:
    """The error that names the memory that is missing, or else the devices."""
    stages = "stages" if num_stages is None else f"{num_stages} stages"
    what = f"no {stages} of {choices.num_layers} layers use exactly {num_devices} devices"
    nearest = smallest_excess(sweep, int(need.max(initial=0)) + 1)
    if nearest is None:
        sizes = ", ".join(map(str, sorted(set(choices.devices.tolist()))))
        return InfeasibleError(
            f"{what}: submeshes of {sizes or 'no'} devices have a finite cost somewhere, but no "
            "sequence of them covers the layers. Allow other submeshes, costs or numbers of stages"
        )
    excess, found = nearest
    short = [
        f"layers {choices.first[k]}..{choices.last[k]} on submesh {tags[k, 0]} "
        f"({choices.devices[k]} devices) hold {need[left - 1]} microbatches, "
        f"room for {choices.room[k]}"
        for left, k in zip(range(len(found.choices), 0, -1), found.choices, strict=True)
        if choices.room[k] < need[left - 1]
    ]
    return InfeasibleError(
        f"{what} within their memory: some stage lacks room for {excess} microbatches in flight.\n"
        f"  nearest fit: {'; '.join(short)}\n"
        "  Use smaller microbatches, more devices, recomputation, or a schedule that holds fewer."
    )
