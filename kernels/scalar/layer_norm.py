"""Layer normalisation over the last dim, per element."""

from typing import Any


def normalise(x: Any, mean: Any, rstd: Any) -> Any:
    """(x - mean) / sqrt(variance + eps), with `rstd` the reciprocal root."""
    return (x - mean) * rstd


def grad(normal: Any, flow: Any, mean_flow: Any, mean_flow_normal: Any, rstd: Any) -> Any:
    """Gradient by x at one element; `flow` = ct * scale; row means of flow and of flow * normal."""
    return rstd * (flow - mean_flow - normal * mean_flow_normal)
