"""exp, log, cosine and maximum in forms that LLVM runs on vector lanes; a call of libm stops it.

`exp` has a float32 and a float64 form, chosen by the argument's type; largest relative error over
the whole range 2.2e-7 (float32) and 5e-16 (float64), both tested; results under the smallest normal
number are 0, NaN stays NaN. `log` and `cos_turns` are float64 and compiled without any fast-math
flag: their bits are the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic, overload

from hpc_alpa.kernels.cpu.compile import STRICT, compiled

F32, F64 = np.float32, np.float64

LOG2_E = math.log2(math.e)
# ln 2 in two parts, the first short enough that its product with an exponent is exact.
LN2_HIGH_32, LN2_LOW_32 = F32(0.693359375), F32(-2.12194440e-4)  # Cephes expf.c
LN2_HIGH_64, LN2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # fdlibm e_exp.c

# exp(r) = 1 + r + r^2 p(r) for |r| <= ln 2 / 2. Cephes expf.c, highest power first.
EXP_32 = tuple(
    F32(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)
EXP_64 = tuple(1.0 / math.factorial(n) for n in range(13, 1, -1))  # Taylor: remainder under 5e-18
# Bounds within which 2^n is a normal number.
LOW_32, HIGH_32 = F32(-87.33), F32(88.37)
LOW_64, HIGH_64 = -708.39, 709.43

# log((1 + s) / (1 - s)) = 2 s + s z p(z), z = s^2. fdlibm e_log.c, Lg7 .. Lg1.
LOG_64 = (
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
)
# Powers of z = x^2 for |x| <= pi / 4. fdlibm k_cos.c and k_sin.c, highest first.
COS_64 = (
    -1.13596475577881948265e-11,
    2.08757232129817482790e-09,
    -2.75573143513906633035e-07,
    2.48015872894767294178e-05,
    -1.38888888888741095749e-03,
    4.16666666666666019037e-02,
)
SIN_64 = (
    1.58969099521155010221e-10,
    -2.50507602534068634195e-08,
    2.75573137070700676789e-06,
    -1.98412698298579493134e-04,
    8.33333333332248946124e-03,
    -1.66666666666666324348e-01,
)
SQRT_HALF = math.sqrt(0.5)
MANTISSA = np.int64(0x000F_FFFF_FFFF_FFFF)
ONE_BITS = np.int64(0x3FF0_0000_0000_0000)


# Without reassoc, which would undo the two-part reduction; products and sums may fuse.
CONTRACT = frozenset({"contract"})


@compiled(CONTRACT, inline=True)
def _exp_32(x: Any) -> Any:
    # comparisons in this order let NaN through
    clamped = LOW_32 if x < LOW_32 else x
    clamped = HIGH_32 if clamped > HIGH_32 else clamped
    n = np.floor(clamped * F32(LOG2_E) + F32(0.5))
    r = (clamped - n * LN2_HIGH_32) - n * LN2_LOW_32
    p = EXP_32[0]
    p = p * r + EXP_32[1]
    p = p * r + EXP_32[2]
    p = p * r + EXP_32[3]
    p = p * r + EXP_32[4]
    p = p * r + EXP_32[5]
    p = p * (r * r) + r + F32(1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    y = F32(0) if x < LOW_32 else p * power
    return F32(np.inf) if x > HIGH_32 else y


@compiled(CONTRACT, inline=True)
def _exp_64(x: Any) -> Any:
    clamped = LOW_64 if x < LOW_64 else x
    clamped = HIGH_64 if clamped > HIGH_64 else clamped
    n = np.floor(clamped * LOG2_E + 0.5)
    r = (clamped - n * LN2_HIGH_64) - n * LN2_LOW_64
    p = EXP_64[0]
    p = p * r + EXP_64[1]
    p = p * r + EXP_64[2]
    p = p * r + EXP_64[3]
    p = p * r + EXP_64[4]
    p = p * r + EXP_64[5]
    p = p * r + EXP_64[6]
    p = p * r + EXP_64[7]
    p = p * r + EXP_64[8]
    p = p * r + EXP_64[9]
    p = p * r + EXP_64[10]
    p = p * r + EXP_64[11]
    p = p * (r * r) + r + 1.0
    # through int32: AVX2 converts doubles to no other integer
    power = np.int64(np.int64(np.int32(n) + np.int32(1023)) << np.int64(52)).view(np.float64)
    y = 0.0 if x < LOW_64 else p * power
    return np.inf if x > HIGH_64 else y


def exp(x: Any) -> Any:
    """e^x inside a compiled kernel, for a float32 or a float64."""
    return np.exp(x)


@overload(exp, jit_options={"forceinline": True})
def _exp(x: Any) -> Callable[[Any], Any]:
    form = _exp_32 if x == types.float32 else _exp_64

    def body(x: Any) -> Any:
        return form(x)

    return body


@intrinsic  # type: ignore[untyped-decorator]
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of two floats of one type, NaN if either is.

    Python's max becomes a comparison and a branch, which LLVM does not recognise as a reduction
    while NaN counts.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = ir.FunctionType(kind, [kind, kind])
        maximum = builder.module.declare_intrinsic("llvm.maximum", [kind], function)
        return builder.call(maximum, arguments)

    return a(a, a), generate


@compiled(STRICT, inline=True)
def log(x: Any) -> Any:
    """Natural logarithm of a positive normal float64."""
    bits = np.float64(x).view(np.int64)
    exponent = np.float64((bits >> np.int64(52)) - np.int64(1023))
    m = np.int64((bits & MANTISSA) | ONE_BITS).view(np.float64)
    # m in [1, 2) moves to [sqrt(1/2), sqrt(2))
    large = m * SQRT_HALF >= 1.0
    m = m * 0.5 if large else m
    exponent = exponent + 1.0 if large else exponent
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = LOG_64[0]
    p = p * z + LOG_64[1]
    p = p * z + LOG_64[2]
    p = p * z + LOG_64[3]
    p = p * z + LOG_64[4]
    p = p * z + LOG_64[5]
    p = p * z + LOG_64[6]
    p = p * z
    half_square = 0.5 * f * f
    return exponent * LN2_HIGH_64 - (
        (half_square - (s * (half_square + p) + exponent * LN2_LOW_64)) - f
    )


@compiled(STRICT, inline=True)
def cos_turns(w: Any) -> Any:
    """cos(2 pi w) for a float64 in [0, 1)."""
    quarter = np.floor(4.0 * w + 0.5)
    x = (4.0 * w - quarter) * (math.pi / 2)
    z = x * x
    c = COS_64[0]
    c = c * z + COS_64[1]
    c = c * z + COS_64[2]
    c = c * z + COS_64[3]
    c = c * z + COS_64[4]
    c = c * z + COS_64[5]
    c = c * (z * z) - 0.5 * z + 1.0
    s = SIN_64[0]
    s = s * z + SIN_64[1]
    s = s * z + SIN_64[2]
    s = s * z + SIN_64[3]
    s = s * z + SIN_64[4]
    s = s * z + SIN_64[5]
    s = s * (z * x) + x
    # cos(x + q pi/2): c, -s, -c, s, c
    value = s if (quarter == 1.0 or quarter == 3.0) else c
    return -value if (quarter == 1.0 or quarter == 2.0) else value
