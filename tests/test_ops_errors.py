"""Operands and parameters that do not fit have a named error that says what was given."""

from __future__ import annotations

import pytest

import hpc_alpa.ops  # noqa: F401  (fills the table)
from hpc_alpa.errors import GraphError
from hpc_alpa.ir import TABLE, TensorType, op

F, M = TensorType((4,), "float32"), TensorType((4, 6), "float32")
S = TensorType((), "float32")
D = F.with_dtype("float64")
I, B = F.with_dtype("int64"), F.with_dtype("bool")  # noqa: E741
NONE: dict[str, object] = {}

X, W = TensorType((2, 5, 6, 4), "float32"), TensorType((3, 3, 4, 6), "float32")
P = ((0, 0), (0, 0))
X3, I3 = TensorType((2, 4, 6), "float32"), TensorType((2, 4, 1), "int64")
S1: dict[str, object] = {"strides": (1, 1), "padding": P}
P2: dict[str, object] = {"window": (2, 2), "strides": (2, 2), "padding": P}

# operator, operand types, parameters, wanted type, message
CASES = [
    # elementwise
    ("add", (F, D), NONE, None, "add takes operands of one dtype, not .'float32', 'float64'"),
    ("add", (F, M), NONE, None, r"of one shape \(or 0-d\), not \[\(4,\), \(4, 6\)\]"),
    ("add", (F,), NONE, None, "add takes 2 operands, not 1"),
    ("add", (B, B), NONE, None, r"add takes numeric values, not bool\[4\]; cast them first"),
    ("exp", (F, F), NONE, None, "exp takes 1 operands, not 2"),
    ("exp", (I,), NONE, None, r"exp takes floating values, not int64\[4\]; cast them first"),
    ("div", (I, I), NONE, None, "div takes floating values"),
    ("gelu", (I,), NONE, None, "gelu takes floating values"),
    ("gelu_grad", (F,), NONE, None, "gelu_grad takes 2 operands, not 1"),
    ("compare", (F, F), NONE, None, "directions eq, ge, gt, le, lt, ne, not None"),
    ("compare", (F, F), {"direction": "up"}, None, "not 'up'"),
    ("select", (F, F, F), NONE, None, r"select takes a bool mask, not float32\[4\]"),
    ("select", (B, F, D), NONE, None, "one dtype"),
    ("select", (B, M, M), NONE, None, "one shape"),
    ("select", (B, F), NONE, None, "select does not take"),
    ("cast", (F,), NONE, None, r"cast does not take \(float32\[4\]\).*dtype"),
    # movement
    ("broadcast", (F,), {"dims": (1,)}, None, "told the type of its output"),
    ("broadcast", (F,), {"dims": (0,)}, M.with_shape((6, 4)), "does not give float32.6,4"),
    ("broadcast", (F,), {"dims": (0, 1)}, M, "needs 1 rising dims, not .0, 1"),
    ("broadcast", (M,), {"dims": (1, 0)}, M, "needs 2 rising dims, not .1, 0"),
    ("broadcast", (F,), {"dims": (2,)}, M, "does not give"),
    ("reshape", (M,), NONE, F, "has 24 elements, .* has 4"),
    ("transpose", (M,), {"perm": (0, 0)}, None, "not an order of the dims"),
    ("transpose", (M,), {"perm": (0,)}, None, "not an order of the dims"),
    ("slice", (M,), {"starts": (0, 4)}, M.with_shape((4, 3)), "leaves dim 1"),
    ("slice", (M,), {"starts": (0,)}, M.with_shape((4, 3)), "needs one start a dim"),
    ("slice", (M,), {"starts": (0, 0)}, F, "needs one start a dim"),
    ("pad", (M,), {"starts": (0, 4)}, M.with_shape((4, 9)), "leaves dim 1"),
    ("pad", (M,), {"starts": (0, -1)}, M.with_shape((4, 9)), "leaves dim 1"),
    ("concatenate", (F, M), {"dim": 0}, None, "concatenate"),
    ("concatenate", (F, D), {"dim": 0}, None, "does not fit"),
    ("concatenate", (F, F), {"dim": 1}, None, "concatenate"),
    ("concatenate", (), {"dim": 0}, None, "concatenate does not take"),
    # reductions
    ("reduce_sum", (M,), {"dims": (2,)}, None, "rising dims below 2, not .2"),
    ("reduce_sum", (M,), {"dims": (1, 0)}, None, "rising dims"),
    ("reduce_sum", (M,), {"dims": (-1,)}, None, "rising dims"),
    ("reduce_sum", (B,), {"dims": (0,)}, None, "takes numbers, not bool.4.; cast it first"),
    ("cumsum", (B,), {"dim": 0}, None, "takes numbers"),
    ("cumsum", (F,), {"dim": 1}, None, "a dim below 1, not 1"),
    ("argmax", (F,), {"dim": -1}, None, "a dim below 1, not -1"),
    ("top_k", (F,), {"k": 5}, None, "1 to all of the last dim, not 5 of float32.4."),
    ("top_k", (S,), {"k": 1}, None, "top_k"),
    ("max_mask", (I,), {"dims": (0,)}, None, "floating"),
    ("max_mask", (F,), {"dims": (1,)}, None, "rising dims below 1"),
    # contraction
    ("dot_general", (M, M), {"equation": "ab,bc->ac"}, None, "dim b is 6 and 4"),
    ("dot_general", (M, F), {"equation": "ab,bc->ac"}, None, "does not fit the dims of float32.4."),
    ("dot_general", (M, M), {"equation": "ab,ab->"}, None, None),
    ("dot_general", (M, F), {"equation": "ab,a->"}, None, "every dim of one operand alone"),
    ("dot_general", (M, F), {"equation": "ab,a->bd"}, None, "every dim"),
    ("dot_general", (M, D), {"equation": "ab,a->b"}, None, "one dtype"),
    ("dot_general", (B, B), {"equation": "a,a->"}, None, "takes numbers"),
    ("dot_general", (M, M), {"equation": "ab"}, None, "dot_general does not take"),
    ("dot_general", (M, M), {"equation": "aB,aB->"}, None, "named by lower-case letters"),
    # indexing
    ("gather", (M, F), NONE, None, r"gather takes integer indices, not float32\[4\]"),
    ("gather", (F, I), NONE, None, "rows of a 2-d table"),
    ("scatter_add", (M, I), NONE, None, "cannot make None"),
    ("scatter_add", (M, I), NONE, M.with_shape((9, 5)), "cannot make float32.9,5."),
    ("pick", (M, I.with_shape((5,))), NONE, None, "one index a row"),
    ("pick", (M, F), NONE, None, "integer indices"),
    ("pick", (M, I.with_shape((5, 2))), NONE, None, "or one dim of them"),
    ("pick", (S, I), NONE, None, "one index a row"),
    ("unpick", (F, I), NONE, M.with_shape((5, 6)), "cannot make"),
    ("unpick", (F, I), NONE, None, "cannot make None"),
    # sources
    ("full", (), {"value": 1}, None, "told the type of its output"),
    ("iota", (), {"dim": 1}, F, "a dim below 1, not 1"),
    ("random_bits", (S, S), {"kind": "uniform", "key": 1}, F, "0-d integers, not float32"),
    ("random_bits", (), {"kind": "gamma", "key": 1}, F, "bits, uniform, normal, not 'gamma'"),
    ("random_bits", (), {"kind": "bits", "key": 1}, F, "uint32 or uint64, not float32"),
    ("random_bits", (), {"kind": "normal", "key": 1}, I, "float32 or float64, not int64"),
    # windows
    ("conv", (X, W), {"strides": (1,), "padding": P}, None, "as many window extents, strides"),
    ("conv", (X, W), {"strides": (0, 1), "padding": P}, None, "strides of at least 1"),
    ("conv", (X, W), {"strides": (1, 1), "padding": ((3, 0), (0, 0))}, None, "less padding than"),
    ("conv", (X.with_shape((2, 2, 5, 4)), W), S1, None, "does not fit into .2, 5."),
    ("conv", (X, W.with_shape((3, 3, 3, 6))), S1, None, "4 channels and .* takes 3 for 6 outputs"),
    ("conv", (X, W.with_shape((3, 3, 1, 6))), S1, None, "same number of groups"),
    ("conv", (X, W.with_shape((3, 4, 6))), S1, None, r"x \(batch, \*spatial, channels\)"),
    ("conv", (X, W.with_dtype("float64")), S1, None, "one floating dtype"),
    ("conv", (X, W.with_shape((3, 3, 2, 6))), S1, None, None),
    ("conv_grad_input", (X, W), S1, None, "told the type"),
    ("conv_grad_input", (X, W), S1, X, "conv_grad_input"),
    ("conv_grad_weight", (X, X), S1, W, "cannot make float32.3,3,4,6."),
    ("pool", (X,), {"kind": "mean", **P2}, None, "pool has kinds max, sum, not 'mean'"),
    ("pool", (M,), {"kind": "max", **P2}, None, r"floating x \(batch, \*spatial, channels\)"),
    ("pool", (X,), {"kind": "max", **P2, "window": (9, 9)}, None, "does not fit"),
    ("unpool", (X,), P2, X, "unpool of"),
    ("pool_pick", (X, W), P2, None, "two values of one type"),
    ("pool_unpick", (X, X), P2, None, "one value a window"),
    # experts
    ("dispatch", (X3, I3, I3), NONE, None, "told the type of its output"),
    ("dispatch", (X3, I3, I3), NONE, X, r"dispatch takes tokens \(groups, tokens, width\)"),
    ("dispatch", (X3, I3, X3), NONE, X.with_shape((2, 3, 3, 6)), "two integers a token"),
    ("dispatch", (X3, I3, I3, X3), NONE, X.with_shape((2, 3, 3, 6)), "a weight each or none"),
    ("combine", (M, I3, I3), NONE, None, "combine takes places of experts"),
    ("combine", (X, I3, I3.with_shape((2, 4, 2))), NONE, None, "two integers a token and choice"),
    ("combine_grad_weights", (X, I3, I3, X3), NONE, None, "combine_grad_weights takes tokens"),
    # batch norm
    ("batch_moments", (F,), NONE, None, r"floating x \(batch, \*spatial, channels\)"),
    ("batch_statistics", (M,), {"count": 2}, None, "float64.2,channels. and"),
    ("batch_norm", (M, M, F, F), {"eps": 1e-5}, None, "takes .float32.4,6., float64.2,6."),
    ("batch_norm", (M, M.with_shape((2, 6))), {"eps": 1e-5}, None, "batch_norm takes"),
    ("batch_norm_grad", (M, M), NONE, None, "batch_norm_grad does not take .* 'eps'|KeyError"),
    ("batch_norm_grad_sums", (I, I, I), {"eps": 1e-5}, None, "floating x"),
    # fused
    ("softmax", (S,), {"scale": 1.0, "causal": False}, None, "softmax takes 1 floating"),
    ("softmax", (I,), {"scale": 1.0, "causal": False}, None, "softmax takes 1 floating"),
    ("softmax", (F,), {"scale": 1.0, "causal": True}, None, "needs a query and a key dim"),
    ("softmax", (F, F), {"scale": 1.0, "causal": False}, None, "softmax takes 1 floating"),
    ("softmax_grad", (F, D), {"scale": 1.0, "causal": False}, None, "of one type"),
    ("layer_norm", (M, F, F), {"eps": 1e-5}, None, "vectors of its last dim"),
    ("layer_norm", (M, F.with_shape((6,))), {"eps": 1e-5}, None, "layer_norm"),
    ("layer_norm", (F, F, D), {"eps": 1e-5}, None, "layer_norm"),
    ("layer_norm_grad", (M, F, M), {"eps": 1e-5}, None, "a cotangent like x"),
    ("layer_norm_grad_scale", (M, F), {"eps": 1e-5}, None, "two values of one type"),
    ("cross_entropy", (M, F), NONE, None, "integer labels, not float32.4."),
    ("cross_entropy", (F, I), NONE, None, "one label a row"),
    ("cross_entropy", (M, I.with_shape((6,))), NONE, None, "one label a row"),
    ("cross_entropy_grad", (M, I), NONE, None, "cross_entropy_grad takes"),
    ("cross_entropy_grad", (M, I, M), NONE, None, "cross_entropy_grad"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "params", "want", "message"), CASES)
def test_what_does_not_fit_is_refused_by_name(
    name: str,
    inputs: tuple[TensorType, ...],
    params: dict[str, object],
    want: TensorType | None,
    message: str | None,
) -> None:
    if message is None:
        op(name).output_type(inputs, params, want)
        return
    with pytest.raises(GraphError, match=message):
        op(name).output_type(inputs, params, want)


@pytest.mark.parametrize("name", sorted(TABLE))
@pytest.mark.parametrize("inputs", [(), (S,), (F, F, F, F, F), (I, B)])
def test_no_row_answers_nonsense_with_another_error(
    name: str, inputs: tuple[TensorType, ...]
) -> None:
    try:
        op(name).output_type(inputs, {}, None)
    except GraphError as error:
        assert name in str(error)
