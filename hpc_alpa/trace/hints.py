"""What to write instead of a NumPy function without a lowering, alphabetical within each reason."""

from __future__ import annotations

_REASONS: dict[str, tuple[str, ...]] = {
    "a plain array cannot hold traced values; build the result with np.where or np.concatenate": (
        "copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask",
    ),
    "join traced arrays with np.stack or np.concatenate": (
        "append", "array", "asanyarray", "asarray", "ascontiguousarray", "block", "insert",
    ),
    "return the array from the step and write or print it there": (
        "array2string", "array_repr", "array_str", "save", "savetxt", "savez", "savez_compressed",
    ),
    "the shape of the result would depend on values; write np.where(mask, x, 0)": (
        "argwhere", "compress", "delete", "extract", "flatnonzero", "intersect1d", "nonzero",
        "setdiff1d", "setxor1d", "trim_zeros", "union1d", "unique", "unique_all", "unique_counts",
        "unique_inverse", "unique_values",
    ),
    "the answer would be a Python bool; compare with == and reduce with .all()": (
        "allclose", "array_equal", "array_equiv",
    ),
    "there is no operator for it; compute it outside the step and pass it in as an argument": (
        "argpartition", "argsort", "eye", "fft", "median", "partition", "quantile", "sort",
    ),
    "a traced array has no values to start from; write np.zeros_like": ("empty_like",),
    "for positive values write np.exp(np.log(x).sum())": ("cumprod", "prod"),
    "there is no operator for rounding; keep integers as integers and step by np.where": (
        "ceil", "divmod", "fix", "floor", "floor_divide", "fmod", "modf", "remainder", "rint",
        "round", "trunc",
    ),
    "write x[..., None] * y and reshape": ("kron",),
}  # fmt: skip

HINTS: dict[str, str] = {name: reason for reason, names in _REASONS.items() for name in names}

DEFAULT = (
    "there is no operator for it; compose it from functions that have one (the tables in "
    "hpc_alpa.trace), or compute it outside the step and pass it in"
)


def hint(name: str) -> str:
    return HINTS.get(name.rpartition(".")[2], DEFAULT)
