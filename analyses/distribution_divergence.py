r"""Do models that saw the same tokens predict the same distribution over the next token?

A loss is one number out of a distribution: two models may agree on the right token and differ on
all others. With p_i and p_j what runs i and j predict at a position t of the probe set,

    KL = mean_t [KL(p_i, p_j) + KL(p_j, p_i)] / 2 = mean_t sum_v (p_i - p_j)(ln p_i - ln p_j) / 2
    JS = mean_t [KL(p_i, m) + KL(p_j, m)] / 2,    m = (p_i + p_j) / 2

in nats [1]_, [2]_: KL is the mean of both directions, and JS is at most ln 2 = 0.693. Both are also
taken in bands of the target's frequency in the training text. Minus the mean KL between seeds of
one arm is their convergence [3]_.

Convergence has been seen to go through four phases [3]_: an initial one, in which models are close
to uniform and KL hardly moves; sharp convergence, towards what can be known without the context;
sharp divergence; and slow reconvergence. They are looked for between the turns at which KL leaves
its first level, is lowest, and is highest again. As these turns are chosen from the curve,
intervals over units hold for all pairs of steps at once. The first phase is seen if in it KL surely
changes by less than a tenth of the curve's range, any other if its change surely has the right
sign, both over units and over runs. One is not seen if it has no steps, as when KL is highest at
the last one.

Runs of one arm differ by the noise of their seeds. So arms A and B are compared with that,

    excess = mean KL_AB - (mean KL_AA + mean KL_BB) / 2

and likewise for JS, in the form of an energy distance [5]_. It is 0 on average if the seeds of both
arms predict alike.

Two intervals, never pooled. Over units of text (works, or documents): one unit is deleted at a time
from the ratio of sums that a mean over tokens is, with Student's t [4]_. Over runs: one run is
deleted at a time. --match loss compares runs at equal mean loss over the whole probe set.

    python -m analyses.distribution_divergence studies/quick
    python -m analyses.distribution_divergence studies/seeds --match loss

References
----------
.. [1] Kullback and Leibler (1951), doi:10.1214/aoms/1177729694 (there, the sum of both directions).
.. [2] Lin (1991), doi:10.1109/18.61115 (Jensen-Shannon divergence).
.. [3] Fehlauer, Mahowald and Pimentel (2025), arXiv:2509.26643 (KL between seeds over training).
.. [4] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [5] Székely and Rizzo (2013), doi:10.1016/j.jspi.2013.03.018 (energy distance).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.comparison.along import Along, Match, along
from analyses.comparison.divergence.seed_phases import seed_phases
from analyses.comparison.divergence.token_divergence import (
    MEASURES,
    Bands,
    frequency_bands,
    references,
    token_divergence,
)
from analyses.comparison.excess import arm_excess
from analyses.comparison.runs import run_coordinates, sorted_by_arm
from analyses.comparison.summary import PLAIN, summarize
from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress, mean_loss, walk
from analyses.reporting import cli, divergence_figures, divergence_text, excess, pairs
from analyses.reporting.cohort import stream_doubt, stream_sentence
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import labels
from store.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def distribution_divergence(
    log_prob: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    loss_mean: xr.DataArray | None = None,
    tolerance: float = 0.1,
    level: float = 0.95,
    n_resamples: int = 500,
    progress: Callable[[str], Progress] = lambda description: iter,
    dask: str | None = None,
    rng: np.random.Generator | None = None,
) -> xr.Dataset:
    """KL and JS between the predictions of every pair of runs, kind of pair and pair of arms.

    Places along training are read one at a time: a study may be larger than memory.

    Parameters
    ----------
    log_prob : DataArray (run, step, sequence, pos, d_vocab), nats, with coordinates `arm` and
        `architecture` ("dense" or "moe") on `run`, at some positions `pos` of the probe set. They
        are renormalised; a run with a NaN at a step counts as not observed there.
    probe_set : Dataset with `target (sequence, pos)` and, for bands and the unigram distribution,
        `token_frequency (d_vocab)`.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    loss_mean : DataArray (run, step) to compare runs at equal mean loss; None for equal steps.
    tolerance : share of the range of a curve of KL within which it counts as flat.
    level : coverage of the intervals.
    n_resamples : draws for the simultaneous intervals of the phases.
    progress : from a description to what wraps a list of places, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : for the simultaneous intervals; `default_rng(0)` if None.

    Returns
    -------
    Dataset
        Along `step` or `loss_level`, the variables of `comparison.summary.summarize` for `kl` and
        `js`; for `kl_by_frequency` and `js_by_frequency`, also along `frequency`, with
        `band_n_tokens`; and for `from_uniform` and `from_unigram`, KL of the models from these
        distributions; those of `comparison.excess.arm_excess` of `kl` and `js`; and along `step`
        those of `comparison.seed_phases.seed_phases` of `kl`.

    Raises
    ------
    ValueError
        With fewer than two runs or two units, without the coordinates, or if the runs have no mean
        loss in common.
    """
    log_prob = sorted_by_arm(log_prob)
    runs = run_coordinates(log_prob)
    at_positions = probe_set.sel(pos=log_prob["pos"]) if "pos" in probe_set.coords else probe_set
    bands = frequency_bands(at_positions)
    reference = references(probe_set, n_ids=log_prob.sizes["d_vocab"])
    compared = walk(
        log_prob, unit, _places(log_prob, loss_mean),
        partial(token_divergence, bands=bands, reference=reference),
        progress=progress("comparing runs"), dask=dask,
    )  # fmt: skip
    match: Match = "step" if loss_mean is None else "loss"
    result = runs.assign_attrs(level=level, match=match, tolerance=tolerance)
    for name, parts in compared.items():
        of_measure: dict[str, Any] = {"long_name": MEASURES[name], "units": "nat", "level": level}
        estimate, deleted = (_with_bands(part, name, bands) for part in parts)
        part = summarize(name, estimate, deleted, runs, scale=PLAIN, **of_measure)
        if name not in ("kl", "js"):
            # draws of every pair are many, and nothing is made of them here
            part = part.drop_vars([f"pair_{name}_deleted", f"pair_{name}_inner"])
        result = result.merge(part, compat="equals")
        if name in ("kl", "js"):
            between = arm_excess(name, estimate, deleted, runs, **of_measure)
            result = result.merge(between, compat="equals")
    if bands.names:
        n_tokens = np.bincount(bands.label + 1, minlength=len(bands.names) + 1)[1:]
        result["band_n_tokens"] = "frequency", n_tokens, labels("tokens in the band")
    if match == "loss":
        return result
    rng = rng or np.random.default_rng(0)
    phases = seed_phases(
        result, "kl", runs, tolerance=tolerance, level=level, n_resamples=n_resamples, rng=rng
    )
    return result.merge(phases, compat="equals")


def _places(log_prob: xr.DataArray, loss_mean: xr.DataArray | None) -> Along:
    if loss_mean is None:
        shape = log_prob.sizes["run"], log_prob.sizes["step"]
        steps = xr.DataArray(np.zeros(shape), {"step": log_prob["step"]}, ("run", "step"))
        return along(steps, "step")
    return along(loss_mean.sel(run=log_prob["run"], step=log_prob["step"]), "loss")


def _with_bands(part: xr.DataArray, name: str, bands: Bands) -> xr.DataArray:
    if f"{name}_0" not in part.dims:
        return part
    return part.rename({f"{name}_0": "frequency"}).assign_coords(frequency=list(bands.names))


def plot(result: xr.Dataset) -> "Figure":
    """KL over training, one panel a kind of pair."""
    return pairs.draw(result, "kl")


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    log_prob, without = _predictions(study)
    observed = log_prob["run"].values.tolist()
    probe_set = study.probe_set.load()

    def progress(description: str) -> Progress:
        return partial(cli.track, description=description)

    loss_mean = None
    if options.match == "loss":
        loss = study.dataset("losses")["loss"].sel(run=observed)
        loss_mean = mean_loss(loss, progress=progress("mean losses"), dask=options.dask)
    result = distribution_divergence(
        log_prob,
        probe_set,
        unit_labels(probe_set, options.unit),
        loss_mean=loss_mean,
        n_resamples=options.n_resamples,
        progress=progress,
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    places = pairs.places_with_values(result, "kl")
    last = result.isel({pairs.place_dim(result): int(places[-1])})
    same_stream, stream = stream_sentence(
        study.dataset("training")["stream_hash"].sel(run=observed)
    )
    shown = places[np.unique(np.linspace(0, len(places) - 1, 4).round().astype(int))]
    return Report(
        analysis="distribution_divergence",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=divergence_text.finding(last) + stream_doubt(same_stream, stream),
        tables=tuple(divergence_text.tables(result, last, shown)),
        drawings=tuple(_drawings(result, last)),
        reading=divergence_text.READING,
        caveats=(stream, *divergence_text.caveats(result, log_prob["pos"].size, without)),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _predictions(study: Study) -> tuple[xr.DataArray, list[str]]:
    """What the observed runs predicted, and the names of those that did not store it.

    Raises
    ------
    Unanswerable
        If none did.
    """
    observed = [run for run in study.runs if len(run.committed)]
    stored = [run.name for run in observed if "predictions" in run.groups]
    if not stored:
        raise Unanswerable(
            f"no run of study {study.name!r} stored what it predicts; train it with "
            "--set train.prediction_positions=4, or analyse a study that was"
        )
    without = [run.name for run in observed if run.name not in stored]
    return study.dataset("predictions")["log_prob"].sel(run=stored), without


def _drawings(result: xr.Dataset, last: xr.Dataset) -> Iterator[Drawing]:
    unit, where = result["unit"].attrs["long_name"], pairs.place_text(last)
    matched = "at equal mean loss" if "loss_level" in result.dims else "over training"
    yield Drawing(
        name="distribution_divergence",
        title=f"KL divergence of what two runs predict {matched}, by kind of pair",
        caption="A dot is a pair of runs, its halves in the colours of the two arms; the line is "
        f"the mean of the kind, the band its interval over {unit}s, the bars that over runs.",
        figure=plot(result),
        data={
            "kl_by_pair": result[["pair_kl", "pair_kl_ci", "pair_js", "pair_js_ci"]],
            "kl_by_kind": result[
                [f"kind_{n}{s}" for n in ("kl", "js") for s in ("", "_ci", "_run_ci")]
            ],
        },
    )
    if "curve" in result.dims and (result["curve_group"] == "arms").any():
        names = [n for n in result.data_vars if str(n).startswith("phase_")]
        kl = [f"arms_{n}" for n in ("kl", "kl_ci", "kl_run_ci")]
        yield Drawing(
            name="phases",
            title="KL between the seeds of each arm over training, and its phases",
            caption="Spans are phases that are seen. An asterisk marks one that is seen in these "
            "runs but not surely over runs, a question mark one that cannot be told. Below, "
            "how far the models are from distributions that do not know the context. "
            f"{divergence_text.phases_sentence(result)}",
            figure=divergence_figures.draw_phases(result),
            data={"phases": result[names], "kl_by_arms": result[kl]},
        )
    if "frequency" in result.dims:
        names = [f"kind_kl_by_frequency{s}" for s in ("", "_ci", "_run_ci")]
        yield Drawing(
            name="kl_by_frequency",
            title=f"KL divergence {matched} by how frequent the right token is",
            caption=f"Means of the kinds of pair, with intervals over {unit}s.",
            figure=divergence_figures.draw_by_frequency(result, "kl"),
            data={"kl_by_frequency": result[names]},
        )
    yield Drawing(
        name="kl_by_arms",
        title=f"KL divergence within each arm, above, and between arms, below, at {where}",
        caption="The bar in a row is the mean within its two arms, which the noise of seeds alone "
        f"leaves. Wide bands are intervals over {unit}s, thin lines over runs.",
        figure=excess.draw_arms(last, "kl"),
        data={"kl_between_arms": last[["arms_kl", "arms_kl_ci", "arms_kl_run_ci"]]},
    )
    if result.sizes["contrast"]:
        names = [f"excess_kl{s}" for s in ("", "_ci", "_run_ci")]
        yield Drawing(
            name="kl_excess",
            title=f"How much further apart than seeds two arms are, {matched}",
            caption="0 means that runs of different arms are no further apart than runs of one "
            f"arm. The band is the interval over {unit}s, the bars are that over runs.",
            figure=excess.draw_excess(result, "kl"),
            data={"kl_excess": result[[*names, "seed_kl"]]},
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "match", "dask"})
    return cli.run(cli.Analysis("distribution_divergence", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
