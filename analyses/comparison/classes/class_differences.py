"""How far apart two arms are in each class of tokens, over training, with two intervals."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.along import Along
from analyses.comparison.classes.arm_pairs import ArmPair
from analyses.comparison.units import token_units
from analyses.comparison.walk import Progress, mapped
from analyses.reporting.text import labels
from analyses.statistics.class_means import class_interval, class_means, class_sums
from analyses.statistics.token_classes import Division
from analyses.statistics.two_arms import welch

FEWEST_TOKENS = 50
_OVERALL = -1


class Tokens(NamedTuple):
    """Which unit and which classes every token is in, tokens in reading order.

    Attributes
    ----------
    units : (unit), names.
    unit : (token), index into `units`.
    classes : names of the classes, and last `all tokens`.
    division : name of the division of each class.
    label : (division, token), index into `classes`, -1 for none.
    counts : (unit, class), tokens.
    """

    units: NDArray[np.str_]
    unit: NDArray[np.intp]
    classes: tuple[str, ...]
    division: tuple[str, ...]
    label: NDArray[np.intp]
    counts: NDArray[np.float64]


def classified(
    divisions: Mapping[str, Division], unit: xr.DataArray, *, fewest: int = FEWEST_TOKENS
) -> Tokens:
    """Number the classes of all divisions; those of few tokens, or without a counterpart, go.

    Parameters
    ----------
    divisions : of `token_classes`.
    unit : DataArray (sequence), name of each sequence's unit of text.
    fewest : tokens that a class needs.
    """
    n_pos = next(iter(divisions.values())).label.shape[1]
    units, of_token = token_units(unit, n_pos=n_pos)
    names: list[tuple[str, str]] = []
    label = []
    for division, (classes, of_division) in divisions.items():
        sizes = np.bincount(of_division[of_division >= 0], minlength=len(classes))
        kept = np.flatnonzero(sizes >= fewest)
        if len(kept) < 2:
            continue
        number = np.full(len(classes) + 1, -1)
        number[kept] = len(names) + np.arange(len(kept))
        names += [(division, f"{division}: {classes[i]}") for i in kept]
        label.append(number[of_division.ravel()])
    label.append(np.full(of_token.shape, len(names)))
    names.append(("", "all tokens"))
    shape = (len(units), len(names))
    one = np.ones((1, len(of_token)))
    counts = class_sums(one, of_token, np.stack(label), shape=shape)[..., 0]
    division_of, full = zip(*names, strict=True)
    return Tokens(units, of_token, full, division_of, np.stack(label), counts)


def losses_at(loss: xr.DataArray, places: Along, place: int) -> NDArray[np.float64]:
    """Losses of all runs at one place, (run, token), interpolated between its sides.

    A run whose losses are not all finite there is NaN.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats.
    places : of `along`.
    place : index into them.
    """
    loss = loss.transpose("run", "step", "sequence", "pos")
    values = np.zeros((loss.sizes["run"], loss.sizes["sequence"] * loss.sizes["pos"]))
    for step, weight in zip(places.step[place], places.weight[place], strict=True):
        for run, row in enumerate(values):
            row += weight[run] * loss.isel(run=run, step=int(step[run])).values.ravel()
    values[~np.isfinite(values).all(axis=1)] = np.nan
    return values


def class_differences(
    loss: xr.DataArray,
    tokens: Tokens,
    pairs: Sequence[ArmPair],
    places: Along,
    *,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
) -> xr.Dataset:
    """Difference of the arms of each pair in each class of tokens, at every place.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats.
    tokens : of `classified`.
    pairs : of `arm_pairs`, whose runs are those of `loss`.
    places : of `along`.
    level : coverage of the intervals.
    progress : wraps the list of places, to show how far the work is.
    dask : None, "local", or the address of a scheduler.

    Returns
    -------
    Dataset
        What `measured` gives but the draws, along `step` or `loss_level` too.
    """
    at_place = partial(_without_draws, loss, tokens, pairs, places, level)
    found = list(mapped(at_place, range(places.place.size), progress, dask))
    joined = xr.concat(found, places.place, data_vars="all", coords="minimal", compat="override")
    return joined.transpose("arm_pair", "run", places.dim, "token_class", "ci_bound")


def labelled(
    measured: xr.Dataset, tokens: Tokens, pairs: Sequence[ArmPair], runs: xr.Dataset
) -> xr.Dataset:
    """The coordinates of pairs of arms, classes, units and runs, put on what was measured of them.

    Parameters
    ----------
    runs : coordinates on `run`.
    """
    coords = {
        "arm_pair": [pair.name for pair in pairs],
        "pair_kind": ("arm_pair", [pair.kind for pair in pairs]),
        "arm_a": ("arm_pair", [pair.arm_a for pair in pairs]),
        "arm_b": ("arm_pair", [pair.arm_b for pair in pairs]),
        "n_runs_a": ("arm_pair", [len(pair.first) for pair in pairs]),
        "n_runs_b": ("arm_pair", [len(pair.second) for pair in pairs]),
        "token_class": list(tokens.classes),
        "division": ("token_class", list(tokens.division)),
        "n_tokens": ("token_class", tokens.counts.sum(axis=0).astype(int)),
        "n_units": ("token_class", (tokens.counts > 0).sum(axis=0)),
        "unit": tokens.units,
        "ci_bound": ["lower", "upper"],
    }
    return measured.assign_coords(coords).assign_coords(runs.coords)


def _without_draws(
    loss: xr.DataArray,
    tokens: Tokens,
    pairs: Sequence[ArmPair],
    places: Along,
    level: float,
    place: int,
) -> xr.Dataset:
    """What is kept of every place: without the draws, which would be many."""
    found = measured(losses_at(loss, places, place), tokens, pairs, level=level)
    return found.drop_vars([name for name in found if str(name).endswith("_deleted")])


def measured(
    values: NDArray[np.float64], tokens: Tokens, pairs: Sequence[ArmPair], *, level: float
) -> xr.Dataset:
    """Class means of every run, and the differences of every pair of arms, at one place.

    Parameters
    ----------
    values : (run, token) losses, nats.
    tokens : of `classified`.
    pairs : of `arm_pairs`.
    level : coverage of the intervals.

    Returns
    -------
    Dataset
        `class_loss (token_class, run)`; for x of `difference` (of two arms' class means) and
        `relative` (the same, less the difference over all tokens): `x (token_class, arm_pair)`,
        `x_ci` over units of text, `x_run_ci` and `x_dof` over runs, which are NaN with fewer than
        two runs of an arm, and the draws `x_deleted (unit, token_class, arm_pair)`. The last class
        is all tokens.
    """
    counts = tokens.counts
    sums = class_sums(values, tokens.unit, tokens.label, shape=counts.shape)
    class_loss = sums.sum(axis=0) / counts.sum(axis=0)[:, None]
    gaps = np.stack(
        [sums[..., p.first].mean(axis=-1) - sums[..., p.second].mean(axis=-1) for p in pairs],
        axis=-1,
    )
    title = "difference of mean losses"
    found: dict[str, Any] = {
        "class_loss": (("token_class", "run"), class_loss, labels("mean loss", "nat")),
        **_compared(
            "difference", title, class_loss, class_means(gaps, counts), counts, pairs, level
        ),
        **_compared(
            "relative",
            f"{title}, less that of all tokens",
            class_loss - class_loss[_OVERALL],
            class_means(gaps, counts, overall=_OVERALL),
            counts, pairs, level,
        ),
    }  # fmt: skip
    return xr.Dataset(found)


def _compared(
    name: str,
    title: str,
    of_run: NDArray[np.float64],
    difference: tuple[NDArray[np.float64], NDArray[np.float64]],
    counts: NDArray[np.float64],
    pairs: Sequence[ArmPair],
    level: float,
) -> dict[str, Any]:
    """Variables of one difference, (class, pair), with its draws and its two intervals.

    Parameters
    ----------
    of_run : (class, run), from which the interval over runs is made.
    difference : (class, pair), and without each unit (unit, class, pair).
    """
    mean, deleted = difference
    over_text = class_interval(mean, deleted, counts, level=level)
    tests = [welch(of_run[:, p.first].T, of_run[:, p.second].T, level=level) for p in pairs]
    over_runs = np.stack([test.ci for test in tests], axis=1)
    dof = np.stack([test.dof for test in tests], axis=1)
    dims, text = ("token_class", "arm_pair"), f"{title}, interval over"
    return {
        name: (dims, mean, labels(title, "nat")),
        f"{name}_deleted": (("unit", *dims), deleted, labels(f"{title}, without one unit", "nat")),
        f"{name}_ci": ((*dims, "ci_bound"), over_text, labels(f"{text} units of text", "nat")),
        f"{name}_run_ci": ((*dims, "ci_bound"), over_runs, labels(f"{text} runs", "nat")),
        f"{name}_dof": (dims, dof, labels("degrees of freedom over runs")),
    }
