r"""When a token is learned, and whether it is forgotten: milestones of smoothed loss curves.

A curve is the loss of one token of text over training, observed at a few steps; on the axis
x = log2(1 + step) the fast start of training is not squeezed into a point, and step 0 has a place.
One linear smoother serves all curves, so that a million of them cost one matrix product.

References
----------
.. [1] Reinsch (1967), doi:10.1007/BF02162161 (the smoothing spline as a linear system).
.. [2] Green and Silverman (1994), doi:10.1201/b15710, chapter 2 (its band matrices Q and R).
.. [3] Chang and Bergen (2022), doi:10.1162/tacl_a_00444 (age of acquisition of a language model).
.. [4] Chang, Tu and Bergen (2024), doi:10.1162/tacl_a_00708, arXiv:2308.15419 (the same for single
   tokens in context, and forgetting).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def log_step(step: NDArray) -> NDArray[np.float64]:
    """x = log2(1 + step): 0 at initialization, one more each time training doubles."""
    return np.log2(1.0 + np.asarray(step, dtype=np.float64))


def smoothing_matrix(x: NDArray[np.float64], *, penalty: float) -> NDArray[np.float64]:
    r"""The matrix S that smooths any curve observed at x: its values there are S y.

    S y are the values at x of the natural cubic spline f that minimises

        sum_i (y_i - f(x_i))² + penalty int f''(x)² dx,

    S = (I + penalty Q R^-1 Q')^-1 [1]_, [2]_. It leaves straight lines as they are; its rows sum to
    1, and its trace, from n down to 2, counts the degrees of freedom that it leaves to a curve.

    Parameters
    ----------
    x : (n), increasing.
    penalty : at least 0, in units of x cubed; 0 leaves the curves as they are. A bump narrower than
        about penalty^(1/4) is flattened.

    Returns
    -------
    array (n, n), symmetric.

    Raises
    ------
    ValueError
        If x does not increase, or the penalty is negative.
    """
    x = np.asarray(x, dtype=np.float64)
    gap = np.diff(x)
    if not (gap > 0).all():
        raise ValueError(f"x has to increase, it is {x.tolist()}; sort it, and give each step once")
    if not penalty >= 0:
        raise ValueError(f"penalty is {penalty}; give 0 or more")
    n = len(x)
    inner = np.arange(max(n - 2, 0))
    second_difference = np.zeros((n, len(inner)))
    second_difference[inner, inner] = 1 / gap[:-1]
    second_difference[inner + 1, inner] = -1 / gap[:-1] - 1 / gap[1:]
    second_difference[inner + 2, inner] = 1 / gap[1:]
    gram = np.diag((gap[:-1] + gap[1:]) / 3)
    gram[inner[:-1], inner[1:]] = gram[inner[1:], inner[:-1]] = gap[1:-1] / 6
    roughness = second_difference @ np.linalg.solve(gram, second_difference.T)
    return np.asarray(np.linalg.inv(np.eye(n) + penalty * roughness), dtype=np.float64)


class Milestones(NamedTuple):
    """What happens along each curve, all (token).

    Attributes
    ----------
    age : x at which the token is acquired; NaN if it is not learned by the end.
    n_crossings : how often the curve comes down to half-way; 0 if the token is not learned.
    known_at_start : whether the first value is half-way down already, so that age is the first x.
    ever_learned : whether the curve was learned at any time.
    forgotten : final value minus the lowest, at least 0, in the unit of the curve; NaN if the token
        was never learned.
    forgotten_share : the same as a share of the drop from chance to the lowest value, at least 0.
    """

    age: NDArray[np.float64]
    n_crossings: NDArray[np.intp]
    known_at_start: NDArray[np.bool_]
    ever_learned: NDArray[np.bool_]
    forgotten: NDArray[np.float64]
    forgotten_share: NDArray[np.float64]

    @property
    def learned(self) -> NDArray[np.bool_]:
        """Whether the token is learned at the end."""
        return np.isfinite(self.age)


def milestones(
    curve: NDArray, x: NDArray[np.float64], *, chance: float, margin: float = 1.0
) -> Milestones:
    r"""Age of acquisition and forgetting of every curve.

    A token is learned where its loss is at least `margin` below chance. If it is learned at the
    last x, with final loss l_T, its age is the first x at which the curve, straight between its
    points, is at (chance + l_T) / 2 or below. That is the definition of [3]_ and [4]_ but for the
    lower end, which they set at the lowest loss; with the final loss, a token learned at the end
    always has an age, and what happens after its lowest loss is forgetting.

    Parameters
    ----------
    curve : (step, token), smoothed losses, finite.
    x : (step), increasing.
    chance : loss of a model that knows nothing, in the unit of the curve.
    margin : in the unit of the curve, above 0.

    Raises
    ------
    ValueError
        If the margin is not above 0: half-way would not lie between chance and the final loss.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}; a token counts as learned only if it is above 0")
    final, lowest = curve[-1], curve.min(axis=0)
    learned = chance - final >= margin
    ever_learned = chance - lowest >= margin
    half_way = (chance + final) / 2
    below = (curve <= half_way) & learned
    n_crossings = below[0] + (below[1:] & ~below[:-1]).sum(axis=0)
    after = below.argmax(axis=0)
    before, token = np.maximum(after - 1, 0), np.arange(curve.shape[1])
    high, low = curve[before, token], curve[after, token]
    drop = np.where(after > 0, high - low, 1.0)
    age = x[before] + (x[after] - x[before]) * (high - half_way) / drop
    rise = np.where(ever_learned, final - lowest, np.nan)
    drop = np.where(ever_learned, chance - lowest, np.nan)
    return Milestones(
        np.where(learned, age, np.nan), n_crossings, below[0], ever_learned, rise, rise / drop
    )
