"""A cell of the simulation: one interval, or one test, in one world; and what it is judged by."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Cell(NamedTuple):
    """How often an interval covered the truth, or a test rejected.

    Attributes
    ----------
    part : table that the cell belongs to.
    world, size : what was simulated, and with how many units or runs.
    method : the interval or test.
    rate : share of `n` replicates.
    below, above : share of replicates whose interval lies below, or above, the truth; NaN of tests.
    """

    part: str
    world: str
    size: str
    method: str
    rate: float
    below: float
    above: float
    n: int

    @property
    def error(self) -> float:
        """Monte Carlo standard error of `rate`, from one hit more and one miss more than seen."""
        rate = (self.rate * self.n + 1) / (self.n + 2)
        return float(np.sqrt(rate * (1 - rate) / self.n))


class Task(NamedTuple):
    """Cells that share their draws: a name to show, and what makes them."""

    name: str
    cells: Callable[..., Iterable[Cell]]
    arguments: tuple


def covered(
    part: str, world: str, size: str, method: str, ci: NDArray[np.float64], truth: float
) -> Cell:
    """Cell of intervals (replicate, ci_bound); one that is missing does not count."""
    ci = ci[np.isfinite(ci).all(axis=-1)]
    below, above = float((ci[:, 1] < truth).mean()), float((ci[:, 0] > truth).mean())
    return Cell(part, world, size, method, 1 - below - above, below, above, len(ci))


def rejected(part: str, world: str, size: str, method: str, reject: NDArray[np.bool_]) -> Cell:
    """Cell of a test's decisions (replicate)."""
    return Cell(part, world, size, method, float(reject.mean()), np.nan, np.nan, len(reject))
