r"""What the reference study claims, as contrasts of one matrix of similarities over training.

z_ij(s) = artanh r_ij is Fisher's z of the correlation of the losses of runs i and j at place s, and
z_AB its mean over the pairs of runs of arms A and B. A claim says between which bounds some
contrasts lie. A contrast is a function of the matrix and of the arms of its runs, so that leaving
out a run, or dealing out the arms anew, is calling it on other runs or other arms.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.comparison.claims.stages import SHARE, Stages
from analyses.statistics.pairs import pair_indices
from analyses.statistics.runs import log_r_contrast

Contrast = Callable[[NDArray[np.float64], NDArray], NDArray[np.float64]]
Test = Literal["bounds", "trough", "labels"]

FLAT = 0.02
CLOSE = 0.01
OTHER = "other readings"


class Claim(NamedTuple):
    """A claim about arms.

    Attributes
    ----------
    text : what is claimed.
    looked_at : the contrast, in words.
    family : claims that are corrected together for their number.
    arms : whose runs take part.
    stages : the places that it is about.
    contrast : from z (..., place, run, run) and arms (run) to (..., part).
    scale : what the contrast is in: "z", "r2" or "delta".
    test : "bounds": every part lies in (low, high). "trough": the parts are a start and an end less
        each place between, (2 * place), and at some place both are above 0. "labels": the one part
        is 0, whichever runs are called which arm.
    low, high : the bounds.
    """

    text: str
    looked_at: str
    family: str
    arms: tuple[str, ...]
    stages: Stages
    contrast: Contrast
    scale: Literal["z", "r2", "delta"] = "z"
    test: Test = "bounds"
    low: float = 0.0
    high: float = np.inf


def z_matrix(of_pairs: NDArray[np.float64], n_runs: int) -> NDArray[np.float64]:
    """Values of the pairs as a symmetric matrix (..., run, run), NaN on the diagonal."""
    first, second = pair_indices(n_runs)
    matrix = np.full((*of_pairs.shape[:-1], n_runs, n_runs), np.nan)
    matrix[..., first, second] = of_pairs
    matrix[..., second, first] = of_pairs
    return matrix


def mean_z(z: NDArray[np.float64], arm: NDArray, a: str, b: str) -> NDArray[np.float64]:
    """Mean of z (..., run, run) over the pairs of a run of arm `a` with one of `b`; NaN if none."""
    first, second = pair_indices(len(arm))
    of_arms = ((arm[first] == a) & (arm[second] == b)) | ((arm[first] == b) & (arm[second] == a))
    if not of_arms.any():
        return np.full(z.shape[:-2], np.nan)
    return z[..., first[of_arms], second[of_arms]].mean(axis=-1)


def claims_about_dense(
    pair: tuple[str, str], at: Stages, where: Sequence[str], *, family: str
) -> list[Claim]:
    """What is claimed of dense models alone, of one width or of two.

    Parameters
    ----------
    pair : two dense arms, or one twice.
    at : stages of their runs.
    where : (place), each place in words.
    """
    name, early, end = _pair(pair), _early(at, where), where[at.end]
    claim = partial(Claim, family=family, arms=tuple(dict.fromkeys(pair)), stages=at)

    def change_of_r2(z: NDArray[np.float64], arm: NDArray) -> NDArray[np.float64]:
        r2 = np.tanh(mean_z(z, arm, *pair)) ** 2
        return (r2[..., at.end] - _at(r2, at.early))[..., None]

    def trough(z: NDArray[np.float64], arm: NDArray) -> NDArray[np.float64]:
        curve = mean_z(z, arm, *pair)
        ends = np.stack([_at(curve, at.early), curve[..., at.end]], axis=-1)
        apart = ends[..., None] - curve[..., None, at.between]
        return apart.reshape(*curve.shape[:-1], 2 * len(at.between))

    return [
        claim(
            text=f"{name} ends as high as it starts",
            looked_at=f"r² of {name} at {end} less that at {early}, within ±{FLAT:g}",
            contrast=change_of_r2, scale="r2", low=-FLAT, high=FLAT,
        ),
        claim(
            text=f"{name} is U-shaped",
            looked_at=f"z of {name} at {early}, and at {end}, less that at the lowest between",
            contrast=trough, test="trough",
        ),
    ]  # fmt: skip


def claims_about_moe(
    dense: str, moe: str, at: Stages, where: Sequence[str], *, x: NDArray[np.float64]
) -> list[Claim]:
    """What is claimed of an MoE arm against a dense one, and other readings of it.

    Parameters
    ----------
    at, where : as for `claims_about_dense`.
    x : (place), how far training is, for the trend: log2 of the step, or minus the loss.
    """
    mixed, own, end = _pair((dense, moe)), _pair((moe, moe)), where[at.end]
    late, unit = f"from {where[at.late[0]]} on", "doubled step" if x[at.end] >= 0 else "nat"
    claim = partial(Claim, arms=(dense, moe), stages=at, family=moe)
    zero: dict[str, Any] = {"scale": "delta", "test": "labels", "low": 0.0, "high": 0.0}
    close: dict[str, Any] = {"low": np.log(1 - CLOSE) / 2, "high": np.log(1 + CLOSE) / 2}

    def below(z: NDArray[np.float64], arm: NDArray) -> NDArray[np.float64]:
        apart = mean_z(z, arm, dense, moe) - mean_z(z, arm, moe, moe)
        return apart[..., at.late].mean(axis=-1, keepdims=True)

    return [
        claim(
            text=f"{mixed} rises",
            looked_at=f"z of {mixed} at {end} less that at {_early(at, where)}",
            contrast=_change((dense, moe), at.early, at.end),
        ),
        claim(
            text=f"{own} is below {mixed}",
            looked_at=f"z of {mixed} less that of {own}, mean {late}",
            contrast=below,
        ),
        claim_of_height((dense, dense), (dense, moe), at, where, family=moe),
        claim(
            text=f"delta of {dense} and {moe} is 0",
            looked_at=f"rho2 \N{MINUS SIGN} 1 at {end}",
            contrast=_delta(moe, np.array([at.end])), **zero,
        ),
        claim(
            text=f"rho2 of {dense} and {moe} is within {CLOSE:.0%} of 1",
            looked_at=f"rho2 \N{MINUS SIGN} 1 at {end}, within ±{CLOSE:g}",
            contrast=_delta(moe, np.array([at.end])), scale="delta", **close,
        ),
        claim(
            text=f"{mixed} rises from {SHARE:.1%} of training",
            looked_at=f"z of {mixed} at {end} less that at {where[at.share]}",
            contrast=_change((dense, moe), at.share, at.end), family=OTHER,
        ),
        claim(
            text=f"{mixed} rises in the second half",
            looked_at=f"slope of z of {mixed} per {unit}, {late}",
            contrast=_trend((dense, moe), at.late, x), family=OTHER,
        ),
        claim(
            text=f"delta of {dense} and {moe} is 0 from early on",
            looked_at=f"rho2 \N{MINUS SIGN} 1 of the mean delta after {_early(at, where)}",
            contrast=_delta(moe, np.append(at.between, at.end)), family=OTHER, **zero,
        ),
    ]  # fmt: skip


def claim_of_height(
    high: tuple[str, str], low: tuple[str, str], at: Stages, where: Sequence[str], *, family: str
) -> Claim:
    """That pairs of two arms agree more than those of two others, at the start and at the end."""
    names = [_pair(pair) for pair in (high, low)]

    def contrast(z: NDArray[np.float64], arm: NDArray) -> NDArray[np.float64]:
        apart = mean_z(z, arm, *high) - mean_z(z, arm, *low)
        return np.stack([_at(apart, at.early), apart[..., at.end]], axis=-1)

    return Claim(
        text=f"{names[0]} stays above {names[1]}",
        looked_at=f"z of {names[0]} less that of {names[1]}, at {_early(at, where)} and at "
        f"{where[at.end]}",
        family=family, arms=tuple(dict.fromkeys((*high, *low))), stages=at, contrast=contrast,
    )  # fmt: skip


def _change(pair: tuple[str, str], start: int | None, end: int) -> Contrast:
    def contrast(z: NDArray[np.float64], arm: NDArray) -> NDArray[np.float64]:
        curve = mean_z(z, arm, *pair)
        return (curve[..., end] - _at(curve, start))[..., None]

    return contrast


def _trend(pair: tuple[str, str], places: NDArray[np.intp], x: NDArray[np.float64]) -> Contrast:
    """Least-squares slope along x; NaN with fewer than three places."""
    centred = x[places] - x[places].mean()

    def contrast(z: NDArray[np.float64], arm: NDArray) -> NDArray[np.float64]:
        curve = mean_z(z, arm, *pair)[..., places]
        slope = curve @ centred / (centred @ centred) if len(places) > 2 else curve[..., 0] * np.nan
        return slope[..., None]

    return contrast


def _delta(moe: str, places: NDArray[np.intp]) -> Contrast:
    def contrast(z: NDArray[np.float64], arm: NDArray) -> NDArray[np.float64]:
        of_places = log_r_contrast(np.tanh(z[..., places, :, :]), (arm == moe).astype(int))
        return of_places.mean(axis=-1, keepdims=True)

    return contrast


def _at(curve: NDArray[np.float64], place: int | None) -> NDArray[np.float64]:
    return np.full(curve.shape[:-1], np.nan) if place is None else curve[..., place]


def _pair(arms: tuple[str, str]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(arms)


def _early(at: Stages, where: Sequence[str]) -> str:
    return "a place past unigrams" if at.early is None else where[at.early]
