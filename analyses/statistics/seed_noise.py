r"""Which tokens two groups of training runs differ in by more than noise of seeds.

For each token by itself, over runs, Welch's t [1]_,

    t = (mean_A - mean_B) / se,    se² = s_A²/n_A + s_B²/n_B

is held against the quantile of Student's t at Satterthwaite's degrees of freedom [2]_. As tokens
are many, quantiles are looked up, between whole degrees of freedom by the logarithm in 1/dof, which
is above the exact value by less than 3%. If nothing but noise of seeds set the groups apart, a
share of about 1 - level of the tokens would still be beyond it: less with very few runs, where
Welch's t is cautious. `chance_share` says how much.

References
----------
.. [1] Welch (1947), doi:10.1093/biomet/34.1-2.28.
.. [2] Satterthwaite (1946), doi:10.2307/3002019.
"""

import numpy as np
from numpy.typing import NDArray


def critical_values(n_runs: int, *, level: float = 0.95) -> NDArray[np.float64]:
    """Two-sided quantiles of Student's t at 1, 2, ... degrees of freedom.

    Parameters
    ----------
    n_runs : of both groups together, at least 3; the last entry is for n_runs - 2.
    """
    from scipy.special import stdtrit

    return np.asarray(stdtrit(np.arange(1, n_runs - 1), (1 + level) / 2))


def beyond_noise(first: NDArray, second: NDArray, *, level: float = 0.95) -> NDArray[np.bool_]:
    """Whether the mean of `first` differs from that of `second` by more than noise of seeds.

    Parameters
    ----------
    first, second : (run, ...), finite, at least two runs each.
    level : coverage of the interval that must leave out 0.

    Returns
    -------
    (...); False where no run differs from another.
    """
    n = len(first), len(second)
    own = [group.var(axis=0, ddof=1) / len(group) for group in (first, second)]
    variance = own[0] + own[1]
    terms = own[0] ** 2 / (n[0] - 1) + own[1] ** 2 / (n[1] - 1)
    dof = np.divide(variance**2, terms, out=np.ones_like(variance), where=terms > 0)
    quantiles = critical_values(sum(n), level=level)
    at = -1 / np.arange(1, len(quantiles) + 1)
    critical = np.exp(np.interp(-1 / dof, at, np.log(quantiles)))
    difference = np.abs(first.mean(axis=0) - second.mean(axis=0))
    return difference > critical * np.sqrt(variance)


def chance_share(n_first: int, n_second: int, *, level: float = 0.95) -> float:
    """Share of tokens beyond noise where there is nothing else, losses of runs being normal.

    It is simulated, with a fixed seed, to within 0.002; runs of both groups have the same spread.
    """
    runs = np.random.default_rng(0).standard_normal((n_first + n_second, 50_000))
    return float(beyond_noise(runs[:n_first], runs[n_first:], level=level).mean())
