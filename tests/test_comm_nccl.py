"""The NCCL backend: its numbers and calls against CuPy's own, and all collectives on the double."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hpc_alpa.comm import nccl as backend
from hpc_alpa.comm.dtypes import DTYPES, NCCL_BYTE, REDUCTIONS
from hpc_alpa.comm.local import single
from hpc_alpa.errors import CommError
from tests.helpers import fake_nccl

# CuPy 14.2.0 with NCCL 2.32.3: the first line of each docstring of `cupy.cuda.nccl`, without types.
SIGNATURES = {
    "NcclCommunicator": ("ndev", "commId", "rank", "config"),
    "NcclCommunicator.abort": (),
    "NcclCommunicator.allGather": ("sendbuf", "recvbuf", "count", "datatype", "stream"),
    "NcclCommunicator.allReduce": ("sendbuf", "recvbuf", "count", "datatype", "op", "stream"),
    "NcclCommunicator.bcast": ("buff", "count", "datatype", "root", "stream"),
    "NcclCommunicator.broadcast": ("sendbuff", "recvbuff", "count", "datatype", "root", "stream"),
    "NcclCommunicator.check_async_error": (),
    "NcclCommunicator.commSplit": ("color", "key", "config"),
    "NcclCommunicator.destroy": (),
    "NcclCommunicator.device_id": (),
    "NcclCommunicator.initAll": ("devices",),
    "NcclCommunicator.rank_id": (),
    "NcclCommunicator.recv": ("recvbuf", "count", "datatype", "peer", "stream"),
    "NcclCommunicator.reduce": ("sendbuf", "recvbuf", "count", "datatype", "op", "root", "stream"),
    "NcclCommunicator.reduceScatter": (
        "sendbuf", "recvbuf", "recvcount", "datatype", "op", "stream",
    ),
    "NcclCommunicator.send": ("sendbuf", "count", "datatype", "peer", "stream"),
    "NcclCommunicator.size": (),
    "NcclConfig": ("split_share",),
    "get_build_version": (),
    "get_unique_id": (),
    "get_version": (),
    "groupEnd": (),
    "groupStart": (),
}  # fmt: skip
CONSTANTS = {
    "NCCL_AVG": 4, "NCCL_BFLOAT16": 9, "NCCL_CHAR": 0, "NCCL_DOUBLE": 8, "NCCL_FLOAT": 7,
    "NCCL_FLOAT16": 6, "NCCL_FLOAT32": 7, "NCCL_FLOAT64": 8, "NCCL_HALF": 6, "NCCL_INT": 2,
    "NCCL_INT32": 2, "NCCL_INT64": 4, "NCCL_INT8": 0, "NCCL_MAX": 2, "NCCL_MIN": 3, "NCCL_PROD": 1,
    "NCCL_SUM": 0, "NCCL_UINT32": 3, "NCCL_UINT64": 5, "NCCL_UINT8": 1,
}  # fmt: skip


def constants(module: ModuleType) -> dict[str, int]:
    return {k: v for k, v in vars(module).items() if k.startswith("NCCL_")}


def real_nccl() -> Any:
    """CuPy's module where it can be loaded, which needs libnccl but no GPU."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed (extra cuda12)")
    from cupy.cuda import nccl

    if not nccl.available:
        pytest.skip("CuPy finds no NCCL (extra cuda12)")
    return nccl


