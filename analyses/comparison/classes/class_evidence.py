r"""Whether two arms differ in a class of tokens by more than noise of seeds, and how much.

Runs are the sample, as the claim is about arms. Each test looks at the class means of single runs,
each less the run's mean over all tokens. The p-values of a pair of arms are one family; classes
overlap, and where one rises its counterpart falls, so the false discovery rate is controlled in the
form that holds under any dependence [1]_.

References
----------
.. [1] Benjamini and Yekutieli (2001), doi:10.1214/aos/1013699998.
.. [2] Cohen (1988), Statistical Power Analysis for the Behavioral Sciences (d).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.classes.arm_pairs import ArmPair
from analyses.comparison.classes.class_differences import Tokens
from analyses.reporting.text import labels
from analyses.statistics.class_means import class_sums
from analyses.statistics.permutation import LabelTest, adjusted_p, label_test
from analyses.statistics.two_arms import hedges_g, welch


def class_evidence(
    values: NDArray[np.float64],
    tokens: Tokens,
    pairs: Sequence[ArmPair],
    *,
    level: float,
    n_resamples: int,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Standardised differences and p-values at one place.

    Parameters
    ----------
    values : (run, token) losses, nats.
    tokens : of `classified`.
    pairs : of `arm_pairs`.
    level : coverage of the interval of g.
    n_resamples : relabellings of runs, where there are too many to try them all.

    Returns
    -------
    Dataset (arm_pair, token_class)
        `g` and `g_ci`, in units of the spread between seeds (Hedges); `d`, in units of the spread
        of losses between the tokens of the class (Cohen [2]_); `seed_sd`, the spread between seeds,
        nats; `p` of Welch's test; `p_adjusted`; `p_label`, of exchanging the runs of the two arms,
        and `smallest_p (arm_pair)` that it can give. All but `d` NaN with fewer than two runs of an
        arm. The last class, all tokens, is compared by itself and in no family.
    """
    counts = tokens.counts.sum(axis=0)
    shape = (1, len(counts))
    whole = np.zeros_like(tokens.unit)
    mean, square = (
        class_sums(power, whole, tokens.label, shape=shape)[0] / counts[:, None]
        for power in (values, values**2)
    )
    within_class = square - mean**2
    own = mean - mean[-1]
    own[-1] = mean[-1]
    of_pairs = [
        _of_pair(own, within_class, pair, level=level, n_resamples=n_resamples, rng=rng)
        for pair in pairs
    ]
    return xr.concat(of_pairs, "arm_pair", data_vars="all", coords="minimal", compat="override")


def _of_pair(
    own: NDArray[np.float64],
    within_class: NDArray[np.float64],
    pair: ArmPair,
    *,
    level: float,
    n_resamples: int,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Evidence of one pair of arms.

    Parameters
    ----------
    own : (class, run), what is tested.
    within_class : (class, run), variance over the tokens of a class.
    """
    first, second = own[:, pair.first].T, own[:, pair.second].T
    test = welch(first, second, level=level)
    g, g_ci = hedges_g(first, second, level=level)
    members = np.concatenate([pair.first, pair.second])
    spread = np.sqrt(np.maximum(within_class[:, members].mean(axis=1), 0.0))
    none = np.full(len(own), np.nan)
    seed_sd, p_label, smallest_p = none, none, np.nan
    if pair.enough:
        degrees = [len(first) - 1, len(second) - 1]
        variances = [group.var(axis=0, ddof=1) for group in (first, second)]
        seed_sd = np.sqrt(np.average(variances, axis=0, weights=degrees))
        tests = exchange_tests(first, second, n_resamples=n_resamples, rng=rng)
        p_label = np.array([found.p for found in tests])
        smallest_p = min(found.smallest_p for found in tests)
    adjusted = np.append(adjusted_p(test.p[:-1], method="fdr_by"), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        d = np.where(spread > 0, test.difference / spread, np.nan)
    per_class = {
        "g": (g, "difference in units of the spread between seeds (Hedges' g)"),
        "d": (d, "difference in units of the spread between tokens (Cohen's d)"),
        "p": (test.p, "p of Welch's test over runs"),
        "p_adjusted": (adjusted, "p over the classes of a pair (Benjamini-Yekutieli)"),
        "p_label": (p_label, "p of exchanging the runs of the arms"),
    }
    title = "Hedges' g, interval over runs"
    return xr.Dataset(
        {name: ("token_class", value, labels(text)) for name, (value, text) in per_class.items()}
        | {
            "g_ci": (("token_class", "ci_bound"), g_ci, labels(title)),
            "seed_sd": ("token_class", seed_sd, labels("spread between seeds", "nat")),
            "smallest_p": ((), smallest_p, labels("smallest p that exchanging runs can give")),
        }
    )


def exchange_tests(
    first: NDArray, second: NDArray, *, n_resamples: int, rng: np.random.Generator
) -> list[LabelTest]:
    """Whether |mean of `first` - mean of `second`| is larger than with exchanged runs, by column.

    Parameters
    ----------
    first, second : (run, column)
    """
    values = np.concatenate([first, second])
    label = np.arange(len(values)) < len(first)

    def distance(label: NDArray, of_runs: NDArray) -> float:
        return float(abs(of_runs[label].mean() - of_runs[~label].mean()))

    return [
        label_test(
            partial(distance, of_runs=of_runs), label,
            alternative="greater", n_resamples=n_resamples, rng=rng,
        )
        for of_runs in values.T
    ]  # fmt: skip
