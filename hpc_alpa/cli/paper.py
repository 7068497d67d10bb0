"""A model of the paper, planned or simulated by its name."""

from __future__ import annotations

from hpc_alpa.api.compile import Options, Step, trace_step
from hpc_alpa.api.planning import Failed, Planned, Target, stop
from hpc_alpa.models import paper_model
from hpc_alpa.pytree import flatten


def planned_model(name: str, target: Target) -> Planned:
    """Trace `gpt-39B` with the paper's batch, and plan it; no parameter is made.

    Raises:
        DataError: there is no such model.
        PlanError: as planning a script.
    """
    model = paper_model(name)

    def traced() -> Step:
        state, batch = model.example()
        leaves, tree = flatten(state, "state")
        return trace_step(model.train_step, (state, batch), len(leaves), tree, False)

    try:
        stop(target, traced, None, None, Options())
    except Planned as found:
        return found
    except Failed as failed:
        raise failed.error from None
