"""Layer normalisation over the last dim, and its gradients (Ba, Kiros and Hinton 2016)."""

from hpc_alpa.kernels import Array
from hpc_alpa.kernels.reference import array_module


def _normal(x: Array, eps: float) -> tuple[Array, Array]:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    rstd = 1.0 / array_module(x).sqrt(variance + float(eps))
    return centred * rstd, rstd


def layer_norm(x: Array, scale: Array, bias: Array, eps: float, out: Array) -> None:
    """out = (x - mean) / sqrt(variance + eps) * scale + bias; x (n, h), scale and bias (h,)."""
    out[...] = _normal(x, eps)[0] * scale + bias


def layer_norm_grad(x: Array, scale: Array, ct: Array, eps: float, out: Array) -> None:
    """out = gradient by x (n, h) from the cotangent ct; the statistics are computed again."""
    normal, rstd = _normal(x, eps)
    flow = ct * scale
    mean_flow = flow.mean(axis=-1, keepdims=True)
    mean_flow_normal = (flow * normal).mean(axis=-1, keepdims=True)
    out[...] = rstd * (flow - mean_flow - normal * mean_flow_normal)


def layer_norm_grad_scale(x: Array, ct: Array, eps: float, out: Array) -> None:
    """out (h,) = gradient by scale: the sum over rows of ct times the normalised x."""
    out[...] = (ct * _normal(x, eps)[0]).sum(axis=0)
