"""The kernel column: on every tile of every strategy it does what the row's reference does."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_alpa.arrays import BACKENDS
from hpc_alpa.ir import TABLE, environment
from hpc_alpa.ir.evaluate import whole_call
from hpc_alpa.sharding import all_coords, local_call, runs_in_phases, strategies
from tests.helpers.random_equations import random_equation
from tests.helpers.simulated_mesh import SimulatedMesh

HOST = BACKENDS["host"]()
KERNELS = sorted(name for name, row in TABLE.items() if row.kernel)


def strided(x: np.ndarray) -> np.ndarray:
    """The same values in another order in memory, as a transposed view has them."""
    return np.asfortranarray(x) if x.ndim > 1 else np.repeat(x, 2)[::2] if x.ndim else x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_computes_the_reference(name: str, dtype: str) -> None:
    tolerance = {"float32": 2e-5, "float64": 1e-11}[dtype]
    for seed in range(25):
        drawn = random_equation(name, seed, dtype)
        values = environment(drawn.graph, drawn.arrays)
        (e,) = drawn.graph.eqns
        assert e.op.kernel is not None
        for arrays in (drawn.arrays, [strided(x) for x in drawn.arrays]):
            got = e.op.kernel(HOST, whole_call(e), *arrays)
            want = values[e.output]
            assert (got.shape, got.dtype) == (want.shape, want.dtype), str(e)
            np.testing.assert_allclose(got, want, tolerance, tolerance, err_msg=str(e))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_makes_the_tile_that_the_call_names(name: str) -> None:
    tiles = 0
    for seed, mesh in ((s, m) for s in range(8) for m in ((2,), (2, 2))):
        drawn = random_equation(name, seed)
        values = environment(drawn.graph, drawn.arrays)
        (e,) = drawn.graph.eqns
        assert e.op.kernel is not None
        devices = SimulatedMesh(mesh, np.random.default_rng(seed))
        for s in strategies(e, mesh):
            if runs_in_phases(e, s):
                continue
            operands = [devices.scatter(values[v], x) for v, x in zip(e.inputs, s.inputs)]
            for c in all_coords(mesh):
                call = local_call(e, s, mesh, c)
                arrays = [held.tiles[c] for held in operands]
                got, want = e.op.kernel(HOST, call, *arrays), e.op.reference(call, *arrays)
                assert got.shape == want.shape == call.type.shape
                np.testing.assert_allclose(got, want, 1e-10, 1e-10, err_msg=f"{e} {s} {c}")
                tiles += 1
    assert tiles > 50
