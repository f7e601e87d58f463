r"""How far text and seeds bear out a claim about arms: two intervals, two p-values, one verdict.

Over units of text and over runs a jackknife gives each part of a claim an error and Student's t. A
p-value is twice the smaller tail, so that p < .05 exactly where the 95% interval excludes what it
speaks against. A claim of several parts holds if all do, so its p is the largest of theirs [1]_; it
fails if one does, so the p against it is the smallest times their number.

A U-shape is claimed without its place: some place between is below both the start and the end.
Each place has two t, for start and end less that place. The statistic is the largest, over places,
of the smaller of the two; p is the chance of a t so large at any place of a curve that nowhere is
below its start, or nowhere below its end, whichever chance is larger [1]_ [2]_. It comes from draws
of whole curves of t that are correlated as the jackknife found them [3]_.

Over runs, delta = 0 is tested by dealing out the arms anew to the same runs [4]_.

References
----------
.. [1] Berger (1982), doi:10.1080/00401706.1982.10487790 (intersection-union tests).
.. [2] Lind and Mehlum (2010), doi:10.1111/j.1468-0084.2009.00569.x (tests of a U-shape).
.. [3] Montiel Olea and Plagborg-Møller (2019), doi:10.1002/jae.2656 (the largest t of a curve).
.. [4] Dekker et al. (2007), doi:10.1007/s11336-007-9016-1 (permuting runs with all their pairs).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.comparison.claims.hypotheses import Claim
from analyses.statistics.permutation import label_test
from analyses.statistics.resampling import Jackknife, jackknife
from analyses.statistics.runs import jackknife_runs

FEWEST_RUNS = 3


class Evidence(NamedTuple):
    """What the data say of a claim: of the part that is closest to failing, or fails most.

    Attributes
    ----------
    favours : whether the estimates are as claimed; p speaks for the claim if so, else against it.
    estimate : of that part.
    ci, run_ci : (ci_bound), over units of text and over runs; of a U-shape, at all places at once.
    p, run_p : two-sided p-values over both; one-sided that of delta = 0 over runs.
    smallest_p, run_smallest_p : the smallest that could come out; 0 if there is no such bound.
    lowest : index of the lowest place between, of a U-shape; else None.
    deleted : (unit), the estimate without each unit of text.
    """

    favours: bool
    estimate: float
    ci: NDArray[np.float64]
    run_ci: NDArray[np.float64]
    p: float
    run_p: float
    smallest_p: float
    run_smallest_p: float
    lowest: int | None
    deleted: NDArray[np.float64]


class Sample(NamedTuple):
    """A jackknife over units or runs, what each is a sample of, and its degrees of freedom."""

    jackknife: Jackknife
    stratum: NDArray
    freedom: NDArray[np.float64]


def evidence(
    claim: Claim,
    z: NDArray[np.float64],
    deleted: NDArray[np.float64],
    arm: NDArray,
    *,
    level: float,
    n_resamples: int,
    rng: np.random.Generator,
) -> Evidence:
    """Weigh a claim.

    Parameters
    ----------
    z : (place, run, run), Fisher's z of r.
    deleted : (unit, place, run, run), the same without each unit of text.
    arm : (run)
    level : coverage of the intervals.
    n_resamples : draws for a U-shape; the most relabellings of runs.
    """
    own = np.flatnonzero(np.isin(arm, claim.arms))
    z, deleted, arm = z[..., own[:, None], own], deleted[..., own[:, None], own], arm[own]
    estimate = claim.contrast(z, arm)
    text = _over_text(estimate, claim.contrast(deleted, arm), level=level)
    runs = _over_runs(claim, estimate, z, arm, level=level)
    if claim.test == "trough":
        return _trough(text, runs, level=level, n_resamples=n_resamples, rng=rng)
    favours = bool(((claim.low < estimate) & (estimate < claim.high)).all())
    part = _weakest(claim, text)
    if claim.test == "labels":
        test = label_test(
            lambda labels: float(claim.contrast(z, labels)[0]),
            arm, alternative="less", n_resamples=n_resamples, rng=rng,
        )  # fmt: skip
        p, run_p, smallest = _below(text), test.p, test.smallest_p
    else:
        p, run_p = (_bounds_p(claim, sample, favours=favours) for sample in (text, runs))
        smallest = 0.0
    return Evidence(
        favours, float(estimate[part]), text.jackknife.ci[part], runs.jackknife.ci[part],
        p, run_p, 0.0, smallest, None, text.jackknife.deleted[:, part],
    )  # fmt: skip


def _over_text(
    estimate: NDArray[np.float64], deleted: NDArray[np.float64], *, level: float
) -> Sample:
    freedom = np.full(estimate.shape, len(deleted) - 1.0)
    stratum = np.zeros(len(deleted), dtype=int)
    return Sample(jackknife(estimate, deleted, level=level), stratum, freedom)


def _over_runs(
    claim: Claim,
    estimate: NDArray[np.float64],
    z: NDArray[np.float64],
    arm: NDArray,
    *,
    level: float,
) -> Sample:
    """The jackknife over runs, without an error where an arm has fewer than three."""
    from scipy.special import stdtridf

    kept = [np.delete(np.arange(len(arm)), run) for run in range(len(arm))]
    deleted = np.stack([claim.contrast(z[..., k[:, None], k], arm[k]) for k in kept])
    if min((arm == name).sum() for name in claim.arms) < FEWEST_RUNS:
        deleted = np.full(deleted.shape, np.nan)
    found = jackknife_runs(estimate, deleted, arm, level=level)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (found.ci[..., 1] - found.estimate) / found.standard_error
    return Sample(found, arm, stdtridf((1 + level) / 2, t))


def _weakest(claim: Claim, text: Sample) -> int:
    """The part whose distance from its bounds is smallest, or most on the wrong side, in errors."""
    found = text.jackknife
    distance = np.minimum(found.estimate - claim.low, claim.high - found.estimate)
    with np.errstate(invalid="ignore", divide="ignore"):
        return int(np.nan_to_num(distance / found.standard_error, nan=-np.inf).argmin())


def _bounds_p(claim: Claim, sample: Sample, *, favours: bool) -> float:
    """Two-sided p for the claim that all parts lie within the bounds, or against it."""
    above, below = _tails(sample, claim.low)[0], _tails(sample, claim.high)[1]
    if favours:
        return float(2 * np.maximum(above, below).max())
    outside = np.minimum(_tails(sample, claim.low)[1], _tails(sample, claim.high)[0])
    return float(np.minimum(1.0, 2 * len(outside) * outside.min()))


def _below(sample: Sample) -> float:
    """Two-sided p that a single part lies below 0, 1 if it does not."""
    return float(np.minimum(1.0, 2 * _tails(sample, 0.0)[1][0]))


def _tails(sample: Sample, bound: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """p of each part for lying above, and for lying below, a bound; one-sided."""
    from scipy.special import stdtr

    found = sample.jackknife
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (found.estimate - bound) / found.standard_error
    return stdtr(sample.freedom, -t), stdtr(sample.freedom, t)


def _trough(
    text: Sample, runs: Sample, *, level: float, n_resamples: int, rng: np.random.Generator
) -> Evidence:
    """Evidence of a U-shape from parts (2 * place): start and end less each place between."""
    nothing = np.full(2, np.nan)
    estimate = text.jackknife.estimate.reshape(2, -1)
    if not np.isfinite(estimate).any():
        n = len(text.jackknife.deleted)
        return Evidence(False, np.nan, nothing, nothing, np.nan, np.nan, np.nan, np.nan, None,
                        np.full(n, np.nan))  # fmt: skip
    lowest = int(estimate.min(axis=0).argmax())
    side = int(estimate[:, lowest].argmin())
    part = side * estimate.shape[1] + lowest
    favours = bool(estimate[side, lowest] > 0)
    ci, p = [], []
    for sample in (text, runs):
        found = sample.jackknife
        critical, p_for = largest_t(sample, level=level, n_resamples=n_resamples, rng=rng)
        margin = critical * found.standard_error[part]
        ci.append(found.estimate[part] + margin * np.array([-1, 1]))
        under_start, under_end = _tails(sample, 0.0)[1].reshape(2, -1)
        # no place is a trough: at each, it is not below the start, or it is not below the end
        p_against = np.minimum(1.0, 4 * np.minimum(under_start, under_end).max())
        p.append(p_for if favours else float(p_against))
    smallest = 2 / (n_resamples + 1) if favours else 0.0
    return Evidence(favours, float(estimate[side, lowest]), ci[0], ci[1], p[0], p[1], smallest,
                    smallest, lowest, text.jackknife.deleted[:, part])  # fmt: skip


def largest_t(
    sample: Sample, *, level: float, n_resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The t that bounds two curves at all their places, and two-sided p of a U-shape.

    Parameters
    ----------
    sample : of parts (2 * place).

    Returns
    -------
    critical : the quantile of the largest t of a curve, as two-sided intervals need it.
    p : (1 + #{draws as large}) / (B + 1), twice, of the curve where draws are larger more often.
    """
    found, n = sample.jackknife, len(sample.stratum)
    if not np.isfinite(found.standard_error).all() or not (found.standard_error > 0).all():
        return np.nan, np.nan
    influence = np.empty_like(found.deleted)
    for label in np.unique(sample.stratum):
        own = sample.stratum == label
        size = np.sqrt((own.sum() - 1) / own.sum())
        influence[own] = size * (found.deleted[own] - found.deleted[own].mean(axis=0))
    freedom = float(sample.freedom.min())
    student = np.sqrt(freedom / rng.chisquare(freedom, n_resamples))
    draws = rng.standard_normal((n_resamples, n)) @ (influence / found.standard_error)
    largest = (draws * student[:, None]).reshape(n_resamples, 2, -1).max(axis=-1)
    observed = (found.estimate / found.standard_error).reshape(2, -1).min(axis=0).max()
    p = 2 * (1 + (largest >= observed).sum(axis=0)) / (n_resamples + 1)
    critical = np.quantile(largest, (1 + level) / 2, axis=0)
    return float(critical.max()), float(min(1.0, p.max()))


def verdict(
    *, favours: bool, p: float, run_p: float, run_smallest_p: float, few: str, level: float
) -> tuple[str, str]:
    """One of three words, and the reason in a few words.

    Parameters
    ----------
    favours : as in `Evidence`.
    p, run_p : over text and over runs, corrected for the size of their family.
    run_smallest_p : the smallest that could come out over runs, corrected likewise.
    few : arms with too few runs, in words, or "".
    level : 1 less the p below which a claim is made.
    """
    alpha = 1 - level
    way = "for" if favours else "against"
    if p < alpha and run_p < alpha and not few:
        word = "supported" if favours else "refuted"
        return word, f"text and seeds speak {way} it"
    unknown = "cannot be told with these seeds"
    if np.isnan(p):
        return unknown, f"too few runs of {few}" if few else "there is nothing to compare"
    text = f"text speaks {way} it" if p < alpha else "text does not tell"
    if few:
        return unknown, f"{text}; too few runs of {few}"
    if run_p < alpha:
        return unknown, f"{text}; seeds speak {way} it"
    if run_smallest_p >= alpha:
        return unknown, f"{text}; seeds are too few for any p below {alpha:.2g}"
    return unknown, f"{text}; seeds do not tell" if p < alpha else "neither text nor seeds tell"
