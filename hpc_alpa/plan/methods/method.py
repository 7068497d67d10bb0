"""The names of manual methods: `dp2tp2pp2`, `zero2`, `dp4zero3`, `tp2sp`, `shard_largest`.

product  = part {part}           each kind once, in any order
part     = dpN | tpN | ppN       with a degree
         | zero1 | zero2 | zero3 of the data axis; without dpN over all devices that are left
         | sp                    of the tensor axis
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from hpc_alpa.errors import PlanError

_PART = re.compile(r"(dp|tp|pp|zero(?=[123](?!\d)))(\d+)|(sp)")
AXIS_NAME = {  # of each kind of axis; alphabetical
    "dp": "data",
    "largest": "devices",
    "tp": "tensor",
    "tpsp": "tensor",
    "zero1": "data",
    "zero2": "data",
    "zero3": "data",
}


@dataclass(frozen=True)
class Method:
    """Degrees of a manual method.

    Attributes:
        axes: (kind, size) of each mesh axis of a stage, the data axis first.
        stages: number of pipeline stages.
        rest: kind of the axis that gets the devices that the others leave, or None.
    """

    name: str
    axes: tuple[tuple[str, int], ...]
    stages: int = 1
    rest: str | None = None

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        return tuple(n for _, n in self.axes) or (1,)

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(AXIS_NAME[kind] for kind, _ in self.axes) or ("data",)

    @property
    def num_devices(self) -> int:
        return self.stages * math.prod(self.mesh_shape)

    def over(self, num_devices: int) -> Method:
        """The method on so many devices, with no axis left to size.

        Raises:
            PlanError: it is for another number of devices.
        """
        degree, left = divmod(num_devices, self.num_devices)
        if left or (self.rest is None and degree != 1):
            multiple = "a multiple of " if self.rest else ""
            raise PlanError(
                f"method {self.name} is for {multiple}{self.num_devices} devices, there are "
                f"{num_devices}: start as many ranks, or choose another method"
            )
        first = () if self.rest is None or degree == 1 else ((self.rest, degree),)
        return replace(self, axes=(*first, *self.axes), rest=None)


def parse_method(name: str) -> Method:
    """Read a product of methods; a kind may be missing, and the order does not matter.

    Raises:
        PlanError: another form, a kind twice, a degree of 0, or `sp` without `tp`.
    """
    if name == "shard_largest":
        return Method(name, (), rest="largest")
    parts = _PART.findall(name)
    if "".join(map("".join, parts)) != name or not parts:
        raise PlanError(
            f"there is no method {name!r}: use auto, shard_largest, or products of dpN, tpN and "
            "ppN such as dp2tp2, with zero1, zero2 or zero3 for the data axis (zero2, "
            "dp2tp2zero1), and sp for sequence parallelism of the tensor axis (tp2sp)"
        )
    degrees: dict[str, int] = {}
    for kind, n, flag in parts:
        if (kind or flag) in degrees or (kind and int(n) < 1):
            raise PlanError(
                f"method {name!r}: each of dp, tp, pp, zero and sp once, with a degree of at "
                "least 1"
            )
        degrees[kind or flag] = int(n or 1)
    if "sp" in degrees and "tp" not in degrees:
        raise PlanError(
            f"method {name!r}: sp splits the sequence over the devices of tpN; write tp2sp"
        )
    data = f"zero{degrees['zero']}" if "zero" in degrees else "dp"
    kinds = ((data, "dp"), ("tpsp" if "sp" in degrees else "tp", "tp"))
    axes = tuple((kind, degrees[key]) for kind, key in kinds if degrees.get(key, 1) > 1)
    rest = data if "zero" in degrees and "dp" not in degrees else None
    return Method(name, axes, degrees.get("pp", 1), rest)
