r"""Do models that saw the same tokens in the same order find the same tokens hard?

With l_i(t) the loss of run i on token t of the probe set, at one training step, the similarity of
runs i and j is the share of variance that a straight line between their losses explains [1]_,

    r²_ij = corr_t(l_i(t), l_j(t))²

for every pair of runs. Pairs are of three kinds: dense-dense, dense-MoE and MoE-MoE. The value of
a kind is tanh(mean of artanh r_ij)² over its pairs; likewise for each pair of arms.

Runs are compared at equal steps, or with --match loss at equal mean loss, where a value is
interpolated between the observations on either side. Beside r² stand Spearman's correlation [4]_,
which no heavy tail moves; r² of the probabilities p = exp(-l) of the right token; the mean squared
difference of losses, which does not grow because losses spread out; and partial r², which holds
fixed what makes a token hard for any model: n-gram surprisal of orders 1 to 5, the target's
frequency in the training text, and its position, each with its square [5]_.

If two models share nothing but how hard each token is, l_i = T + e_i, then r_ij = a_i a_j with a_i
the reliability of run i alone [4]_. So r between arms A and B is compared with that within them,

    delta = mean log r_AB - (mean log r_AA + mean log r_BB) / 2,    rho2 = exp(2 delta)

which is 1 without any systematic difference, whatever the noise of single runs, and below 1 if runs
share something within their arm alone. It needs two runs of each arm, and three for an interval.

Two intervals, never pooled. Over units of text (works, or documents): what other text would have
given with these very models; one unit is deleted at a time, on Fisher's z = artanh r [2]_, with
Student's t of D - 1 degrees of freedom for D units [3]_. Over runs: what other seeds would have
given on this text; one run is deleted at a time. Tokens never count as if they were independent.

    python -m analyses.r2_over_time studies/quick
    python -m analyses.r2_over_time studies/seeds --match loss

References
----------
.. [1] 1a3orn (2024), "MoE and Dense Transformers Maybe Learn the Same Thing",
   https://1a3orn.com/sub/machine-learning-moe-v-dense-two.html.
.. [2] Fisher (1921), Metron 1, 3-32, https://hdl.handle.net/2440/15169.
.. [3] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [4] Spearman (1904), doi:10.2307/1412159 (rank correlation, and correction for reliability).
.. [5] Michaelov et al. (2025), arXiv:2510.24963 (how much of losses n-gram statistics explain).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.comparison.along import Match, along
from analyses.comparison.contrasts import arm_contrasts, ceiling
from analyses.comparison.controls import Controls, difficulty
from analyses.comparison.loss_similarity import MEASURES, loss_similarity
from analyses.comparison.runs import described, run_coordinates, sorted_by_arm
from analyses.comparison.summary import summarize
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress, mean_loss, walk
from analyses.reporting import cli, figures, pairs
from analyses.reporting.cohort import (
    bracketed,
    runs_sentence,
    stream_doubt,
    stream_sentence,
    works_sentence,
)
from analyses.reporting.report import Drawing, Report, Table, definition_of
from analyses.reporting.text import interval, labels, listed, number
from analyses.statistics.bands import simultaneous
from analyses.statistics.correlation import r2_interval
from analyses.statistics.resampling import jackknife
from store.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def r2_over_time(
    loss: xr.DataArray,
    unit: xr.DataArray,
    *,
    controls: Controls | None = None,
    match: Match = "step",
    level: float = 0.95,
    n_resamples: int = 500,
    progress: Callable[[str], Progress] = lambda description: iter,
    dask: str | None = None,
    rng: np.random.Generator | None = None,
) -> xr.Dataset:
    """Similarity of per-token losses for every pair of runs, kind of pair and pair of arms.

    Places along training are read one at a time: a study may be larger than memory.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats, with coordinates `arm` and `architecture`
        ("dense" or "moe") on `run`. A run whose losses at a step are not all finite counts as not
        observed there.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    controls : what `partial_r2` holds fixed (`difficulty`); without, it is left out.
    match : "step" or "loss".
    level : coverage of the intervals.
    n_resamples : draws for the simultaneous band.
    progress : from a description to what wraps a list of places, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : for the simultaneous band; `default_rng(0)` if None.

    Returns
    -------
    Dataset
        `loss_mean (run, step)`; for each measure x of `MEASURES` the variables of
        `comparison.summary.summarize` along `step` or `loss_level` (`partial_r2` also along
        `control`); `kind_r2_band`, simultaneous over all places; `ceiling` and `ceiling_ci`, the
        r² between dense and MoE that noise alone would leave; and those of
        `comparison.summary.arm_contrasts`.

    Raises
    ------
    ValueError
        With fewer than two runs or two units, without the coordinates, or if losses are to be
        matched and the runs have none in common.
    """
    loss = sorted_by_arm(loss)
    runs = run_coordinates(loss)
    loss_mean = mean_loss(loss, progress=progress("mean losses"), dask=dask)
    places = along(loss_mean, match)
    compared = walk(
        loss, unit, places, partial(loss_similarity, controls=controls),
        progress=progress("comparing runs"), dask=dask,
    )  # fmt: skip
    result = xr.Dataset({"loss_mean": loss_mean}, attrs={"level": level, "match": match})
    for name, (estimate, deleted) in compared.items():
        scale, long_name, units = MEASURES[name]
        if name == "partial_r2" and controls is not None:
            renamed = {"partial_r2_0": "control"}
            rungs = {"control": list(controls.rungs)}
            estimate = estimate.rename(renamed).assign_coords(rungs)
            deleted = deleted.rename(renamed).assign_coords(rungs)
        of_measure = summarize(
            name, estimate, deleted, runs,
            scale=scale, long_name=long_name, units=units, level=level,
        )  # fmt: skip
        result = result.merge(of_measure, compat="equals")
    result = result.merge(arm_contrasts(*compared["r2"], runs, level=level))
    result = result.merge(ceiling(result, level=level))
    rng = rng or np.random.default_rng(0)
    band = _band(result, level=level, n_resamples=n_resamples, rng=rng)
    return described(result.assign(kind_r2_band=band))


def _band(
    result: xr.Dataset, *, level: float, n_resamples: int, rng: np.random.Generator
) -> xr.DataArray:
    """Band of r² of each kind that holds at all places at once."""
    dims = result["kind_r2"].dims
    deleted = result["kind_r2_deleted"].transpose("unit", *dims).values
    z = result["kind_r2_inner"].values
    ci, _ = simultaneous(
        jackknife(z, deleted, level=level), level=level, n_resamples=n_resamples, axis=-1, rng=rng
    )
    attrs = labels("r² of per-token losses, simultaneous band over units of text")
    return xr.DataArray(r2_interval(ci), dims=(*dims, "ci_bound"), attrs=attrs)


def plot(result: xr.Dataset) -> "Figure":
    """r² over training, a panel for each kind of pair, with what noise of runs would leave."""
    return pairs.draw(result, "r2", ceiling=True, fisher=True)


def plot_contrasts(result: xr.Dataset) -> "Figure":
    """rho2 of each two arms, with both intervals, from where r² is half or more in all arms."""
    from matplotlib.lines import Line2D

    dim, unit = pairs.place_dim(result), result["unit"].attrs["long_name"]
    contrasts = result["contrast"].values
    # a ratio of small correlations is noise, which would set the scale for all the rest
    drawn = result.isel({dim: np.flatnonzero((result["arms_r2"] >= 0.5).all("arms"))})
    with figures.style():
        n_columns = min(4, len(contrasts))
        n_rows = -(-len(contrasts) // n_columns)
        figure = figures.new_figure(width=1.0 + 2.5 * n_columns, height=0.9 + 2.2 * n_rows)
        axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
        for ax in axes[len(contrasts) :]:
            ax.set_visible(False)
        for ax, contrast in zip(axes, contrasts, strict=False):
            at = drawn.sel(contrast=contrast)
            ax.axhline(1, color=figures.CEILING, lw=1.2, ls=(0, (4, 2)))
            low, high = at["rho2_ci"].transpose("ci_bound", dim)
            ax.fill_between(at[dim], low, high, color=figures.INK, alpha=0.15, lw=0)
            low, high = at["rho2_run_ci"].transpose("ci_bound", dim)
            ax.vlines(at[dim], low, high, color=figures.INK, lw=0.8)
            ax.plot(at[dim], at["rho2"], color=figures.INK, lw=1.2, marker="o", markersize=3)
            figures.panel_title(ax, str(contrast))
            figures.place_axis(ax, drawn[dim])
        for ax in axes[::n_columns]:
            ax.set_ylabel("rho2")
        figure.legend(
            handles=[
                Line2D([], [], color=figures.CEILING, lw=1.2, ls=(0, (4, 2)),
                       label="no systematic difference"),
                *pairs.interval_handles(unit, runs=True),
            ],
            loc="outside lower center",
            ncols=4 if n_columns > 2 else 1,
        )  # fmt: skip
    return figure


def plot_ladder(at: xr.Dataset) -> "Figure":
    """Partial r² of each kind of pair at one place, as more of the difficulty is held fixed."""
    kinds = at["kind"].values
    rungs = ["nothing", *at["control"].values.tolist()]
    with figures.style():
        figure = figures.new_figure(width=7.4, height=3.6)
        ax = figure.subplots()
        for i, kind in enumerate(kinds):
            of_kind = at.sel(kind=kind)
            value, ci, run_ci = (
                np.concatenate([of_kind[f"kind_r2{s}"].values[None],
                                of_kind[f"kind_partial_r2{s}"].transpose("control", ...).values])
                for s in ("", "_ci", "_run_ci")
            )  # fmt: skip
            x = np.arange(len(rungs)) + 0.18 * (i - (len(kinds) - 1) / 2)
            color = figures.KIND_COLORS[str(kind)]
            ax.vlines(x, *ci.T, color=color, lw=4, alpha=0.3)
            ax.vlines(x, *run_ci.T, color=color, lw=1)
            ax.plot(x, value, ls="", marker="o", markersize=4.5, color=color, label=str(kind))
        ax.set_xticks(range(len(rungs)), rungs)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("held fixed (each rung adds to those on its left)")
        ax.set_ylabel("partial r² of losses")
        ax.legend()
    return figure


def plot_measures(result: xr.Dataset) -> "Figure":
    """The kinds of pair by every other measure, over training."""
    dim = pairs.place_dim(result)
    names = ("spearman", "p_r2", "squared_difference")
    with figures.style():
        figure = figures.new_figure(width=9.7, height=3.4)
        for ax, name in zip(figure.subplots(1, 3), names, strict=True):
            for kind in result["kind"].values:
                at = result.sel(kind=kind).dropna(dim, subset=[f"kind_{name}"])
                color = figures.KIND_COLORS[str(kind)]
                low, high = at[f"kind_{name}_ci"].transpose("ci_bound", dim)
                ax.fill_between(at[dim], low, high, color=color, alpha=0.15, lw=0)
                ax.plot(at[dim], at[f"kind_{name}"], color=color, lw=1.2, marker="o",
                        markersize=2.6, label=str(kind))  # fmt: skip
            figures.place_axis(ax, result[dim])
            measure, _, of_what = figures.axis_label(result[f"kind_{name}"]).partition(" of ")
            ax.set_title(f"{measure}\nof {of_what}", fontsize=9, fontweight="normal")
        handles, shown = ax.get_legend_handles_labels()
        figure.legend(handles, shown, loc="outside lower center", ncols=3)
    return figure


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    observed = [run.name for run in study.runs if len(run.committed)]
    loss, probe_set = study.dataset("losses")["loss"].sel(run=observed), study.probe_set.load()
    result = r2_over_time(
        loss,
        unit_labels(probe_set, options.unit),
        controls=difficulty(probe_set),
        match=options.match,
        n_resamples=options.n_resamples,
        progress=lambda description: partial(cli.track, description=description),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    places = pairs.places_with_values(result, "r2")
    last = result.isel({pairs.place_dim(result): int(places[-1])})
    hashes = study.dataset("training")["stream_hash"].sel(run=observed)
    same_stream, stream = stream_sentence(hashes)
    shown = places[np.unique(np.linspace(0, len(places) - 1, 4).round().astype(int))]
    return Report(
        analysis="r2_over_time",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(last) + stream_doubt(same_stream, stream),
        tables=tuple(_tables(result, last, shown)),
        drawings=tuple(_drawings(result, last)),
        reading="Higher means that two models find the same tokens hard. What all models share, "
        "such as that rare words are hard, puts r² well above 0 for any two trained models, so "
        "compare panels at one place, not one panel with 0. The dashed line in dense-MoE is where "
        "it would lie if noise of single runs were all that differs; rho2 divides by it, arm by "
        "arm. Dots of one panel further apart than the band is wide differ by more than the choice "
        "of text explains.",
        caveats=(stream, *_caveats(result, last, probe_set)),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _drawings(result: xr.Dataset, last: xr.Dataset) -> Iterator[Drawing]:
    unit, where = result["unit"].attrs["long_name"], pairs.place_text(last)
    matched = "at equal mean loss" if "loss_level" in result.dims else "over training"
    ends = "Step 0 is initialization; the axis is linear to 1, then logarithmic."
    yield Drawing(
        name="r2_over_time",
        title=f"r² of per-token losses {matched}, by kind of pair",
        caption="A dot is a pair of runs, its halves in the colours of the two arms; the line is "
        f"the mean of the kind, the band its interval over {unit}s, the bars that over runs. The "
        "r² axis is even in Fisher's z. "
        + ("Training goes from left to right." if "loss_level" in result.dims else ends),
        figure=plot(result),
        data={
            "r2_by_pair": result[["pair_r2", "pair_r2_ci"]],
            "r2_by_kind": result[["kind_r2", "kind_r2_ci", "kind_r2_run_ci", "kind_r2_band"]],
        },
    )
    if result.sizes["contrast"]:
        names = [f"rho2{suffix}" for suffix in ("", "_ci", "_run_ci")]
        yield Drawing(
            name="rho2",
            title=f"Similarity of arms corrected for noise of single runs, rho2, {matched}",
            caption="1 means that runs of two arms agree as well as noise of single runs lets "
            f"them. The band is the interval over {unit}s, the bars are that over runs. Drawn from "
            "where r² is 0.5 or more within and between all arms; before, the ratio is noise.",
            figure=plot_contrasts(result),
            data={"rho2": result[names]},
        )
    if "control" in result.dims:
        names = [f"kind_partial_r2{suffix}" for suffix in ("", "_ci", "_run_ci")]
        yield Drawing(
            name="partial_r2",
            title=f"What is left of r² at {where} when a token's difficulty is held fixed",
            caption=f"Wide bars are intervals over {unit}s, thin ones over runs.",
            figure=plot_ladder(last),
            data={"partial_r2": last[names]},
        )
    names = ["spearman", "p_r2", "squared_difference"]
    yield Drawing(
        name="measures",
        title=f"Other measures of the same {matched}",
        caption=f"Means of the kinds of pair, with intervals over {unit}s.",
        figure=plot_measures(result),
        data={"measures": result[[f"kind_{n}{suffix}" for n in names for suffix in ("", "_ci")]]},
    )


def _finding(at: xr.Dataset) -> str:
    sentences = [
        f"At {pairs.place_text(at)}, r² of the losses of two runs on the same tokens is "
        f"{pairs.estimates(at, 'r2')} pairs, with {bracketed(at)}."
    ]
    told = pairs.told_over_runs(at, "rho2")
    if told.sizes["contrast"]:
        least = told.isel(contrast=int(told["rho2"].values.argmin()))
        sentences.append(
            "Corrected for the noise of single runs, rho2, 1 if arms differ in nothing systematic, "
            f"is lowest for {least['contrast'].item()}, {number(least['rho2'], digits=4)} "
            f"({interval(*least['rho2_run_ci'].values, digits=4)} over runs)."
        )
    return " ".join([*sentences, runs_sentence(at["arm"].values)])


def _caveats(result: xr.Dataset, at: xr.Dataset, probe_set: xr.Dataset) -> Iterator[str]:
    unit = result["unit"].attrs["long_name"]
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other, and both hold "
        "place by place; the file r2_by_kind.csv has a band that holds for a whole curve."
    )
    yield (
        "dense-MoE above MoE-MoE is what noisier MoE seeds alone would give: r between the kinds "
        "is then the geometric mean of r within them. It is no sign that architectures agree."
    )
    if at.sizes["contrast"] > 1:
        yield (
            f"The {at.sizes['contrast']} contrasts of arms are not corrected for their number; "
            "`python -m analyses.significance` tests the few that were stated beforehand."
        )
    yield (
        "r² also moves because losses spread out as models learn, and because one run is ahead of "
        "another at the same step (compare --match loss). A rise over training is not by itself "
        "growing agreement."
    )
    yield (
        "The interval of the mean squared difference, which few tokens decide, is too narrow with "
        "few units of text, even on its logarithm: with 20 it covered .82 to .88 in place of .95, "
        "and that of r² .91 to .93."
    )
    if "control" in result.dims:
        yield (
            "Partial r² is an upper bound of what models share beyond n-gram statistics, because "
            "the n-gram model estimates them with error."
        )
    dense = np.unique(at["arm"].values[at["architecture"].values == "dense"])
    if len(dense) > 1:
        yield (
            f"The kind dense-dense mixes pairs that differ in seed with pairs that differ in size "
            f"({listed(dense)}); the table by arms keeps them apart, and so does rho2."
        )
    if unit == "document" and (works := works_sentence(probe_set)) is not None:
        yield f"{works} Use --unit work."
    for run, loss in result["loss_mean"].groupby("run"):
        if missing := int(loss.isnull().sum()):
            yield (
                f"{run} has no finite losses at {missing} of {loss.size} steps; its pairs have no "
                "value there, nor do the kinds and arms that they belong to."
            )


def _tables(result: xr.Dataset, at: xr.Dataset, places: np.ndarray) -> Iterator[Table]:
    last = places[-1:]
    yield pairs.table(result, "r2", "kind", places=places, title="r² by kind of pair")
    yield pairs.table(result, "r2", "arms", places=last, title="r² by arms")
    where = pairs.place_text(at)
    if result.sizes["contrast"]:
        unit = result["unit"].attrs["long_name"]
        rows = [
            (
                str(contrast),
                number(of_arms["delta"], digits=4),
                number(of_arms["rho2"], digits=4),
                interval(*of_arms["rho2_ci"].values, digits=4),
                interval(*of_arms["rho2_run_ci"].values, digits=4),
            )
            for contrast in at["contrast"].values
            for of_arms in [at.sel(contrast=contrast)]
        ]
        head = ("arms", "delta", "rho2", f"95% of rho2 over {unit}s", "95% of rho2 over runs")
        yield Table(f"Seed-corrected similarity at {where}", head, tuple(rows))
    for name in ("spearman", "p_r2", "squared_difference"):
        yield pairs.table(result, name, "kind", places=last, title=f"{MEASURES[name][1]}, {where}")
    if "control" in result.dims:
        kinds = at["kind"].values
        ladder = [
            (str(rung), *(
                f"{number(at['kind_partial_r2'].sel(control=rung, kind=kind))} "
                f"({interval(*at['kind_partial_r2_ci'].sel(control=rung, kind=kind).values)})"
                for kind in kinds
            ))
            for rung in at["control"].values
        ]  # fmt: skip
        yield Table(f"Partial r² at {where}, by what is held fixed", ("", *kinds), tuple(ladder))
    step = result["loss_mean"].dropna("step")["step"].values
    if len(step):
        means = result["loss_mean"].sel(step=step[-1])
        losses = [
            (str(run), str(arm), number(loss, digits=4))
            for run, arm, loss in zip(
                means["run"].values, means["arm"].values, means.values, strict=True
            )
        ]
        yield Table(f"Mean loss at step {int(step[-1]):,}", ("run", "arm", "nats"), tuple(losses))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "match", "dask"})
    return cli.run(cli.Analysis("r2_over_time", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
