"""A cluster: hosts and the links between their devices, kept as TOML, known by its digest."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from hpc_alpa.cluster import toml
from hpc_alpa.cluster.device import NO_LINK, Device, Host, Level, Link
from hpc_alpa.errors import ClusterError

PRESETS = (  # files presets/<name>.toml, alphabetical
    "alps",
    "dgx-a100",
    "dgx-h100",
    "juwels-booster",
    "laptop",
    "p3.16xlarge",
    "perlmutter",
)


@dataclass(frozen=True)
class Cluster:
    """Hosts, each with its devices, and their links: within a host, between hosts, and above.

    Devices are numbered host by host. `network_link` may be None with one host, `host_link` may be
    None where every host has one device. Hosts of one run of a level have the link of the level
    below it; the lowest have the network's.
    """

    name: str
    hosts: tuple[Host, ...]
    host_link: Link | None = None
    network_link: Link | None = None
    levels: tuple[Level, ...] = ()

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ClusterError(
                f"cluster {self.name!r} has no host; it needs at least one [[host]] entry."
            )
        widest = max(host.devices for host in self.hosts)
        if widest > 1 and self.host_link is None:
            raise ClusterError(
                f"cluster {self.name!r} has a host with {widest} devices and no [link.host]; "
                "add the table with alpha (seconds) and beta (seconds/byte)."
            )
        if len(self.hosts) > 1 and self.network_link is None:
            raise ClusterError(
                f"cluster {self.name!r} has {len(self.hosts)} hosts and no [link.network]; "
                "add the table with alpha (seconds) and beta (seconds/byte)."
            )

        sizes = [level.hosts for level in self.levels]
        if any(b % a or b == a for a, b in zip([1, *sizes], sizes, strict=False)):
            raise ClusterError(
                f"the levels of cluster {self.name!r} hold {sizes} hosts; each must hold several "
                "whole runs of the one before it, and the first several hosts."
            )

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """All devices, numbered host by host."""
        places = [h for h, host in enumerate(self.hosts) for _ in range(host.devices)]
        return tuple(Device(index, host) for index, host in enumerate(places))

    @property
    def num_devices(self) -> int:
        return len(self.devices)

    @property
    def num_hosts(self) -> int:
        return len(self.hosts)

    def host_of(self, device: int) -> int:
        """Index in `hosts` of the host that holds `device`."""
        if not 0 <= device < self.num_devices:
            raise ClusterError(
                f"device {device} is not in cluster {self.name!r}, which has devices 0 to "
                f"{self.num_devices - 1}. Use a larger cluster or fewer devices."
            )
        return self.devices[device].host

    def link(self, devices: Sequence[int]) -> Link:
        """The slowest link that a group of devices crosses; NO_LINK for a single device."""
        hosts = {self.host_of(device) for device in devices}
        if len(set(devices)) < 2:
            return NO_LINK
        if len(hosts) == 1:
            assert self.host_link is not None, "__post_init__ has checked that the link exists"
            return self.host_link
        first, last = min(hosts), max(hosts)
        crossed = [v.link for v in self.levels if first // v.hosts != last // v.hosts]
        assert self.network_link is not None, "__post_init__ has checked that the link exists"
        return max([self.network_link, *crossed], key=lambda link: (link.beta, link.alpha))

    @cached_property
    def digest(self) -> str:
        """sha256 of hosts, links and levels; names are labels and do not count."""
        content: dict[str, Any] = {
            "host": [toml.host_content(host) for host in self.hosts],
            "link": {
                kind: [link.alpha, link.beta]
                for kind, link in (("host", self.host_link), ("network", self.network_link))
                if link is not None
            },
        }
        if self.levels:
            content["level"] = [[v.hosts, v.link.alpha, v.link.beta] for v in self.levels]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_toml(cls, source: str | Path) -> "Cluster":
        """Read a cluster from a TOML file, or from TOML text.

        A `Path`, and a string of one line without `=`, is a path; any other string is text.

        Raises:
            ClusterError: names the file, the key and its value.
        """
        return cls(*toml.read(source))

    def to_toml(self) -> str:
        """TOML text; `Cluster.from_toml(c.to_toml()) == c`."""
        return toml.write(self.name, self.hosts, self.host_link, self.network_link, self.levels)

    @classmethod
    def preset(cls, name: str) -> "Cluster":
        """A cluster that ships with the package: `"p3.16xlarge"`, or eight such hosts
        `"p3.16xlarge:8"`. Names are in PRESETS."""
        kind, colon, count = name.partition(":")
        if kind not in PRESETS:
            raise ClusterError(f"there is no preset {kind!r}; choose one of {', '.join(PRESETS)}.")
        if colon and not (count.isdecimal() and int(count) > 0):
            raise ClusterError(
                f"the number of hosts of preset {name!r} is {count!r}; it must be a whole number "
                f"of at least 1, as in {kind}:8."
            )
        path = resources.files("hpc_alpa.cluster") / "presets" / f"{kind}.toml"
        one = cls(*toml.parse(path.read_text(encoding="utf-8"), f"preset {kind}"))
        return replace(one, name=name, hosts=one.hosts * int(count)) if colon else one
