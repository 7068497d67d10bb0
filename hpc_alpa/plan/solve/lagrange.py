"""Prices on memory that follows time, and messages, raised together.

For prices mu >= 0 of a byte at each point, the pairwise program with mu @ usage added to its nodes,
less mu @ limits, is a bound below every assignment that fits, and so is the messages' bound of it.
Between two passes the prices follow the excess of the choices that the last pass made (Polyak's
step). These choices are nearly what fits, and `repair` does the rest.
"""

import math
import time
from dataclasses import dataclass

import numpy as np

from hpc_alpa.plan.solve.intervals import Intervals
from hpc_alpa.plan.solve.messages import Messages
from hpc_alpa.plan.solve.problem import FloatArray, IntArray
from hpc_alpa.plan.solve.repair import repair

_STEP, _SHRINK = 0.02, 0.995  # of the first prices' move, as a part of the objective
_EVERY = 10  # rounds between two repairs
_NEAR = 0.25  # of a limit: what is over it by more is not worth a repair
_SEVERE, _SEVERER = 4.0, 4  # what a byte over the limit costs, in largest prices; ten times more


@dataclass(eq=False)
class Priced:
    """What the search ended with: choices that fit, or None; their seconds; the bound; prices.

    `above`: per choice, how far the bound of any assignment with it is above the bound.
    """

    choices: IntArray | None
    seconds: float
    bound: float
    prices: FloatArray
    above: FloatArray | None = None


def search(
    messages: Messages,
    intervals: Intervals,
    target: float,
    rounds: int,
    end: float,
    rng: np.random.Generator,
    prices: FloatArray | None = None,
    relative_gap: float = 0.0,
) -> Priced:
    """Choices of few seconds that fit.

    Args:
        target: seconds near those of the optimum, for the size of the steps; 0 if not known.
        rounds: of a pass there and back.
        end: of `time.perf_counter()`.
    """
    size = np.maximum(np.abs(intervals.limit), 1.0)
    scale = float(size.max(initial=1.0))
    price = np.zeros(len(size)) if prices is None else prices.copy()
    found = Priced(None, math.inf, -math.inf, price)
    for number in range(rounds):
        messages.surcharge(intervals.price(messages.start, price))
        messages.run(forward=True)
        messages.run(forward=False)
        over = intervals.usage(messages.choices) - intervals.limit
        if number == 0 and not target:
            _, seconds, _ = repair(messages, intervals, messages.choices, 0.0, rng)
            target = seconds if math.isfinite(seconds) else abs(messages.bound()[0])
        if number % _EVERY == _EVERY - 1 or number == rounds - 1:
            bound, above = messages.bound()
            bound -= float((price * intervals.limit).sum())
            if bound > found.bound:
                found.bound, found.above, found.prices = bound, above, price.copy()
            target = max(target, min(2.0 * found.bound, found.seconds))
            late = time.perf_counter() > end
            if late or number == rounds - 1 or (over < _NEAR * size).all():
                severe = _SEVERE * max(float(price.max(initial=0.0)), 1e-3 * target / scale)
                _mend(messages, intervals, severe, rng, found)
            proven = found.seconds - found.bound <= relative_gap * abs(found.seconds)
            if late or (found.choices is not None and proven):
                break
        excess = over / scale
        moving = np.where(price > 0, excess, np.maximum(excess, 0.0))
        length = math.sqrt(float(np.square(moving).sum()))
        if length == 0.0:
            continue
        step = _STEP * abs(target) * _SHRINK**number / length / scale
        price = np.maximum(0.0, price + step * excess)
    return found


def _mend(
    messages: Messages,
    intervals: Intervals,
    severe: float,
    rng: np.random.Generator,
    found: Priced,
) -> None:
    """Make the choices of the last pass fit, at ever higher prices, and keep them if better."""
    choices = messages.choices
    for _ in range(_SEVERER):
        choices, seconds, fits = repair(messages, intervals, choices, severe, rng)
        if fits and seconds < found.seconds:
            found.choices, found.seconds = choices, seconds
        if fits or seconds >= found.seconds:
            return
        severe *= 10.0
