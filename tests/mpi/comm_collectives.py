"""All cases over MPI. Run by tests/test_comm_mpi.py on 1 to 4 ranks, in one job each."""

from __future__ import annotations

import pytest

from hpc_alpa.comm.mpi import world
from tests.mpi import collective_cases as cases


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("case", cases.BY_DTYPE)
def test_by_dtype(case: str, dtype: str) -> None:
    cases.BY_DTYPE[case](world(), dtype)


@pytest.mark.parametrize("case", cases.CASES)
def test_case(case: str) -> None:
    cases.CASES[case](world())
