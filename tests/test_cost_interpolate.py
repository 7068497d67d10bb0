"""Seconds between samples: exact at them, between their neighbours, growing, sane outside."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_alpa.cost.interpolate import Curve, MatmulModel, fit_law, fit_line
from hpc_alpa.cost.protocol import Spread

sizes = st.lists(st.integers(1, 2**40), min_size=1, max_size=12, unique=True)


def flat(seconds):
    return Spread(seconds, seconds, seconds)


@given(sizes, st.randoms(use_true_random=False), st.booleans())
def test_curves_are_exact_and_monotone(xs, rng, log):
    ys = sorted(10 ** rng.uniform(-7, 1) for _ in xs)
    line = Curve.of([(x, flat(y)) for x, y in zip(sorted(xs), ys)], log)
    for x, y in zip(sorted(xs), ys):
        assert line.at(x).median == pytest.approx(y, rel=1e-9)
    asked = sorted(2 ** rng.uniform(0, 42) for _ in range(40))
    values = [line.at(x).median for x in asked]
    assert all(b >= a * (1 - 1e-9) for a, b in zip(values, values[1:]))
    assert line.at(0).median == ys[0] and line.at(2**43).median >= ys[-1] * (1 - 1e-9)


def test_straight_lines_are_reproduced_everywhere_above_the_first():
    line = Curve.of([(x, flat(2e-6 + 1e-9 * x)) for x in (1e3, 1e5, 1e7)])
    for x in (1e3, 3e3, 1e6, 1e8, 1e12):
        assert line.at(x).median == pytest.approx(2e-6 + 1e-9 * x, rel=1e-9)
    power = Curve.of([(x, flat(1e-9 * x**0.7)) for x in (1e3, 1e5, 1e7)], log=True)
    assert power.at(1e4).median == pytest.approx(1e-9 * 1e4**0.7)
    one = Curve.of([(1000.0, flat(1e-5))])
    assert one.at(10).median == 1e-5 and one.at(4000).median == pytest.approx(4e-5)


def test_quartiles_are_interpolated_too():
    line = Curve.of([(0.0, Spread(1, 2, 3)), (10.0, Spread(3, 4, 9))])
    assert line.at(5) == Spread(2, 3, 6)
    assert line.at(20) == Spread(4.5, 6.0, 13.5)


def machine(dims, peak=5e10, bandwidth=1e10, start=2e-6):
    """A plausible processor: a call, a start per product, flops or bytes whichever is longer."""
    b, m, n, k = dims
    return (
        start
        + b * 1e-7
        + max(2 * b * m * n * k / peak, 4 * b * (m * k + k * n + m * n) / bandwidth)
    )


def grid(step):
    edges = [16, 64, 256, 1024]
    shapes = [(1, m, n, k) for m in edges for n in edges for k in edges]
    shapes += [(b, m, m, k) for b in (16, 256) for m in (16, 64, 256) for k in (16, 64)]
    return shapes[::step]


@pytest.mark.parametrize("step", [1, 3, 9])
def test_matrix_products_are_exact_at_samples_and_near_between(step):
    model = MatmulModel.of([(d, flat(machine(d))) for d in grid(step)], 4)
    for dims in grid(step):
        assert model.at(dims).median == pytest.approx(machine(dims))
    rng = random.Random(step)
    errors = []
    for _ in range(300):
        dims = (1, *(round(2 ** rng.uniform(4, 10)) for _ in range(3)))
        errors.append(abs(math.log(model.at(dims).median / machine(dims))))
    errors.sort()
    assert errors[150] < 0.1 * step**0.5 and errors[285] < 0.5


def test_matrix_products_grow_with_every_dim_and_far_outside():
    model = MatmulModel.of([(d, flat(machine(d))) for d in grid(1)], 4)
    rng = random.Random(0)
    for _ in range(500):
        dims = [round(2 ** rng.uniform(0, 5)), *(round(2 ** rng.uniform(2, 14)) for _ in range(3))]
        at = model.at(tuple(dims)).median
        axis = rng.randrange(4)
        dims[axis] *= 2
        assert model.at(tuple(dims)).median > at * 0.97
    huge = (1, 2**15, 2**15, 2**15)
    assert model.at(huge).median == pytest.approx(machine(huge), rel=0.1)
    tiny = (1, 1, 1, 1)
    assert model.at(tiny).median == pytest.approx(machine(tiny), rel=0.5)


def test_few_samples_are_enough_for_an_answer():
    one = MatmulModel.of([((1, 64, 64, 64), flat(1e-4))], 4)
    assert one.at((1, 64, 64, 64)).median == 1e-4
    assert 1e-4 < one.at((1, 128, 64, 64)).median <= 2.2e-4
    assert one.at((8, 512, 512, 512)).median > 1e-3


@settings(deadline=None)
@given(st.floats(0, 1e-3), st.floats(1e-13, 1e-6), st.randoms(use_true_random=False))
def test_lines_are_found_under_noise_and_outliers(alpha, beta, rng):
    xs = [2.0**e for e in range(10, 27)]
    points = [(x, (alpha + beta * x) * rng.uniform(0.98, 1.02)) for x in xs]
    outlier = rng.randrange(len(xs))
    points[outlier] = (xs[outlier], points[outlier][1] * 5)
    a, b, residual = fit_line(points)
    assert a >= 0 and b >= 0 and residual < 0.06
    for x in xs:
        assert a + b * x == pytest.approx(alpha + beta * x, rel=0.12)


def test_laws_have_no_negative_terms():
    falling = [((1.0, x), 1.0 / x) for x in (1.0, 2.0, 4.0, 8.0)]
    assert min(fit_law([t for t, _ in falling], [y for _, y in falling])) >= 0
