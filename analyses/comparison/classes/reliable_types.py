"""The token ids at which two arms differ most reliably, with what is left of it in other text."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.classes.arm_pairs import ArmPair
from analyses.statistics.class_means import class_interval, class_means, class_sums
from analyses.statistics.permutation import label_test
from analyses.statistics.resampling import jackknife
from analyses.statistics.token_types import Halves, kept_difference, type_means
from analyses.statistics.two_arms import welch


def reliable_types(
    values: NDArray[np.float64],
    text: Halves,
    pairs: Sequence[ArmPair],
    *,
    most: int = 10,
    level: float = 0.95,
    n_resamples: int = 500,
    rng: np.random.Generator,
) -> xr.Dataset:
    """The most reliable token ids of each pair of arms, and their difference in both halves.

    Parameters
    ----------
    values : (run, token) losses, nats.
    text : of `halves`, with at least one id.
    pairs : of `arm_pairs`.
    most : ids to choose; at most a quarter of those there are.
    level : coverage of the intervals.
    n_resamples : relabellings of runs, where there are too many to try them all.

    Returns
    -------
    Dataset
        For pairs whose arms have two runs each, along `choice` (empty without one):
        `type_difference (choice, half, token_type)`, nats, of all ids. Of those chosen, by `rank`:
        `chosen_id`, `chosen_difference (half)` with `chosen_run_ci (half)` over runs, `shown_ci`
        over units of text of the second half, `shown_count`, and `example`, the place in reading
        order of the occurrence in the second half whose difference is the median. Their mean with
        the sign of the first half: `kept (choice, half)`, `kept_ci` over units of the second half,
        `kept_chance`, what exchanged runs keep, `kept_p` and `kept_smallest_p`.
    """
    chosen_from = [pair for pair in pairs if pair.enough]
    if not chosen_from or not len(text.ids):
        return xr.Dataset()
    means = np.moveaxis(type_means(values, text), -1, 0)
    n_chosen = min(most, -(-len(text.ids) // 4))
    found = [
        _of_pair(values, means, text, pair, n_chosen, level, n_resamples, rng)
        for pair in chosen_from
    ]
    joined = xr.concat(found, "choice", data_vars="all", coords="minimal", compat="override")
    return joined.assign_coords(
        choice=[pair.name for pair in chosen_from],
        half=["first", "second"],
        token_type=text.ids,
        rank=np.arange(1, n_chosen + 1),
    )


def _of_pair(
    values: NDArray[np.float64],
    means: NDArray[np.float64],
    text: Halves,
    pair: ArmPair,
    n_chosen: int,
    level: float,
    n_resamples: int,
    rng: np.random.Generator,
) -> xr.Dataset:
    """The choice of one pair of arms, from the means of the ids (run, half, type)."""
    first, second = means[pair.first], means[pair.second]
    kept = kept_difference(first, second, n_chosen=n_chosen)
    both = np.concatenate([first, second])

    def after(label: NDArray) -> float:
        return kept_difference(both[label], both[~label], n_chosen=n_chosen).after

    label = np.arange(len(both)) < len(first)
    test = label_test(after, label, alternative="greater", n_resamples=n_resamples, rng=rng)
    others = test.null[np.abs(test.null - kept.after) > 1e-9]
    over_runs = welch(first[..., kept.chosen], second[..., kept.chosen], level=level)
    shown_ci, kept_ci = _over_text(values, text, pair, kept.chosen, over_runs.difference[0], level)
    losses = [values[runs].mean(axis=0) for runs in (pair.first, pair.second)]
    example = [_typical(losses[0] - losses[1], text, i) for i in kept.chosen]
    return xr.Dataset(
        {
            "type_difference": (("half", "token_type"), first.mean(axis=0) - second.mean(axis=0)),
            "chosen_id": ("rank", text.ids[kept.chosen]),
            "chosen_difference": (("half", "rank"), over_runs.difference),
            "chosen_run_ci": (("half", "rank", "ci_bound"), over_runs.ci),
            "shown_ci": (("rank", "ci_bound"), shown_ci),
            "shown_count": ("rank", text.counts[1, kept.chosen].astype(int)),
            "example": ("rank", example),
            "example_loss": (("rank", "group"), np.stack(losses, axis=-1)[example]),
            "kept": ("half", [kept.before, kept.after]),
            "kept_ci": ("ci_bound", kept_ci),
            "kept_chance": ((), others.mean() if len(others) else np.nan),
            "kept_p": ((), test.p),
            "kept_smallest_p": ((), test.smallest_p),
        }
    )


def _over_text(
    values: NDArray[np.float64],
    text: Halves,
    pair: ArmPair,
    chosen: NDArray[np.intp],
    sign_of: NDArray[np.float64],
    level: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intervals over units of the second half: of each chosen type, and of their signed mean."""
    rank = np.full(len(text.ids) + 1, -1)
    rank[chosen] = np.arange(len(chosen))
    _, unit = np.unique(text.unit[text.second], return_inverse=True)
    label = np.stack([rank[text.type_index], np.full(text.unit.shape, len(chosen))])[:, text.second]
    gap = values[pair.first].mean(axis=0) - values[pair.second].mean(axis=0)
    rows = np.stack([np.ones(len(unit)), gap[text.second]])
    shape = (int(unit.max()) + 1, len(chosen) + 1)
    counts, sums = np.moveaxis(class_sums(rows, unit, label, shape=shape), -1, 0)
    mean, deleted = class_means(sums, counts, overall=-1)
    sign = np.append(np.sign(sign_of), 0.0) / len(chosen)
    over_text = class_interval(mean, deleted, counts, level=level)[:-1]
    return over_text, jackknife(mean @ sign, deleted @ sign, level=level).ci


def _typical(gap: NDArray[np.float64], text: Halves, chosen: int) -> int:
    """Occurrence in the second half whose difference is the median of all there."""
    occurrences = np.flatnonzero((text.type_index == chosen) & text.second)
    return int(occurrences[np.argsort(gap[occurrences], kind="stable")[len(occurrences) // 2]])
