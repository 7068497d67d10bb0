"""Seconds between measured points.

Curve         seconds of one thing over bytes: straight lines between neighbours (exact for
              alpha + beta*nbytes, and each regime of a cache its own slope), or straight lines in
              log-log for collectives, whose algorithm changes with the size. Below the first point
              the first point's seconds: a call costs that much however small. Beyond the last, a
              straight line with the slope of the last two.

MatmulModel   seconds of a matrix product over (batch, m, n, k): a law with non-negative terms

                  c0 + c1*batch + c2*2*batch*m*n*k + c3*bytes                        -> fit_law()

              fitted to relative errors, times the measured deviation of near samples (the achieved
              rate in log space, weighted by 1/distance^2 in octaves of the dims). At a sample the
              measured value; far from all of them the law alone, which grows with every dim.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from hpc_alpa.cost.protocol import Spread
from hpc_alpa.cost.sample import Quantiles

Dims = tuple[int, ...]  # (batch, m, n, k)
NEIGHBOURS = 8
REACH = 2.0
"""Octaves over which a sample's deviation from the law fades to 1/e."""


def spread_of(q: Quantiles) -> Spread:
    return Spread(q.p25, q.median, q.p75)


@dataclass(frozen=True)
class Curve:
    """Measured seconds over bytes, sorted by bytes. `log` interpolates in log-log."""

    points: tuple[tuple[float, Spread], ...]
    log: bool = False

    @classmethod
    def of(cls, points: Sequence[tuple[float, Spread]], log: bool = False) -> "Curve":
        return cls(tuple(sorted(points, key=lambda point: point[0])), log)

    def at(self, nbytes: float) -> Spread:
        """Seconds at `nbytes`, with the quartiles interpolated alike."""
        sizes = [size for size, _ in self.points]
        if nbytes <= sizes[0]:
            return self.points[0][1]
        if nbytes > sizes[-1]:
            return self._beyond(nbytes)
        high = next(i for i, size in enumerate(sizes) if size >= nbytes)
        (x0, s0), (x1, s1) = self.points[high - 1], self.points[high]
        if self.log:
            t = math.log(nbytes / x0) / math.log(x1 / x0)
            mix = [a ** (1 - t) * b**t for a, b in zip(_row(s0), _row(s1))]
        else:
            t = (nbytes - x0) / (x1 - x0)
            mix = [a * (1 - t) + b * t for a, b in zip(_row(s0), _row(s1))]
        return Spread(*mix)

    def _beyond(self, nbytes: float) -> Spread:
        x1, last = self.points[-1]
        if len(self.points) == 1:  # nothing tells the slope: all of it counted as bytes
            return last.scaled(nbytes / max(x1, 1.0))
        x0, before = self.points[-2]
        slope = max(0.0, (last.median - before.median) / (x1 - x0))
        return last.scaled((last.median + slope * (nbytes - x1)) / last.median)


def _row(s: Spread) -> tuple[float, float, float]:
    return s.p25, s.median, s.p75


@dataclass(frozen=True)
class MatmulModel:
    """Measured matrix products of one dtype and one layout, and the law fitted to them."""

    dims: tuple[Dims, ...]
    spreads: tuple[Spread, ...]
    law: tuple[float, ...]
    itemsize: int

    @classmethod
    def of(cls, samples: Sequence[tuple[Dims, Spread]], itemsize: int) -> "MatmulModel":
        dims = tuple(d for d, _ in samples)
        spreads = tuple(s for _, s in samples)
        terms = [_terms(d, itemsize) for d in dims]
        seconds = [s.median for s in spreads]
        if len(samples) > len(terms[0]):
            law = fit_law(terms, seconds)
        else:  # too few to tell the terms apart: all of it counted as flops
            rate = float(np.median([t[2] / y for t, y in zip(terms, seconds)]))
            law = (0.0, 0.0, 1.0 / rate, 0.0)
        return cls(dims, spreads, law, itemsize)

    def at(self, dims: Dims) -> Spread:
        """Seconds of a product of `dims`."""
        where = _octaves(dims)
        distance = np.linalg.norm(np.array([_octaves(d) for d in self.dims]) - where, axis=1)
        near = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        nearest = int(near[0])
        if distance[nearest] == 0:
            return self.spreads[nearest]
        weights = distance[near] ** -2.0
        weights /= weights.sum()
        deviation = [math.log(self.spreads[i].median / self._law(self.dims[i])) for i in near]
        fade = math.exp(-((float(distance[nearest]) / REACH) ** 2))
        median = self._law(dims) * math.exp(fade * float(weights @ deviation))
        low = float(weights @ [self.spreads[i].p25 / self.spreads[i].median for i in near])
        high = float(weights @ [self.spreads[i].p75 / self.spreads[i].median for i in near])
        return Spread(median * low, median, median * high)

    def _law(self, dims: Dims) -> float:
        return float(np.dot(self.law, _terms(dims, self.itemsize)))


def _terms(dims: Dims, itemsize: int) -> tuple[float, float, float, float]:
    b, m, n, k = dims
    return 1.0, float(b), 2.0 * b * m * n * k, float(itemsize) * b * (m * k + k * n + m * n)


def _octaves(dims: Dims) -> np.ndarray:
    return np.log2(np.maximum(dims, 1).astype(np.float64))


def fit_law(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Non-negative coefficients c that minimise the relative errors of terms @ c against seconds.

    Robust: samples that lie far off get less weight in three further rounds (Huber's weights on the
    relative error, with its median as the scale).
    """
    a = np.asarray(terms, dtype=np.float64)
    y = np.asarray(seconds, dtype=np.float64)
    relative = a / y[:, None]
    scale = np.abs(relative).max(axis=0)
    scale[scale == 0] = 1.0
    weights = np.ones(len(y))
    for _ in range(4):
        root = np.sqrt(weights)
        c, _ = nnls(relative / scale * root[:, None], root)
        error = np.abs(relative / scale @ c - 1.0)
        typical = max(float(np.median(error)), 1e-9)
        weights = np.minimum(1.0, 2.0 * typical / np.maximum(error, 1e-300))
    return tuple(float(v) for v in c / scale)


def fit_line(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """alpha, beta >= 0 of seconds = alpha + beta * nbytes, and its median relative error."""
    alpha, beta = fit_law([(1.0, x) for x, _ in points], [s for _, s in points])
    errors = [abs(alpha + beta * x - s) / s for x, s in points]
    return alpha, beta, float(np.median(errors))
