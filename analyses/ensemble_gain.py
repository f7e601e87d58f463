r"""Do two models that saw the same tokens know different things, so that together they know more?

The ensemble of runs i and j gives a token the mean of the probabilities that they give it [1]_. How
far that lowers the loss, compared with the mean of their losses l_i and l_j, is their gain

    g_ij = mean_t [ (l_i + l_j)/2 + ln((exp(-l_i) + exp(-l_j))/2) ] = mean_t ln cosh((l_i - l_j)/2)

in nats, at least 0, and 0 if the losses agree token by token: an ensemble gains by how far its
members disagree [4]_. A token on which they differ by d adds d²/8 if d is small and |d|/2 - ln 2 if
it is large. Relative gain divides by the mean loss of
the pair.

Runs of one arm gain too, by the noise of their seeds alone. So the gain between arms A and B is
compared with that within them,

    excess = mean g_AB - (mean g_AA + mean g_BB) / 2

which is 0 on average if the seeds of both arms lose alike on every token, and above 0 if not [2]_.
It needs two runs of each arm, and three for an interval over runs.

A run that is merely ahead of another differs from it in loss, and that alone makes a gain: --match
loss compares runs at equal mean loss, where the gain is over each of the two.

Two intervals, never pooled. Over units of text (works, or documents): one unit is deleted at a time
from the ratio of sums that a mean over tokens is, with Student's t [3]_. Over runs: one run is
deleted at a time.

    python -m analyses.ensemble_gain studies/quick
    python -m analyses.ensemble_gain studies/seeds --match loss

References
----------
.. [1] Lakshminarayanan et al. (2017), arXiv:1612.01474 (the mean of models' probabilities).
.. [2] Székely and Rizzo (2013), doi:10.1016/j.jspi.2013.03.018 (energy distance, which this is).
.. [3] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [4] Krogh and Vedelsby (1994),
   https://papers.nips.cc/paper/1001-neural-network-ensembles-cross-validation-and-active-learning.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.along import Match, along
from analyses.comparison.excess import arm_excess
from analyses.comparison.runs import run_coordinates, sorted_by_arm
from analyses.comparison.summary import PLAIN, summarize
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Compared, Progress, mean_loss, walk
from analyses.reporting import cli, excess, pairs
from analyses.reporting.cohort import bracketed, runs_sentence, stream_doubt, stream_sentence
from analyses.reporting.report import Drawing, Report, Table, definition_of
from analyses.statistics.ensemble import gain_sums
from analyses.statistics.resampling import leave_one_out
from store.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "gain": ("ensemble gain", "nat"),
    "relative_gain": ("ensemble gain over mean loss", "1"),
}


def ensemble_gain(
    loss: xr.DataArray,
    unit: xr.DataArray,
    *,
    match: Match = "step",
    level: float = 0.95,
    progress: Callable[[str], Progress] = lambda description: iter,
    dask: str | None = None,
) -> xr.Dataset:
    """Gain of the ensemble of every pair of runs, by kind of pair and pair of arms.

    Places along training are read one at a time: a study may be larger than memory.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats, with coordinates `arm` and `architecture`
        ("dense" or "moe") on `run`. A run whose losses at a step are not all finite counts as not
        observed there.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    match : "step" or "loss".
    level : coverage of the intervals.
    progress : from a description to what wraps a list of places, to show how far the work is.
    dask : None, "local", or the address of a scheduler.

    Returns
    -------
    Dataset
        `loss_mean (run, step)`; of `gain` and `relative_gain` the variables of
        `comparison.summary.summarize` along `step` or `loss_level`; those of
        `comparison.excess.arm_excess` of both.

    Raises
    ------
    ValueError
        With fewer than two runs or two units, without the coordinates, or if losses are to be
        matched and the runs have none in common.
    """
    loss = sorted_by_arm(loss)
    runs = run_coordinates(loss)
    loss_mean = mean_loss(loss, progress=progress("mean losses"), dask=dask)
    compared = walk(
        loss, unit, along(loss_mean, match), gains, progress=progress("comparing runs"), dask=dask
    )
    result = xr.Dataset({"loss_mean": loss_mean}, attrs={"level": level, "match": match})
    for name, (long_name, units) in MEASURES.items():
        of_measure: dict[str, Any] = {"long_name": long_name, "units": units, "level": level}
        pairwise = summarize(name, *compared[name], runs, scale=PLAIN, **of_measure)
        between = arm_excess(name, *compared[name], runs, **of_measure)
        result = result.merge(pairwise, compat="equals").merge(between, compat="equals")
    return result


def gains(loss: NDArray, unit: NDArray[np.intp]) -> dict[str, Compared]:
    """The measures of all pairs of models, for `walk`.

    Parameters
    ----------
    loss : (model, token), nats.
    unit : (token), integer labels from 0.
    """
    finite = np.isfinite(loss).all(axis=1)
    of_models = np.stack([np.bincount(unit, of_model) for of_model in loss], axis=-1)
    of_models = np.where(finite, of_models, np.nan)
    of_pairs = (of_models[..., None] + of_models[..., None, :]) / 2
    n_tokens = np.bincount(unit)[:, None, None]
    gained = gain_sums(loss, unit)
    return {"gain": _ratio(gained, n_tokens), "relative_gain": _ratio(gained, of_pairs)}


def _ratio(part: NDArray, whole: NDArray) -> Compared:
    """Ratio of sums over all units, and over all but each, from sums (unit, ...)."""
    return Compared(
        part.sum(axis=0) / whole.sum(axis=0), leave_one_out(part) / leave_one_out(whole)
    )


def plot(result: xr.Dataset) -> "Figure":
    """Gain over training, one panel a kind of pair."""
    return pairs.draw(result, "gain")


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    observed = [run.name for run in study.runs if len(run.committed)]
    loss = study.dataset("losses")["loss"].sel(run=observed)
    result = ensemble_gain(
        loss,
        unit_labels(study.probe_set.load(), options.unit),
        match=options.match,
        progress=lambda description: partial(cli.track, description=description),
        dask=options.dask,
    )
    places = pairs.places_with_values(result, "gain")
    last = result.isel({pairs.place_dim(result): int(places[-1])})
    same_stream, stream = stream_sentence(
        study.dataset("training")["stream_hash"].sel(run=observed)
    )
    shown = places[np.unique(np.linspace(0, len(places) - 1, 4).round().astype(int))]
    return Report(
        analysis="ensemble_gain",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(last) + stream_doubt(same_stream, stream),
        tables=tuple(_tables(result, last, shown)),
        drawings=tuple(_drawings(result, last)),
        reading="0 means that two models lose alike on every token, so that one of them is as good "
        "as both. Two runs of one arm always gain something, as each seed misses other tokens. "
        "Only what two arms gain beyond that is knowledge that belongs to the arm: the distance of "
        "a dot from the bar in its row, which the excess gives over training.",
        caveats=(stream, *_caveats(result)),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _drawings(result: xr.Dataset, last: xr.Dataset) -> Iterator[Drawing]:
    unit, where = result["unit"].attrs["long_name"], pairs.place_text(last)
    matched = "at equal mean loss" if "loss_level" in result.dims else "over training"
    yield Drawing(
        name="ensemble_gain",
        title=f"What the ensemble of two runs gains {matched}, by kind of pair",
        caption="A dot is a pair of runs, its halves in the colours of the two arms; the line is "
        f"the mean of the kind, the band its interval over {unit}s, the bars that over runs.",
        figure=plot(result),
        data={
            "gain_by_pair": result[["pair_gain", "pair_gain_ci"]],
            "gain_by_kind": result[["kind_gain", "kind_gain_ci", "kind_gain_run_ci"]],
        },
    )
    yield Drawing(
        name="gain_by_arms",
        title=f"Gain within each arm, above, and between arms, below, at {where}",
        caption="The bar in a row is the mean gain within its two arms, which the noise of seeds "
        f"alone leaves. Wide bands are intervals over {unit}s, thin lines over runs.",
        figure=excess.draw_arms(last, "gain"),
        data={"gain_by_arms": last[["arms_gain", "arms_gain_ci", "arms_gain_run_ci"]]},
    )
    if result.sizes["contrast"]:
        names = [f"excess_gain{suffix}" for suffix in ("", "_ci", "_run_ci")]
        yield Drawing(
            name="gain_excess",
            title=f"What two arms gain together beyond runs of one arm, {matched}",
            caption="0 means that two runs of different arms gain no more than two of one arm. The "
            f"band is the interval over {unit}s, the bars are that over runs.",
            figure=excess.draw_excess(result, "gain"),
            data={"gain_excess": result[[*names, "seed_gain"]]},
        )


def _finding(at: xr.Dataset) -> str:
    return " ".join(
        [
            f"At {pairs.place_text(at)}, the mean of two runs' probabilities lowers the loss, in "
            f"nats, by {pairs.estimates(at, 'gain')} pairs, with {bracketed(at)}.",
            *excess.sentences(at, "gain"),
            runs_sentence(at["arm"].values),
        ]
    )


def _tables(result: xr.Dataset, at: xr.Dataset, places: np.ndarray) -> Iterator[Table]:
    yield pairs.table(result, "gain", "kind", places=places, title="Gain by kind of pair, nats")
    yield pairs.table(result, "gain", "arms", places=places[-1:], title="Gain by arms, nats")
    if result.sizes["contrast"]:
        yield excess.table(at, "gain")
    yield pairs.table(
        result, "relative_gain", "kind", places=places, title="Gain as a share of the mean loss"
    )


def _caveats(result: xr.Dataset) -> Iterator[str]:
    unit = result["unit"].attrs["long_name"]
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text, and err on the wide side for the excess. "
        "Neither contains the other, and both hold place by place."
    )
    if "loss_level" in result.dims:
        yield (
            "Between two observations a gain is interpolated; where observations are sparse and "
            "losses fall fast, it comes out too high, alike for all kinds of pair."
        )
    else:
        yield (
            "At equal steps one run may be ahead of another, which alone makes a gain over the "
            "mean of their losses, though none over the better of them. Compare --match loss."
        )
    yield (
        "An excess above 0 says that arms differ beyond their seeds, not in what. Noise of another "
        "size in one arm adds to it a little, as ln cosh is not quite a square."
    )
    if result["excess_gain_run_ci"].notnull().any():
        yield "Intervals of the excess are not corrected for the number of pairs of arms."
    for run, loss in result["loss_mean"].groupby("run"):
        if missing := int(loss.isnull().sum()):
            yield f"{run} has no finite losses at {missing} of {loss.size} steps."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"unit", "match", "dask"})
    return cli.run(cli.Analysis("ensemble_gain", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
