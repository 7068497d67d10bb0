"""What a cluster is made of: devices, hosts and links."""

import math
from dataclasses import dataclass

from hpc_alpa.errors import ClusterError

# Rate of a floating dtype that a host does not list, from one that it lists:
# (listed dtype, factor). A vector unit holds half as many float64 as float32; a processor without
# 16-bit arithmetic computes in float32. First listed dtype wins.
RATE_RULES: dict[str, tuple[tuple[str, float], ...]] = {
    "bfloat16": (("float16", 1.0), ("float32", 1.0), ("float64", 2.0)),
    "float16": (("bfloat16", 1.0), ("float32", 1.0), ("float64", 2.0)),
    "float32": (("float64", 2.0),),
    "float64": (("float32", 0.5),),
}


@dataclass(frozen=True, order=True)
class Device:
    """One device of a cluster: its index in the whole cluster and the index of its host."""

    index: int
    host: int


@dataclass(frozen=True)
class Host:
    """One machine with equal devices.

    `cores` is what the devices of a host without accelerators share; ranks may outnumber them.
    `memory_bytes` (bytes), `flops` (attainable floating-point operations per second, by dtype) and
    `memory_bandwidth` (bytes/s) are each per device. `name` is a label and part of no digest.
    """

    devices: int
    cores: int
    memory_bytes: float
    flops: tuple[tuple[str, float], ...]
    memory_bandwidth: float
    name: str = ""

    def __post_init__(self) -> None:
        for key in ("devices", "cores"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ClusterError(
                    f"{key} of host {self.name!r} is {value!r}; it must be a whole number of at "
                    "least 1. Correct the host's entry."
                )
        numbers = {
            "memory_bytes": self.memory_bytes,
            "memory_bandwidth": self.memory_bandwidth,
            **{f"flops.{dtype}": rate for dtype, rate in self.flops},
        }
        for key, value in numbers.items():
            if not (math.isfinite(value) and value > 0):
                raise ClusterError(
                    f"{key} of host {self.name!r} is {value!r}; it must be a positive finite "
                    "number. Correct the host's entry."
                )
        if not self.flops:
            raise ClusterError(
                f"flops of host {self.name!r} lists no dtype; at least one is needed, for example "
                "flops = {float32 = 1e11}."
            )
        object.__setattr__(self, "flops", tuple(sorted(self.flops)))

    def rate(self, dtype: str) -> float:
        """Attainable operations per second of one device in `dtype`.

        A floating dtype that the host does not list follows RATE_RULES. Integers and bools run at
        the fastest listed rate: such equations move bytes and are priced by them.

        Raises:
            ClusterError: `dtype` is a floating dtype without a rule.
        """
        listed = dict(self.flops)
        if dtype in listed:
            return listed[dtype]
        if dtype == "bool" or dtype.startswith(("int", "uint")):
            return max(listed.values())
        for source, factor in RATE_RULES.get(dtype, ()):
            if source in listed:
                return listed[source] * factor
        raise ClusterError(
            f"host {self.name!r} has no rate for {dtype}; listed are {sorted(listed)}. "
            f"Add it to the host's entry: flops = {{{dtype} = ...}}."
        )


@dataclass(frozen=True)
class Link:
    """A kind of connection: n bytes take alpha (seconds) + beta (seconds/byte) * n."""

    name: str
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for key, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not (math.isfinite(value) and value >= 0):
                raise ClusterError(
                    f"{key} of link {self.name!r} is {value!r}; it must be a finite number of at "
                    "least 0. Correct the link's entry."
                )

    def seconds(self, nbytes: float) -> float:
        """Seconds of one message of `nbytes` bytes."""
        return self.alpha + self.beta * nbytes


@dataclass(frozen=True)
class Level:
    """Runs of `hosts` consecutive hosts (a switch, a rack, an island), and the link between them.

    The last run of a cluster may be shorter.
    """

    hosts: int
    link: Link

    def __post_init__(self) -> None:
        if not isinstance(self.hosts, int) or isinstance(self.hosts, bool) or self.hosts < 1:
            raise ClusterError(
                f"level {self.link.name!r} has runs of {self.hosts!r} hosts; it must be a whole "
                "number of at least 1. Correct the level's entry."
            )


NO_LINK = Link("none", 0.0, 0.0)
"""What a group of one device crosses."""
