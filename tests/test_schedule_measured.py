"""Schedules on ranks with artificial work: the order of their times is that of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import schedule_times
from tests.helpers.schedules import TRAINING

pytestmark = [pytest.mark.alone, pytest.mark.slow]  # on idle cores alone


def test_the_order_of_schedules_holds_on_ranks(mpiexec) -> None:  # type: ignore[no-untyped-def]
    done = mpiexec(4, [str(Path(schedule_times.__file__)), *TRAINING], timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    measured = {name: found[name]["measured"] for name in TRAINING}
    for name in TRAINING:
        assert found[name]["modelled"] < measured[name] < 1.3 * found[name]["modelled"], found
    assert measured["interleaved_1f1b"] < 0.98 * measured["1f1b"], found
    assert measured["zb_h1"] < 0.98 * measured["1f1b"], found
    assert measured["zb_v"] < measured["zb_h1"], found