def look_up(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def parameters_from_docstring(function: Any) -> tuple[str, ...]:
    """Cython writes the signature into the docstring: `f(self, intptr_t buf, int n=None)`."""
    line = function.__doc__.splitlines()[0]
    inside = re.fullmatch(r"[\w.]+\((.*)\)", line)
    assert inside, line
    names = [p.split("=")[0].split()[-1] for p in inside[1].split(",") if p.strip()]
    return tuple(n for n in names if n != "self")


def test_constants_and_signatures_are_cupys() -> None:
    real = real_nccl()
    assert constants(real) == CONSTANTS
    for name, parameters in SIGNATURES.items():
        assert parameters_from_docstring(look_up(real, name)) == parameters, name
    public = {n for n in vars(real.NcclCommunicator) if not n.startswith("_")} - {"comm"}
    assert {f"NcclCommunicator.{n}" for n in public} == {n for n in SIGNATURES if "." in n}


def test_the_double_has_cupys_constants_and_signatures() -> None:
    assert constants(fake_nccl) == CONSTANTS
    for name, parameters in SIGNATURES.items():
        found = [p for p in inspect.signature(look_up(fake_nccl, name)).parameters if p != "self"]
        assert tuple(found) == parameters, name
    assert isinstance(fake_nccl.NcclCommunicator.comm, property)


def test_our_table_has_cupys_numbers() -> None:
    for name, row in DTYPES.items():
        same = {"bool": "UINT8"}.get(name, name.upper())
        assert row.nccl == CONSTANTS.get(f"NCCL_{same}"), name
    for name, reduction in REDUCTIONS.items():
        assert reduction.nccl == CONSTANTS[f"NCCL_{name.upper()}"]
    assert CONSTANTS["NCCL_UINT8"] == NCCL_BYTE


def test_our_calls_exist_with_as_many_arguments() -> None:
    """Each call in the backend's source has a method of that name with that many arguments."""
    import ast

    seen = set()
    for node in ast.walk(ast.parse(inspect.getsource(backend))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            name = node.func.attr
            key = {"self._comm": f"NcclCommunicator.{name}", "self._nccl": name}.get(owner)
            if key is not None:
                seen.add(key)
                required = len(SIGNATURES[key]) - ("config" in SIGNATURES[key])
                assert len(node.args) == required, ast.unparse(node)
    assert {"NcclCommunicator.allReduce", "NcclCommunicator.send", "groupEnd"} <= seen


@pytest.mark.parametrize("ranks", [4])
def test_collectives_on_the_double(mpiexec: Any, ranks: int) -> None:
    bulk = ["-m", "mpi4py", "-m", "pytest", "-p", "no:cacheprovider", "tests/mpi/comm_nccl.py"]
    result = mpiexec(ranks, bulk, timeout=60)
    assert result.stdout.count(" passed") == ranks and "failed" not in result.stdout


def test_init_all_of_the_double() -> None:
    """Several ranks in one process: calls of a group run when all ranks have made them."""
    comms = fake_nccl.NcclCommunicator.initAll([0, 2, 5])
    x = np.arange(12, dtype=np.float64).reshape(3, 4)
    expected = {"sum": x.sum(0), "max": x.max(0), "mean": x.mean(0)}
    out = {name: np.zeros_like(x) for name in expected}
    ops = {"sum": fake_nccl.NCCL_SUM, "max": fake_nccl.NCCL_MAX, "mean": fake_nccl.NCCL_AVG}
    rotated, on_root = np.zeros_like(x), np.zeros_like(x)
    fake_nccl.groupStart()
    for rank, comm in enumerate(comms):
        assert (comm.rank_id(), comm.size()) == (rank, 3)
        source = x[rank].ctypes.data
        for name, op in ops.items():
            comm.allReduce(source, out[name][rank].ctypes.data, 4, fake_nccl.NCCL_DOUBLE, op, 0)
        comm.reduce(source, on_root[rank].ctypes.data, 4, fake_nccl.NCCL_DOUBLE, 0, 1, 0)
        comm.send(source, 4, fake_nccl.NCCL_DOUBLE, (rank + 1) % 3, 0)
        comm.recv(rotated[rank].ctypes.data, 4, fake_nccl.NCCL_DOUBLE, (rank - 1) % 3, 0)
    fake_nccl.groupEnd()
    for name, values in expected.items():
        np.testing.assert_allclose(out[name], np.broadcast_to(values, (3, 4)))
    np.testing.assert_array_equal(rotated, np.roll(x, 1, axis=0))
    np.testing.assert_array_equal(on_root, [x[0] * 0, x.sum(0), x[0] * 0])
    with pytest.raises(fake_nccl.NcclError, match="INVALID_USAGE"):
        fake_nccl.groupEnd()


def test_without_cupy_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises((CommError, ImportError)):
        backend.create(single())


def test_importing_the_backend_needs_no_cupy() -> None:
    source = inspect.getsource(backend)
    assert not re.search(r"^(import|from) cupy", source, re.MULTILINE)
