"""Softmax over the last dim, per element."""

from typing import Any


def num_visible(row: Any, row_offset: Any, column_offset: Any, num_columns: Any) -> Any:
    """Leading columns of a tile that a causal row sees: column_offset + j <= row_offset + row."""
    return min(max(row_offset + row - column_offset + 1, 0), num_columns)


def grad(y: Any, ct: Any, dot: Any, scale: Any) -> Any:
    """Gradient at one element; `dot` is the row's sum of y * ct."""
    return y * (ct - dot) * scale
