"""The TOML form of a cluster: `read`, `parse` and `write`. presets/ shows it."""

import json
import math
import tomllib
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hpc_alpa.cluster.device import Host, Level, Link
from hpc_alpa.errors import ClusterError

Parts = tuple[str, tuple[Host, ...], Link | None, Link | None, tuple[Level, ...]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_cost(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_rates(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_positive, value.values()))


# key: (check, what it must be, required)
Rows = dict[str, tuple[Callable[[Any], bool], str, bool]]
HOST_KEYS: Rows = {
    "name": (_is_text, "a string", False),
    "count": (_is_count, "a whole number of at least 1", False),
    "devices": (_is_count, "a whole number of at least 1", True),
    "cores": (_is_count, "a whole number of at least 1", True),
    "memory_bytes": (_is_positive, "a positive number (bytes per device)", True),
    "flops": (_is_rates, "a table dtype = operations per second, all positive", True),
    "memory_bandwidth": (_is_positive, "a positive number (bytes/s per device)", True),
}
LINK_KEYS: Rows = {
    "alpha": (_is_cost, "a number of seconds, at least 0", True),
    "beta": (_is_cost, "a number of seconds per byte, at least 0", True),
}
LEVEL_KEYS: Rows = {
    "name": (_is_text, "a string", True),
    "hosts": (_is_count, "a whole number of at least 1", True),
    **LINK_KEYS,
}
TOP_KEYS: Rows = {
    "name": (_is_text, "a string", False),
    "host": (lambda v: isinstance(v, list) and bool(v), "one or more [[host]] tables", True),
    "link": (lambda v: isinstance(v, dict), "the tables [link.host] and [link.network]", False),
    "level": (lambda v: isinstance(v, list), "[[level]] tables, the smallest first", False),
}
LINK_NAMES: Rows = {
    name: (lambda v: isinstance(v, dict), "a table with alpha and beta", False)
    for name in ("host", "network")
}


def read(source: str | Path) -> Parts:
    """Parts of a cluster from a path or from TOML text."""
    if isinstance(source, str) and ("\n" in source or "=" in source):
        return parse(source, "cluster text")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"cluster file {path} cannot be read: {error}.") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Parts:
    """Parts of a cluster from TOML text; `where` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ClusterError(f"{where} is not TOML: {error}. Correct the line.") from error
    _check(table, TOP_KEYS, where, "")
    links = table.get("link", {})
    _check(links, LINK_NAMES, where, "link.")
    hosts: list[Host] = []
    for index, entry in enumerate(table["host"]):
        prefix = f"host[{index}]."
        if not isinstance(entry, dict):
            raise ClusterError(f"{where}: host[{index}] is {entry!r}; it must be a [[host]] table.")
        _check(entry, HOST_KEYS, where, prefix)
        hosts.extend([_host(entry)] * entry.get("count", 1))
    found: dict[str, Link | None] = dict.fromkeys(LINK_NAMES)
    for name, entry in links.items():
        _check(entry, LINK_KEYS, where, f"link.{name}.")
        found[name] = Link(name, float(entry["alpha"]), float(entry["beta"]))
    levels: list[Level] = []
    for index, entry in enumerate(table.get("level", [])):
        if not isinstance(entry, dict):
            raise ClusterError(
                f"{where}: level[{index}] is {entry!r}; it must be a [[level]] table."
            )
        _check(entry, LEVEL_KEYS, where, f"level[{index}].")
        link = Link(entry["name"], float(entry["alpha"]), float(entry["beta"]))
        levels.append(Level(entry["hosts"], link))
    return table.get("name", ""), tuple(hosts), found["host"], found["network"], tuple(levels)


def _check(table: dict[str, Any], rows: Rows, where: str, prefix: str) -> None:
    for key, value in table.items():
        if key not in rows:
            raise ClusterError(
                f"{where}: unknown key {prefix}{key} = {value!r}; known keys are "
                f"{', '.join(rows)}. Remove it or correct its name."
            )
        check, kind, _ = rows[key]
        if not check(value):
            raise ClusterError(f"{where}: {prefix}{key} is {value!r}; it must be {kind}.")
    for key, (_, kind, required) in rows.items():
        if required and key not in table:
            raise ClusterError(f"{where}: {prefix}{key} is missing; it must be {kind}.")


def _host(entry: dict[str, Any]) -> Host:
    return Host(
        devices=entry["devices"],
        cores=entry["cores"],
        memory_bytes=float(entry["memory_bytes"]),
        flops=tuple((dtype, float(rate)) for dtype, rate in entry["flops"].items()),
        memory_bandwidth=float(entry["memory_bandwidth"]),
        name=entry.get("name", ""),
    )


def host_content(host: Host) -> dict[str, Any]:
    """What describes a host, without its label."""
    return {
        "devices": host.devices,
        "cores": host.cores,
        "memory_bytes": host.memory_bytes,
        "flops": dict(host.flops),
        "memory_bandwidth": host.memory_bandwidth,
    }


def write(
    name: str,
    hosts: Sequence[Host],
    host_link: Link | None,
    network_link: Link | None,
    levels: Sequence[Level] = (),
) -> str:
    """TOML text of a cluster; equal hosts in a row become one entry with a count."""
    lines = [f"name = {_text(name)}"]
    for host, run in groupby(hosts):
        lines += ["", "[[host]]"]
        lines += [f"name = {_text(host.name)}"] if host.name else []
        lines.append(f"count = {len(list(run))}")
        for key, value in host_content(host).items():
            lines.append(f"{key} = {_rates(value) if isinstance(value, dict) else repr(value)}")
    for link_name, link in (("host", host_link), ("network", network_link)):
        if link is not None:
            lines += ["", f"[link.{link_name}]"]
            lines += [f"alpha = {link.alpha!r}", f"beta = {link.beta!r}"]
    for level in levels:
        lines += ["", "[[level]]", f"name = {_text(level.link.name)}", f"hosts = {level.hosts}"]
        lines += [f"alpha = {level.link.alpha!r}", f"beta = {level.link.beta!r}"]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is and TOML forbids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _rates(rates: dict[str, float]) -> str:
    def key(dtype: str) -> str:
        return dtype if dtype.isidentifier() and dtype.isascii() else _text(dtype)

    return "{" + ", ".join(f"{key(dtype)} = {rate!r}" for dtype, rate in rates.items()) + "}"
